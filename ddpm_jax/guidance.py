"""Guidance: denoiser transforms that steer samples towards a condition.

Each adds to the estimated score, which moves x0 and eps together, so that x_t = alpha x0 + sigma eps still holds. A scale
is a number, or one per example [B]. They compose; `denoiser.clipped` or `dynamic_threshold` comes last:

    clipped(classifier_free(make_denoise(schedule, predict, clip=False), scale=3.0))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import diffusion
from ddpm_jax.denoiser import Denoise, Denoised, Predict
from ddpm_jax.schedules import Level, safe_divide

LogProbability = Callable[[jax.Array, Level], jax.Array]
"""(data [B, ...], Level) -> log-probabilities [B]; the i-th depends on example i alone."""
PredictGiven = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""(x_t [B, ...], t [B], condition) -> the network's output [B, ...]; the condition is a pytree of arrays [B, ...], or None."""
Interval = tuple[float, float]
"""The smallest and the largest log(alpha^2 / sigma^2) at which guidance is on."""


def interleave(conditional: ArrayLike, unconditional: ArrayLike) -> jax.Array:
    """The 2B conditions, interleaved, (c_0, u_0, c_1, u_1, ...), as `classifier_free` expects them.

    Args:
        conditional: Labels or other conditions [B, ...].
        unconditional: The null condition, a scalar or [...]; or one per example, [B, ...].

    Returns:
        [2B, ...].

    Raises:
        ValueError: unconditional has neither shape.
    """
    conditional, unconditional = jnp.asarray(conditional), jnp.asarray(unconditional)
    each, one = conditional.shape, conditional.shape[1:]
    if unconditional.shape not in (each, one):
        raise ValueError(f"unconditional: expected shape {each} or {one}, received {unconditional.shape}")
    pairs = jnp.stack([conditional, jnp.broadcast_to(unconditional, each).astype(conditional.dtype)], axis=1)
    return pairs.reshape(-1, *one)


def conditional(predict: PredictGiven, condition: Any, unconditional: Any, scale: ArrayLike = 1.0) -> Predict:
    """Binds a network to a condition, with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

        output = output_u + scale (output_c - output_u)

    At a given x_t, eps, x0, v and score are affine functions of each other, so this equals `classifier_free` for each of
    them, with one network evaluation per step, on B examples if scale is 0 or 1, otherwise on 2B (see `interleave`).

    Args:
        predict: The network, (x_t [B, ...], t [B], condition) -> [B, ...].
        condition: A pytree of arrays [B, ...], such as labels; a scalar applies to all examples. None: unconditional.
        unconditional: The null condition, the same pytree of arrays [...]; with a condition also [B, ...].
        scale: A number, or [B]. 0 is unconditional, 1 conditional, above 1 guided.

    Returns:
        The Predict. Output channels beyond those of x_t, a learned variance, are the conditional ones.

    Raises:
        ValueError: a scale of two dimensions or more; when called, conditions of incompatible shapes.

    >>> network = lambda x_t, t, labels: x_t * labels[:, None]
    >>> predict = conditional(network, jnp.array([3, 7]), unconditional=0, scale=2.0)
    >>> print(predict(jnp.ones((2, 1)), jnp.zeros(2))[:, 0])
    [ 6. 14.]
    """
    if condition is None or _is(scale, 0):
        return lambda x_t, t: predict(x_t, t, jax.tree.map(lambda a: _for_each(a, len(x_t)), unconditional))
    given = lambda x_t: jax.tree.map(lambda a: a if jnp.ndim(a) else _for_each(a, len(x_t)), condition)  # noqa: E731
    if _is(scale, 1):
        return lambda x_t, t: predict(x_t, t, given(x_t))
    scale = _checked_scale(scale)

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        both = jax.tree.map(interleave, given(x_t), unconditional)
        output = predict(jnp.repeat(x_t, 2, axis=0), jnp.repeat(t, 2), both)
        output_c, output_u = output[::2], output[1::2]
        out = output_c + (_scale_at(scale, x_t) - 1) * (output_c - output_u)
        is_prediction = jnp.arange(out.shape[-1]) < x_t.shape[-1]  # the rest is a learned variance
        return jnp.where(is_prediction, out, output_c).astype(output.dtype)

    return guided


def classifier_free(denoise: Denoise, scale: ArrayLike, interval: Interval | None = None, rescale: float = 0.0) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): one network evaluation per step, on 2B examples.

        eps = eps_u + scale (eps_c - eps_u),    x0 = x0_u + scale (x0_c - x0_u)

    Args:
        denoise: Unclipped, from a network bound to 2B interleaved conditions (see `interleave`), so that a batch that is
            sharded by examples stays so.
        scale: A number, or [B]. 0 is unconditional, 1 conditional, above 1 guided: 1 + w in the paper's Eq. 6.
        interval: The range of log_snr in which the scale applies; outside it is 1 (Kynkäänniemi et al. 2024, arXiv
            2404.07724). Everywhere by default.
        rescale: In [0, 1], how far the standard deviation of each example's x0 is moved back to that of the conditional x0
            (section 3.4 of Lin et al. 2023, arXiv 2305.08891); eps is recomputed. The paper uses 0.7.

    Returns:
        The Denoise, for batches of B. Its fraction is the conditional one.

    Raises:
        ValueError: a scale of two dimensions or more, an empty interval, a rescale out of range; when called, a scale for
            another number of examples.

    >>> from ddpm_jax import denoiser, schedules
    >>> labels, schedule = interleave(jnp.array([3, 7]), 0), schedules.linear(1000)
    >>> denoise = denoiser.make_denoise(schedule, lambda x_t, t: x_t * labels[:, None], clip=False)
    >>> print(classifier_free(denoise, scale=2.0)(jnp.ones((2, 1)), schedule.level(500)).eps[:, 0])
    [ 6. 14.]
    """
    scale = _checked_scale(scale)
    interval = _checked_interval(interval)
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale: expected 0 to 1, received {rescale}")

    def guided(x_t: jax.Array, level: Level) -> Denoised:
        doubled = Level(*(jnp.repeat(a, 2) if jnp.ndim(a) else a for a in level))
        both = denoise(jnp.repeat(x_t, 2, axis=0), doubled)
        conditional, unconditional = (jax.tree.map(lambda a, i=i: a[i::2], both) for i in (0, 1))
        out = _extrapolated(unconditional, conditional, _scale_at(scale, x_t, level, interval))
        return _rescaled(out, conditional, x_t, level, rescale) if rescale else out

    return guided


def autoguidance(denoise: Denoise, weaker: Denoise, scale: ArrayLike, interval: Interval | None = None) -> Denoise:
    """Guides a model by a weaker version of itself (Karras et al. 2024, arXiv 2406.02507).

        x0 = x0_weaker + scale (x0 - x0_weaker),    and so eps

    Args:
        denoise: The model, unclipped.
        weaker: A smaller or less trained one, unclipped, with the same schedule.
        scale: A number, or [B]; 0 is the weaker model, 1 the model itself.
        interval: As for `classifier_free`.

    Returns:
        The Denoise: one evaluation of each network per step.

    Raises:
        ValueError: As `classifier_free`.
    """
    scale = _checked_scale(scale)
    interval = _checked_interval(interval)

    def guided(x_t: jax.Array, level: Level) -> Denoised:
        return _extrapolated(weaker(x_t, level), denoise(x_t, level), _scale_at(scale, x_t, level, interval))

    return guided


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
    scale = _checked_scale(scale)

    def guided(x_t: jax.Array, level: Level) -> Denoised:
        gradient = jax.grad(lambda x: _total(log_prob(x, level), x))(x_t)
        return _with_score(denoise(x_t, level), level, _scale_at(scale, x_t) * gradient)

    return guided


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
    scale = _checked_scale(scale)

    def guided(x_t: jax.Array, level: Level) -> Denoised:
        def total(x: jax.Array):
            denoised = denoise(x, level)
            return _total(log_likelihood(denoised.x0, level), x), denoised

        gradient, denoised = jax.grad(total, has_aux=True)(x_t)
        return _with_score(denoised, level, _scale_at(scale, x_t) * gradient)

    return guided


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

    def log_likelihood(x0: jax.Array, level: Level) -> jax.Array:
        predicted = measure(x0)
        if predicted.shape != measured.shape:
            raise ValueError(f"measured: expected the output shape of measure, {predicted.shape}, received {measured.shape}")
        prior, alpha2, sigma2 = data_std**2, jnp.square(level.alpha), jnp.square(level.sigma)
        variance = std**2 + prior * sigma2 / jnp.maximum(sigma2 + prior * alpha2, jnp.finfo(x0.dtype).tiny)
        squares = jnp.sum((measured - predicted) ** 2, axis=tuple(range(1, predicted.ndim)))
        return -squares / (2 * jnp.maximum(variance, jnp.finfo(x0.dtype).eps))

    return log_likelihood


def dynamic_threshold(
    denoise: Denoise, quantile: float = 0.995, limit: float = float("inf"), rederive_eps: bool = True
) -> Denoise:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3); applied last, instead of `clipped`.

        x0 <- clip(x0, -s, s) / s,    s = min(max(the quantile of |x0| over the example, 1), limit)

    Args:
        denoise: With any guidance already applied.
        quantile: In [0, 1]; the paper uses 0.995 for pixels.
        limit: Upper bound on s, above 0.
        rederive_eps: As for `denoiser.clipped`.

    Returns:
        The Denoise.

    Raises:
        ValueError: quantile or limit out of range.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected 0 to 1, received {quantile}")
    if not limit > 0:
        raise ValueError(f"limit: expected above 0, received {limit}")

    def thresholded(x_t: jax.Array, level: Level) -> Denoised:
        x0, eps, fraction = denoise(x_t, level)
        s = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), quantile, axis=1)
        s = diffusion.expand(jnp.clip(s, 1.0, None).clip(None, limit), x0).astype(x0.dtype)
        x0 = jnp.clip(x0, -s, s) / s
        return Denoised(x0, diffusion.eps_from_x0(level, x_t, x0) if rederive_eps else eps, fraction)

    return thresholded


def _extrapolated(start: Denoised, end: Denoised, scale: jax.Array) -> Denoised:
    """start + scale (end - start), exactly `end` at scale 1; the fraction is that of `end`."""
    x0, eps = (b + (scale - 1) * (b - a) for a, b in zip(start[:2], end[:2], strict=True))
    return Denoised(x0, eps, end.fraction)


def _rescaled(guided: Denoised, conditional: Denoised, x_t: jax.Array, level: Level, rescale: float) -> Denoised:
    """x0 with its standard deviation moved back to the conditional one; eps is recomputed."""
    axes = tuple(range(1, x_t.ndim))
    before, after = (jnp.std(a.x0, axis=axes, keepdims=True) for a in (conditional, guided))
    x0 = (rescale * safe_divide(before, after, 1.0) + (1 - rescale)) * guided.x0
    return Denoised(x0, diffusion.eps_from_x0(level, x_t, x0), guided.fraction)


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


def _checked_scale(scale: ArrayLike) -> jax.Array:
    """The scale as an array () or [B]."""
    if jnp.ndim(scale) > 1:
        raise ValueError(f"scale: expected a number or [B], received shape {jnp.shape(scale)}")
    return jnp.asarray(scale)


def _checked_interval(interval: Interval | None) -> Interval:
    """The interval; all real numbers by default."""
    interval = interval or (-np.inf, np.inf)
    if not interval[0] < interval[1]:
        raise ValueError(f"interval: expected (low, high) in log_snr, low below high, received {interval}")
    return interval


def _is(scale: ArrayLike, number: int) -> bool:
    """Whether the scale is concrete and equal to a number."""
    return not isinstance(scale, jax.core.Tracer) and np.ndim(scale) == 0 and bool(np.equal(scale, number))


def _for_each(a: ArrayLike, batch: int) -> jax.Array:
    """[...] -> [B, ...], repeated for each example."""
    return jnp.broadcast_to(a, (batch, *jnp.shape(a)))


def _scale_at(scale: jax.Array, x_t: jax.Array, level: Level | None = None, interval: Interval | None = None) -> jax.Array:
    """The scale at a level, to broadcast against x_t; 1 outside the interval."""
    if scale.ndim and scale.shape != x_t.shape[:1]:
        raise ValueError(f"scale: expected a number or shape {x_t.shape[:1]}, received shape {scale.shape}")
    if level is not None and interval is not None:
        scale = jnp.where((level.log_snr >= interval[0]) & (level.log_snr <= interval[1]), scale, 1.0)
    return diffusion.expand(scale, x_t).astype(jnp.promote_types(x_t.dtype, jnp.float32))
