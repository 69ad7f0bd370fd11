"""Heun's method on the probability-flow ODE, with EDM's churn (Karras et al. 2022, arXiv 2206.00364, Algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base, multistep
from ddpm_jax.samplers.churn import Churn, checked, churned
from ddpm_jax.schedules import Array, HasLevels, Level


class Coefficients(NamedTuple):
    """As Euler's; x_s += change * (eps at `far` and Euler's x_s - eps at `level`), each [N]."""

    level: Level
    far: Level
    x_scale: Array
    std: Array
    x0_scale: Array
    eps_scale: Array
    change: Array


def heun(schedule: HasLevels | None = None, churn: Churn = Churn()) -> base.Sampler:  # noqa: B008
    """Algorithm 2 of the paper: Euler's step, then the mean of the slopes at its two ends.

        x_s = alpha_s x0 + sigma_s eps_t + alpha_s (rho_s - rho_t) (eps_s - eps_t) / 2,    rho = sigma / alpha

    Two network calls a step, of order 2; the step to sigma = 0 is Euler's, as in the paper, and so is one from alpha = 0
    (their second call is wasted). Without churn nothing is random and grids may go any way; with churn they go towards
    the data.

    Args:
        schedule: With churn, where the levels that it visits come from.
        churn: How much noise is added before each step; none by default.

    Returns:
        The Sampler.

    Raises:
        ValueError: parameters of churn out of range, or churn without a schedule.
    """
    checked(churn, schedule)

    def plan(levels: Level) -> Coefficients:
        if churn.amount > 0:
            base.check_decreasing(levels, "heun with churn")
        t, x_scale, std = churned(levels, churn, schedule)
        _, s = base.endpoints(levels)
        xp = multistep.namespace(s.alpha)
        two_slopes = (t.alpha > 0) & (s.sigma > 0)
        change = (s.sigma - s.alpha * t.sigma / xp.where(two_slopes, t.alpha, 1.0)) / 2
        change = xp.where(t.sigma > 0, change, s.sigma)  # x at the clean end has no eps: the far slope alone
        far = Level(*(xp.where(two_slopes, a, b) for a, b in zip(s, t, strict=True)))
        return Coefficients(t, far, x_scale, std, s.alpha, s.sigma, xp.where(two_slopes, change, 0.0))

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        if churn.amount > 0:
            x = jnp.asarray(c.x_scale * x + c.std * base.normal(keys, x.shape), x.dtype)
        denoised = denoise(x, c.level)
        x_s = c.x0_scale * denoised.x0 + c.eps_scale * denoised.eps
        far = denoise(jnp.asarray(x_s, x.dtype), c.far)
        return x_s + c.change * (far.eps - denoised.eps), state, denoised

    return base.Sampler(plan, lambda x: (), step)
