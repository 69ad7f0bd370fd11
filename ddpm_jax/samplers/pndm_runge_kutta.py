"""The pseudo Runge-Kutta start of PNDM: three intervals of four network evaluations each (Liu et al. 2022, Eq. 13)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.samplers.multistep import append, no_past, weighted_sum
from ddpm_jax.schedules import Array, Level

NUM_INTERVALS = 3
NUM_STEPS = 4 * NUM_INTERVALS


class Coefficients(NamedTuple):
    """One row per network evaluation, each [N]; `past` [N, 3].

        mean <- mean + weight eps
        x    <- x x_t + x0 x0 + eps eps + mean mean + sum_j past_j (eps_t of j + 1 intervals before)

    Attributes:
        level: The level at which the network is evaluated.
        first: Whether the evaluation is the first of its interval, at x_t; then mean starts at 0.
    """

    level: Level
    first: Array
    weight: Array
    x: Array
    x0: Array
    eps: Array
    mean: Array
    past: Array


def runge_kutta_start(plms: base.Sampler) -> base.Sampler:
    """PLMS with PNDM's start; phi(x, e, t, s) = alpha_s / alpha_t x + (sigma_s - alpha_s sigma_t / alpha_t) e.

        e1 = eps(x_t, t)          x1 = phi(x_t, e1, t, middle)
        e2 = eps(x1, middle)      x2 = phi(x_t, e2, t, middle)
        e3 = eps(x2, middle)      x3 = phi(x_t, e3, t, s)
        e4 = eps(x3, s)           x_s = phi(x_t, (e1 + 2 e2 + 2 e3 + e4) / 6, t, s)

    Each of the three intervals takes four steps of the grid. The multistep method later uses its e1.

    Args:
        plms: The multistep method for the other intervals, from `multistep` with three past values of eps.

    Returns:
        The Sampler, for grids from `grids.runge_kutta_start`.
    """

    def plan(levels: Level) -> Coefficients:
        base.check_num_steps(levels, NUM_STEPS + 1, "pndm with a Runge-Kutta start")
        check_grid(levels)
        levels = base.in_float64(levels)
        level, _ = base.endpoints(levels)
        xp = level.alpha.__array_namespace__()

        # phi from each interval's start to its middle, twice, and to its end, twice
        start = np.repeat(np.arange(NUM_INTERVALS) * 4, 4)
        end = start + np.tile([1, 1, 3, 3], NUM_INTERVALS)
        t, s = Level(*(a[start] for a in levels)), Level(*(a[end] for a in levels))
        phi_x = s.alpha / t.alpha
        phi_e = s.sigma - phi_x * t.sigma

        # the multistep method's coefficients for the intervals after these
        ends = np.append(np.arange(NUM_INTERVALS) * 4, np.arange(NUM_STEPS, len(levels.alpha)))
        rest = plms.plan(Level(*(a[ends] for a in levels)))
        rest = jax.tree.map(lambda a: a[NUM_INTERVALS:], rest)

        # every fourth evaluation steps by the mean of the four
        last = np.tile([False, False, False, True], NUM_INTERVALS)
        zero, zeros = xp.zeros(NUM_STEPS), xp.zeros(len(rest.x))
        return Coefficients(
            level,
            first=np.append(start == np.arange(NUM_STEPS), np.full(len(rest.x), True)),
            weight=xp.append(np.tile([1 / 6, 1 / 3, 1 / 3, 1 / 6], NUM_INTERVALS), zeros),
            x=xp.append(phi_x, rest.x),
            x0=xp.append(zero, rest.x0),
            eps=xp.append(xp.where(last, 0.0, phi_e), rest.eps),
            mean=xp.append(xp.where(last, phi_e, 0.0), zeros),
            past=xp.concatenate([xp.zeros((NUM_STEPS, 3)), rest.past]),
        )

    def init(x: jax.Array) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
        x_t, mean = no_past(x, 2)
        return x_t, mean, no_past(x, 3)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        x_t, mean, past = state
        denoised = denoise(x, c.level)
        # the interval's x_t, and the mean of its slopes so far
        x_t = jnp.where(c.first, x.astype(x_t.dtype), x_t)
        mean = jnp.where(c.first, 0.0, mean) + c.weight * denoised.eps
        # phi, or the multistep method
        x_s = c.x * x_t + c.x0 * denoised.x0 + c.eps * denoised.eps + c.mean * mean + weighted_sum(c.past, past)
        # keep the slope at x_t for the multistep method
        past = jax.tree.map(lambda new, old: jnp.where(c.first, new, old), append(denoised.eps, past), past)
        return x_s, (x_t, mean, past), denoised

    return base.Sampler(plan, init, step, plms.order)


def check_grid(levels: Level) -> None:
    """Raises ValueError unless a grid of known values starts with three Runge-Kutta steps, within pure noise and clean data."""
    if base.is_traced(levels):
        return
    alpha, sigma = np.asarray(levels.alpha), np.asarray(levels.sigma)
    start = slice(0, NUM_STEPS + 1)
    calls = alpha[:NUM_STEPS].reshape(NUM_INTERVALS, 4)
    joined = np.array_equal(alpha[4 : NUM_STEPS + 1 : 4], calls[:, 3])
    if not (joined and np.array_equal(calls[:, 1], calls[:, 2]) and np.all(alpha[start] > 0) and np.all(sigma[start] > 0)):
        raise ValueError(f"levels: pndm with a Runge-Kutta start expected a grid from grids.runge_kutta_start that starts "
                         f"below pure noise, received t = {levels.t[start]}")  # fmt: skip
