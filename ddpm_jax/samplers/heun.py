"""Heun's method on the probability-flow ODE, with EDM's churn (Karras et al. 2022, arXiv 2206.00364, Algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.samplers.churn import Churn
from ddpm_jax.samplers.euler import Coefficients as EulerCoefficients
from ddpm_jax.samplers.euler import euler
from ddpm_jax.schedules import Array, HasLevels, Level, safe_divide


class Coefficients(NamedTuple):
    """Euler's; then x_s += change * (eps of Euler's x_s at level `far` - eps), each [N]."""

    euler: EulerCoefficients
    far: Level
    change: Array


@base.picklable
def heun(schedule: HasLevels | None = None, churn: Churn = Churn()) -> base.Sampler:  # noqa: B008
    """Algorithm 2 of the paper: Euler's step, then the mean of the slopes at its two ends.

        x_s = alpha_s x0 + sigma_s eps_t + alpha_s (rho_s - rho_t) (eps_s - eps_t) / 2,    rho = sigma / alpha

    Two network evaluations per step (NFE), of order 2: eps_s is predicted at Euler's x_s. Steps to sigma = 0, as in the paper,
    and from alpha = 0 are Euler's (their second evaluation is wasted). Without churn it is deterministic, and grids need not be
    monotone; with churn they go towards the data.

    Args:
        schedule: Needed with churn: gives the levels that it visits.
        churn: The noise added before each step; none by default.

    Returns:
        The Sampler.

    Raises:
        ValueError: churn with parameters out of range, or without a schedule.
    """
    euler_sampler = euler(schedule, churn)

    def plan(levels: Level) -> Coefficients:
        if churn.amount > 0:
            base.check_decreasing(levels, "heun with churn")
        c = euler_sampler.plan(levels)
        t, (_, s) = c.level, base.endpoints(levels)
        xp = s.alpha.__array_namespace__()

        # alpha_s (rho_s - rho_t) / 2; from the clean end, where x has no eps, the slope at s counts alone
        change = (s.sigma - s.alpha * safe_divide(t.sigma, t.alpha)) / 2
        change = xp.where(t.sigma > 0, change, s.sigma)

        # no correction from pure noise, nor at the clean end
        corrected = (t.alpha > 0) & (s.sigma > 0)
        far = Level(*(xp.where(corrected, a, b) for a, b in zip(s, t, strict=True)))
        return Coefficients(c, far, xp.where(corrected, change, 0.0))

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        # Euler step, after the churn
        x_s, _, denoised = euler_sampler.step(keys, denoise, x, state, c.euler)
        # 2nd-order correction
        at_s = denoise(jnp.asarray(x_s, x.dtype), c.far)
        return x_s + c.change * (at_s.eps - denoised.eps), state, denoised

    return base.Sampler(plan, lambda x: (), step, order=2, nfe=2)
