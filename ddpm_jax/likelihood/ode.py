"""The likelihood of the probability-flow ODE, Song et al. 2020."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import keys
from ddpm_jax.denoiser import Denoise
from ddpm_jax.schedules import HasLevels, Level


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
