"""How likely the data are: the variational bound of Ho et al. 2020, and the probability-flow ODE of Song et al. 2020.

    -log p(x0) <= L_T + L_{T-1} + ... + L_1 + L_0                                          (Eq. 5, Ho et al. 2020)

    L_T  = KL(q(x_T | x0) || N(0, 1))                    `prior`
    L_t  = KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))  `term` at t > 0
    L_0  = -log p(x0 | x_1)                              `term` at t = 0, the decoder

The paper's x_t is x_{t-1} here, where times count from 0. All of these are in bits per dimension, means over dimensions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from ddpm_jax import diffusion, keys
from ddpm_jax.denoiser import Denoise, Denoised, p_reverse
from ddpm_jax.diffusion import Gaussian, expand
from ddpm_jax.schedules import HasLevels, Level, Schedule

DECODERS = ("exact", "tanh")


def normal_kl(p: Gaussian, q: Gaussian) -> jax.Array:
    """KL(p || q) of normal distributions with independent dimensions, in nats, dimension by dimension.

    Args:
        p, q: Gaussians that broadcast against each other; their log_variance counts.

    Returns:
        [B, ...]; exactly 0 where they are the same.
    """
    difference = p.log_variance - q.log_variance
    return 0.5 * (jnp.expm1(difference) - difference + (p.mean - q.mean) ** 2 * jnp.exp(-q.log_variance))


def discretized_log_likelihood(x0: jax.Array, mean: jax.Array, log_scale: ArrayLike, decoder: str = "exact") -> jax.Array:
    """The probability that a normal distribution gives to a grey value: its integral over the value's bin.

    Bins are of half-width 1/255 around the 256 values in [-1, 1]; the outermost are open (Eq. 13, Ho et al. 2020).

    Args:
        x0: Grey values [B, ...], in [-1, 1].
        mean: [B, ...].
        log_scale: The log of the standard deviation; broadcasts against x0.
        decoder: "exact", by the normal distribution function, without a floor; or "tanh", the approximation in the code of
            Ho et al. 2020, Phi(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, with probabilities floored at 1e-12.
            Phi is off by up to 1.8e-4; the log probability by up to 0.001 nats within one standard deviation of the mean,
            0.008 within two, 0.04 within three, and by whole nats further out.

    Returns:
        Log probabilities in nats [B, ...].

    Raises:
        ValueError: an unknown decoder, or concrete values outside [-1, 1].
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {DECODERS}, received {decoder!r}")
    if not isinstance(x0, jax.core.Tracer) and np.any(np.abs(known := np.asarray(x0, np.float64)) > 1 + 1e-6):
        raise ValueError(f"x0: expected values in [-1, 1], received {known.min()} to {known.max()}")
    inverse = jnp.exp(-jnp.asarray(log_scale))
    above, below = (x0 - mean + 1 / 255) * inverse, (x0 - mean - 1 / 255) * inverse
    above, below = jnp.where(x0 > 0.999, jnp.inf, above), jnp.where(x0 < -0.999, -jnp.inf, below)
    log_cdf = log_ndtr if decoder == "exact" else _log_tanh_cdf
    upper_tail = below > 0  # where both ends lie above the mean, mirror them, so that no difference is lost to rounding
    below, above = jnp.where(upper_tail, -above, below), jnp.where(upper_tail, -below, above)
    finite = jnp.isfinite(below)
    ratio = log_cdf(jnp.where(finite, below, 0.0)) - log_cdf(jnp.where(finite, above, 1.0))
    log_probability = log_cdf(above) + jnp.where(finite, jnp.log(-jnp.expm1(ratio)), 0.0)
    return log_probability if decoder == "exact" else jnp.maximum(log_probability, math.log(1e-12))


def _log_tanh_cdf(x: jax.Array) -> jax.Array:
    return jax.nn.log_sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))  # (1 + tanh(z)) / 2 = sigmoid(2 z)


def prior(schedule: Schedule, x0: jax.Array) -> jax.Array:
    """L_T = KL(q(x_T | x0) || N(0, 1)): what is left of the data in the noise.

    Args:
        schedule: The noise schedule.
        x0: Clean data [B, ...], in [-1, 1].

    Returns:
        Bits per dimension [B].
    """
    alpha_bar = schedule.alpha_bar[-1]
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
    """L_t of the bound: the divergence of the model's step from the posterior, and at t = 0 the decoder's code length.

    Args:
        schedule: The noise schedule, T >= 2 steps.
        denoised: What the model believes about x_t.
        x0: Clean data [B, ...], in [-1, 1].
        x_t: Noised data [B, ...].
        t: Integers in 0..T-1, [B] or a scalar.
        variance: "fixed_small", "fixed_large" or "learned", as for `denoiser.p_reverse`.
        decoder: "exact" or "tanh", as for `discretized_log_likelihood`.

    Returns:
        Bits per dimension [B].

    Raises:
        ValueError: an unknown variance or decoder; a learned variance where there is none; t out of range.
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
    """The variational bound of single examples, term by term, in bits per dimension.

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
    schedule: Schedule,
    denoise: Denoise,
    x0: jax.Array,
    variance: str = "fixed_large",
    decoder: str = "exact",
    ids: ArrayLike | None = None,
) -> Bound:
    """Every term of the variational bound, with one draw of x_t at each of the T times: T calls of the network.

    Args:
        key: A typed key.
        schedule: The noise schedule, T >= 2 steps.
        denoise: The model; the paper clips x0 to [-1, 1] in evaluation.
        x0: Clean data [B, ...], in [-1, 1].
        variance: "fixed_small", "fixed_large" or "learned".
        decoder: "exact" or "tanh".
        ids: Integers [B], the examples' global numbers, 0..B-1 by default: example i depends on (key, ids[i]) alone.

    Returns:
        The Bound.

    Raises:
        As `term`; TypeError: no key.
    """
    example_keys = keys.per_example(keys.stream(key, "bound"), jnp.arange(len(x0)) if ids is None else ids)

    def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = keys.draw(jax.random.normal, jax.vmap(jax.random.fold_in, (0, None))(example_keys, t), x0.shape[1:])
        x_t = diffusion.q_sample(schedule, x0, t, noise.astype(x0.dtype))
        denoised = denoise(x_t, schedule.level(t))
        mse = jnp.mean((denoised.x0 - x0) ** 2, axis=range(1, x0.ndim))
        return term(schedule, denoised, x0, x_t, t, variance, decoder), mse

    terms, mse = jax.lax.map(at, jnp.arange(schedule.num_steps))
    return Bound(prior(schedule, x0), terms.T, mse.T)


def rate_distortion(prior: ArrayLike, terms: ArrayLike, mse: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The rate-distortion curve of progressive coding, section 4.3 of Ho et al. 2020: x_T is sent first, then x_{T-1}, ...

    Args:
        prior: Mean of L_T over examples.
        terms: Means of L_t [T].
        mse: Means of the squared error of x0 as seen from x_t [T], on the scale [-1, 1].

    Returns:
        rate [T]: bits per dimension spent when x_t has been received; distortion [T]: root mean squared error of the
        estimate of x0 from it, on the scale 0 to 255. t = 0, the most bits and the least distortion, comes first.
    """
    terms = np.asarray(terms, np.float64)
    received = np.cumsum(terms[::-1])[::-1] - terms  # of the steps after t: step t itself sends x_{t-1}
    return np.asarray(prior, np.float64) + received, 127.5 * np.sqrt(np.asarray(mse, np.float64))


def ode_log_likelihood(
    key: jax.Array | None,
    schedule: HasLevels,
    denoise: Denoise,
    x: jax.Array,
    log_snr: tuple[float, float],
    num_steps: int = 100,
    ids: ArrayLike | None = None,
) -> jax.Array:
    """The log-density of x under the probability-flow ODE, by the change of variables (Song et al. 2020, section 4.3).

    In lambda = log_snr the ODE of the variance-preserving process, and what it does to the density, are

        dx/dlambda        = sigma / 2 (sigma x - eps(x, lambda))
        dlog p/dlambda    = -div(dx/dlambda)

    integrated from the clean end to the noisy one, where x is taken as standard normal, by the Runge-Kutta method of
    order 4 with steps of equal length: four calls of the network a step, and a divergence with each.

    Args:
        key: None for the exact divergence, at the cost of one derivative a dimension; a typed key for the estimate of
            Hutchinson with one Rademacher vector an example, without bias, at the cost of one.
        schedule: Gives the level of a log_snr.
        denoise: The model, not clipped: clipping makes kinks in the flow.
        x: Data [B, ...], at the noise level log_snr[0].
        log_snr: Where to begin, and where the noise is all there is; finite, the first above the second.
        num_steps: At least 1.
        ids: Integers [B], the examples' global numbers, 0..B-1 by default: the estimate for i depends on (key, ids[i]).

    Returns:
        Nats [B], summed over dimensions.

    Raises:
        ValueError: a range of log_snr that is not finite, does not fall, or leaves the schedule; num_steps below 1.
    """
    if not (np.all(np.isfinite(log_snr)) and log_snr[0] > log_snr[1]):
        raise ValueError(f"log_snr: expected two finite values, the first above the second, received {log_snr}")
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, received {num_steps}")
    levels = schedule.level_at(np.linspace(*log_snr, 2 * num_steps + 1))
    levels = jax.tree.map(lambda a: jnp.asarray(a, jnp.promote_types(x.dtype, jnp.float32)), levels)
    step = (log_snr[1] - log_snr[0]) / num_steps
    probes = None
    if key is not None:
        example_keys = keys.per_example(keys.stream(key, "probe"), jnp.arange(len(x)) if ids is None else ids)
        probes = keys.draw(jax.random.rademacher, example_keys, x.shape[1:], x.dtype)

    def slope(x: jax.Array, level: Level) -> tuple[jax.Array, jax.Array]:
        flow = lambda x: level.sigma / 2 * (level.sigma * x - denoise(x, level).eps)  # noqa: E731
        return _with_divergence(flow, x, probes)

    def body(carry: tuple[jax.Array, jax.Array], at: tuple[Level, Level, Level]) -> tuple[Any, None]:
        x, change = carry
        k1, d1 = slope(x, at[0])
        k2, d2 = slope(x + step / 2 * k1, at[1])
        k3, d3 = slope(x + step / 2 * k2, at[1])
        k4, d4 = slope(x + step * k3, at[2])
        return (x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), change + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    thirds = tuple(jax.tree.map(lambda a, i=i: a[i : i + 2 * num_steps : 2], levels) for i in range(3))
    (x, change), _ = jax.lax.scan(body, (x, jnp.zeros(len(x), x.dtype)), thirds)
    normal = -0.5 * jnp.sum(x**2 + math.log(2 * math.pi), axis=range(1, x.ndim))
    return normal + change


def _with_divergence(flow: Any, x: jax.Array, probes: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """flow(x) [B, ...] and its divergence [B]: exact, or estimated as probe . (d flow / d x) probe."""
    over = range(1, x.ndim)
    if probes is not None:
        value, derivative = jax.jvp(flow, (x,), (probes,))
        return value, jnp.sum(probes * derivative, axis=over)
    basis = jnp.eye(math.prod(x.shape[1:]), dtype=x.dtype).reshape(-1, *x.shape[1:])

    def along(direction: jax.Array) -> jax.Array:
        direction = jnp.broadcast_to(direction, x.shape)
        return jnp.sum(direction * jax.jvp(flow, (x,), (direction,))[1], axis=over)

    return flow(x), jnp.sum(jax.lax.map(along, basis), axis=0)


def bits_per_dimension(log_likelihood: ArrayLike, num_dimensions: int) -> jax.Array:
    """Log-densities on the scale [-1, 1], in nats, as bits per dimension of data with 256 grey values.

    A grey value is 1 / 127.5 wide there, so that -log2 of the probability of one is -log2 density + log2 127.5; what is
    passed in should be dequantised: x0 plus uniform noise over a grey value's width.
    """
    return -jnp.asarray(log_likelihood) / (num_dimensions * math.log(2)) + math.log2(127.5)
