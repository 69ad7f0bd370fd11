"""The variational bound on the likelihood, Ho et al. 2020.

    -log p(x0) <= L_T + L_{T-1} + ... + L_1 + L_0                                          (Eq. 5, Ho et al. 2020)

    L_T  = KL(q(x_T | x0) || N(0, 1))                    `prior`
    L_t  = KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))  `term` at t > 0
    L_0  = -log p(x0 | x_1)                              `term` at t = 0, the decoder

The paper's x_t is x_{t-1} in the code, where times count from 0. All are in bits per dimension, means over dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion, keys
from ddpm_jax.denoiser import Denoise, Denoised, evaluated, p_reverse
from ddpm_jax.diffusion import Gaussian, expand
from ddpm_jax.schedules import HasLevels, Schedule, require_discrete

DECODERS = ("exact", "tanh")


def normal_kl(p: Gaussian, q: Gaussian) -> jax.Array:
    """KL(p || q) of normal distributions with independent dimensions, in nats per dimension.

    Args:
        p, q: Gaussians that broadcast against each other; their log_variance is used.

    Returns:
        [B, ...]; exactly 0 if they are equal.
    """
    difference = p.log_variance - q.log_variance
    return 0.5 * (jnp.expm1(difference) - difference + (p.mean - q.mean) ** 2 * jnp.exp(-q.log_variance))


def discretized_log_likelihood(x0: jax.Array, mean: jax.Array, log_scale: ArrayLike, decoder: str = "exact") -> jax.Array:
    """Log-likelihood of 8-bit data under a discretized Gaussian, Eq. 13 of Ho et al. 2020.

        log p(x0) = log(Phi(above) - Phi(below)),    above, below = (x0 - mean +- 1 / 255) / scale

    Bins have half-width 1/255 around the 256 intensity levels in [-1, 1]; the outermost are open.

    Args:
        x0: Intensity levels [B, ...], in [-1, 1].
        mean: [B, ...].
        log_scale: Log of the standard deviation; broadcasts against x0.
        decoder: "exact", by the normal distribution function, without a floor; or "tanh", the approximation in the code of
            Ho et al. 2020, Phi(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, with probabilities floored at 1e-12.
            Its error is up to 1.8e-4 in Phi; in the log probability up to 0.001 nats within one standard deviation of the
            mean, 0.008 within two, 0.04 within three, and whole nats further out.

    Returns:
        Log probabilities in nats [B, ...].

    Raises:
        ValueError: an unknown decoder, or concrete values outside [-1, 1].
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {DECODERS}, received {decoder!r}")
    if not isinstance(x0, jax.core.Tracer) and np.any(np.abs(known := np.asarray(x0, np.float64)) > 1 + 1e-6):
        raise ValueError(f"x0: expected values in [-1, 1], received {known.min()} to {known.max()}")
    log_cdf = log_ndtr if decoder == "exact" else _log_tanh_cdf

    # The edges of the bin; the outermost bins are open.
    inverse = jnp.exp(-jnp.asarray(log_scale))
    above, below = (x0 - mean + 1 / 255) * inverse, (x0 - mean - 1 / 255) * inverse
    above, below = jnp.where(x0 > 0.999, jnp.inf, above), jnp.where(x0 < -0.999, -jnp.inf, below)

    # If both edges lie above the mean, mirror them: Phi is close to 1 there, and the difference would be lost to rounding.
    upper_tail = below > 0
    below, above = jnp.where(upper_tail, -above, below), jnp.where(upper_tail, -below, above)

    # log(Phi(above) - Phi(below)) = log Phi(above) + log(1 - Phi(below) / Phi(above)).
    finite = jnp.isfinite(below)
    ratio = log_cdf(jnp.where(finite, below, 0.0)) - log_cdf(jnp.where(finite, above, 1.0))
    log_probability = log_cdf(above) + jnp.where(finite, jnp.log(-jnp.expm1(ratio)), 0.0)
    return log_probability if decoder == "exact" else jnp.maximum(log_probability, math.log(1e-12))


def _log_tanh_cdf(x: jax.Array) -> jax.Array:
    return jax.nn.log_sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))  # (1 + tanh(z)) / 2 = sigmoid(2 z)


def prior(schedule: HasLevels, x0: jax.Array) -> jax.Array:
    """L_T = KL(q(x_T | x0) || N(0, 1)), the prior term of the bound.

    Args:
        schedule: The noise schedule, in discrete time.
        x0: Clean data [B, ...], in [-1, 1].

    Returns:
        Bits per dimension [B].

    Raises:
        ValueError: a schedule in continuous time.
        TypeError: no schedule, or an x0 that is not floating-point.
    """
    arguments.check_x0(x0)
    alpha_bar = require_discrete(schedule, "the bound").alpha_bar[-1]
    nats = 0.5 * (alpha_bar * x0**2 - alpha_bar - jnp.log1p(-alpha_bar))
    return _per_dimension(nats)


def term(
    schedule: Schedule,
    denoised: Denoised,
    x0: jax.Array,
    x_t: jax.Array,
    t: ArrayLike,
    variance: str = "fixed_large",
    decoder: str = "exact",
) -> jax.Array:
    """L_t of the bound: the divergence of the model's step from the posterior, or at t = 0 the decoder's code length.

    Args:
        schedule: The noise schedule, in discrete time, T >= 2 steps.
        denoised: The model's prediction at x_t.
        x0: Clean data [B, ...], in [-1, 1].
        x_t: Noisy data [B, ...].
        t: Integers in 0..T-1, [B] or a scalar.
        variance: "fixed_small", "fixed_large" or "learned", as for `denoiser.p_reverse`.
        decoder: "exact" or "tanh", as for `discretized_log_likelihood`.

    Returns:
        Bits per dimension [B].

    Raises:
        ValueError: an unknown variance or decoder; a learned variance that the model lacks; t out of range; a schedule in
            continuous time.
        TypeError: t is not an integer.
    """
    p = p_reverse(schedule, denoised, x_t, t, variance)
    divergence = normal_kl(diffusion.q_posterior(schedule, x0, x_t, t), p)
    code_length = -discretized_log_likelihood(x0, p.mean, p.log_variance / 2, decoder)
    return _per_dimension(jnp.where(expand(jnp.equal(t, 0), x_t), code_length, divergence))


def _per_dimension(nats: jax.Array) -> jax.Array:
    """Nats [B, ...] -> bits per dimension [B]."""
    return jnp.mean(nats, axis=range(1, nats.ndim)) / math.log(2)


class Bound(NamedTuple):
    """The terms of the variational bound for each example, in bits per dimension.

    Attributes:
        prior: L_T [B].
        terms: L_t [B, T], t = 0 first.
        mse: Mean squared error of the estimate of x0 from x_t, on the scale [-1, 1], [B, T].
    """

    prior: jax.Array
    terms: jax.Array
    mse: jax.Array

    @property
    def total(self) -> jax.Array:
        """The bound on -log2 p(x0), [B]."""
        return self.prior + self.terms.sum(axis=-1)


def bound(
    key: jax.Array,
    schedule: HasLevels,
    denoise: Denoise,
    x0: jax.Array,
    variance: str = "fixed_large",
    decoder: str = "exact",
    ids: ArrayLike | None = None,
) -> Bound:
    """Every term of the variational bound, with one sample of x_t at each of the T times: T network evaluations.

    Args:
        key: A typed key.
        schedule: The noise schedule, in discrete time, T >= 2 steps.
        denoise: The model; the paper clips x0 to [-1, 1] in evaluation.
        x0: Clean data [B, ...], in [-1, 1].
        variance: "fixed_small", "fixed_large" or "learned".
        decoder: "exact" or "tanh".
        ids: Global example indices, integers [B], 0..B-1 by default: example i depends on (key, ids[i]) alone.

    Returns:
        The Bound.

    Raises:
        Same as `term`; TypeError: no key, schedule or Denoise, or an x0 that is not floating-point; ValueError: a schedule
        in continuous time.

    >>> from ddpm_jax import likelihood, schedules
    >>> x0, schedule = jnp.zeros((2, 4)), schedules.linear(1000)
    >>> perfect = lambda x_t, level: Denoised(x0, diffusion.eps_from_x0(level, x_t, x0))
    >>> bound = likelihood.bound(jax.random.key(0), schedule, perfect, x0, "fixed_small")
    >>> bound.terms.shape, float(bound.terms[:, 1:].max())  # a perfect model pays at t = 0 alone
    ((2, 1000), 0.0)
    """
    schedule = require_discrete(schedule, "the bound")
    arguments.check_x0(x0)
    example_keys = keys.per_example(keys.stream(key, "bound"), keys.global_ids(ids, len(x0)))

    def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = keys.draw(jax.random.normal, keys.fold(example_keys, t), x0.shape[1:])
        x_t = diffusion.q_sample(schedule, x0, t, noise.astype(x0.dtype))
        denoised = evaluated(denoise, x_t, schedule.level(t))
        mse = jnp.mean((denoised.x0 - x0) ** 2, axis=range(1, x0.ndim))
        return term(schedule, denoised, x0, x_t, t, variance, decoder), mse

    terms, mse = jax.lax.map(at, jnp.arange(schedule.num_steps))
    return Bound(prior(schedule, x0), terms.T, mse.T)
