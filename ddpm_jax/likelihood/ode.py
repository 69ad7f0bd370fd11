"""The likelihood under the probability-flow ODE, Song et al. 2020."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, keys
from ddpm_jax.denoiser import Denoise, check_denoise, evaluated
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

    With lambda = log_snr, the ODE of z = x / h, h = hypot(alpha, sigma), and the change of its density along it are

        dz/dlambda        = sigma / (2 h) (sigma / h z - eps(h z, lambda))
        dlog p/dlambda    = -div(dz/dlambda)

    integrated from the data to the noise, where z is taken as standard normal, by the classical Runge-Kutta method of order
    4 with equal steps: four network evaluations per step, each with a divergence. z is variance-preserving: z = x if
    alpha^2 + sigma^2 = 1; otherwise, as in flow matching, log p(x) = log p(z) - D log h for D dimensions.

    Args:
        key: None for the exact divergence, at the cost of one derivative per dimension; a typed key for Hutchinson's
            unbiased estimate with one Rademacher vector per example, at the cost of one derivative.
        schedule: Maps log_snr to noise levels.
        denoise: The model, not clipped: clipping makes kinks in the flow.
        x: Data [B, ...], at the noise level log_snr[0].
        log_snr: The first and the last log_snr of the integration; finite, the first above the second.
        num_steps: Number of Runge-Kutta steps, at least 1.
        ids: Global example indices, integers [B], 0..B-1 by default: the estimate for i depends on (key, ids[i]).

    Returns:
        Log-densities in nats [B], summed over dimensions.

    Raises:
        ValueError: a range of log_snr that is not finite, does not fall, or leaves the schedule; num_steps below 1.
        TypeError: a key that is no typed key, no schedule or no Denoise, or an x that is not floating-point.
    """
    arguments.check_schedule(schedule)
    check_denoise(denoise)
    arguments.check_floating("x", x)
    if not (np.all(np.isfinite(log_snr)) and log_snr[0] > log_snr[1]):
        raise ValueError(f"log_snr: expected two finite values, the first above the second, received {log_snr}")
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, received {num_steps}")

    # The levels at both ends and the middle of each step, and the probes.
    levels = schedule.level_at(np.linspace(*log_snr, 2 * num_steps + 1))
    h = np.hypot(levels.alpha, levels.sigma)
    levels, h = jax.tree.map(lambda a: jnp.asarray(a, jnp.promote_types(x.dtype, jnp.float32)), (levels, h))
    step = (log_snr[1] - log_snr[0]) / num_steps
    probes = None
    if key is not None:
        example_keys = keys.per_example(keys.stream(key, "probe"), keys.global_ids(ids, len(x)))
        probes = keys.draw(jax.random.rademacher, example_keys, x.shape[1:], x.dtype)

    def slope(z: jax.Array, at: tuple[Level, jax.Array]) -> tuple[jax.Array, jax.Array]:
        level, h = at
        sigma = level.sigma / h
        flow = lambda z: sigma / 2 * (sigma * z - evaluated(denoise, h * z, level).eps)  # noqa: E731
        return _with_divergence(flow, z, probes)

    def body(carry: tuple[jax.Array, jax.Array], at: tuple[Any, Any, Any]) -> tuple[Any, None]:
        z, change = carry
        k1, d1 = slope(z, at[0])
        k2, d2 = slope(z + step / 2 * k1, at[1])
        k3, d3 = slope(z + step / 2 * k2, at[1])
        k4, d4 = slope(z + step * k3, at[2])
        return (z + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), change + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    # log p(x) = log N(z at the noise; 0, 1) + the integral of the divergence - D log h at the data.
    begin_middle_end = tuple(jax.tree.map(lambda a, i=i: a[i : i + 2 * num_steps : 2], (levels, h)) for i in range(3))
    start = (x / h[0]).astype(x.dtype)
    (z, change), _ = jax.lax.scan(body, (start, jnp.zeros(len(x), x.dtype)), begin_middle_end)
    normal = -0.5 * jnp.sum(z**2 + math.log(2 * math.pi), axis=range(1, x.ndim))
    return normal + change - math.prod(x.shape[1:]) * jnp.log(h[0])


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
    """Converts log-densities on the scale [-1, 1], in nats, to bits per dimension of 8-bit data.

    An intensity level is 1 / 127.5 wide on that scale, so -log2 of its probability is -log2 density + log2 127.5. The
    densities should be of dequantized data: x0 plus uniform noise over the width of a level.
    """
    return -jnp.asarray(log_likelihood) / (num_dimensions * math.log(2)) + math.log2(127.5)
