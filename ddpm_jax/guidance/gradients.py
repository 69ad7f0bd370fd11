"""Guidance by the gradient of a log-probability: of a classifier, or of a measurement."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion
from ddpm_jax.denoiser import Denoise, Denoised, check_denoise, evaluated
from ddpm_jax.guidance.scales import checked_scale, scale_at
from ddpm_jax.schedules import Level, safe_divide

LogProbability = Callable[[jax.Array, Level], jax.Array]
"""(data [B, ...], Level) -> log-probabilities [B]; the i-th depends on example i alone."""
A_LOG_PROBABILITY = "a function (data, Level) -> log-probabilities [B]"


def classifier(denoise: Denoise, log_prob: LogProbability, scale: ArrayLike = 1.0) -> Denoise:
    """Classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233, Algorithm 2), for any differentiable log p(y | x_t).

        eps <- eps - scale sigma grad log p(y | x_t),    x0 <- x0 + scale (sigma^2 / alpha) grad log p(y | x_t)

    Args:
        denoise: Unclipped.
        log_prob: (x_t [B, ...], Level) -> log p(y_i | x_t,i) [B], from a classifier trained on noisy data.
        scale: A number, or [B]; 1 samples from p(x | y) if model and classifier are exact.

    Returns:
        The Denoise.

    Raises:
        ValueError: As `classifier_free`; or log_prob returns another shape than [B].
    """
    check_denoise(denoise)
    arguments.check_function("log_prob", log_prob, A_LOG_PROBABILITY)
    return functools.partial(_classifier, denoise, log_prob, checked_scale(scale))


def _classifier(denoise: Denoise, log_prob: LogProbability, scale: jax.Array, x_t: jax.Array, level: Level) -> Denoised:
    gradient = jax.grad(lambda x: _total(log_prob(x, level), x))(x_t)
    return _with_score(evaluated(denoise, x_t, level), level, scale_at(scale, x_t) * gradient)


def dps(denoise: Denoise, log_likelihood: LogProbability, scale: ArrayLike = 1.0) -> Denoise:
    """Diffusion posterior sampling (Chung et al. 2022, arXiv 2209.14687, Theorem 1): log p(y | x_t) at the estimate x0(x_t).

        eps <- eps - scale sigma grad log p(y | x0(x_t)),    x0 <- x0 + scale (sigma^2 / alpha) grad log p(y | x0(x_t))

    The gradient goes through the network.

    Args:
        denoise: Unclipped.
        log_likelihood: (x0 [B, ...], Level) -> [B], such as a `gaussian_likelihood`.
        scale: A number, or [B].

    Returns:
        The Denoise.

    Raises:
        ValueError: As `classifier`.
    """
    check_denoise(denoise)
    arguments.check_function("log_likelihood", log_likelihood, A_LOG_PROBABILITY)
    return functools.partial(_dps, denoise, log_likelihood, checked_scale(scale))


def _dps(denoise: Denoise, log_likelihood: LogProbability, scale: jax.Array, x_t: jax.Array, level: Level) -> Denoised:
    def total(x: jax.Array):
        denoised = evaluated(denoise, x, level)
        return _total(log_likelihood(denoised.x0, level), x), denoised

    gradient, denoised = jax.grad(total, has_aux=True)(x_t)
    return _with_score(denoised, level, scale_at(scale, x_t) * gradient)


def gaussian_likelihood(
    measure: Callable[[jax.Array], jax.Array], measured: jax.Array, std: float, data_std: float = 1.0
) -> LogProbability:
    """log p(y | x0) for y = measure(x0) + std * noise: super-resolution, colourization, deblurring, ...

        -|y - measure(x0)|^2 / (2 (std^2 + r^2)),    r^2 = 1 / (1 / data_std^2 + alpha^2 / sigma^2)

    r is the standard deviation of x0 given x_t (Song et al. 2023, Pseudoinverse-guided diffusion models): with it, guidance is
    exact for normal data if `measure` has orthonormal rows, and stable for small std. data_std = 0 is plain DPS.

    Args:
        measure: A differentiable function, [B, ...] -> [B, ...], acting on each example separately.
        measured: y, in the output shape of `measure`.
        std: Standard deviation of the measurement noise, at least 0; above 0 if data_std is 0.
        data_std: Standard deviation of the data.

    Returns:
        The function for `dps`.

    Raises:
        ValueError: std or data_std out of range; when called, measured in another shape than the output of measure.
    """
    if not (std >= 0 and data_std >= 0 and std + data_std > 0):
        raise ValueError(f"std, data_std: expected at least 0 and not both 0, received {std}, {data_std}")
    arguments.check_function("measure", measure, "a function of x0")
    return functools.partial(_gaussian_likelihood, measure, measured, std, data_std)


def _gaussian_likelihood(
    measure: Callable[[jax.Array], jax.Array],
    measured: jax.Array,
    std: float,
    data_std: float,
    x0: jax.Array,
    level: Level,
) -> jax.Array:
    predicted = measure(x0)
    arguments.check_shape("measured", measured, predicted.shape, "the output shape of measure")
    prior, alpha2, sigma2 = data_std**2, jnp.square(level.alpha), jnp.square(level.sigma)
    variance = std**2 + prior * sigma2 / jnp.maximum(sigma2 + prior * alpha2, jnp.finfo(x0.dtype).tiny)
    squares = jnp.sum((measured - predicted) ** 2, axis=tuple(range(1, predicted.ndim)))
    return -squares / (2 * jnp.maximum(variance, jnp.finfo(x0.dtype).eps))


def _with_score(denoised: Denoised, level: Level, score: jax.Array) -> Denoised:
    """Adds to the score; x0 is unchanged at alpha = 0, where x_t carries no information about it."""
    alpha, sigma = diffusion.expand(level.alpha, score), diffusion.expand(level.sigma, score)
    x0 = denoised.x0 + safe_divide(sigma**2, alpha) * score
    return denoised._replace(x0=x0, eps=denoised.eps - sigma * score)


def _total(log_prob: jax.Array, x: jax.Array) -> jax.Array:
    """The sum over examples, whose gradient is each example's own."""
    if log_prob.shape != x.shape[:1]:
        raise ValueError(f"log-probability: expected shape {x.shape[:1]}, received {log_prob.shape}")
    return jnp.sum(log_prob)
