"""Euler's method on the probability-flow ODE, with EDM's churn (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.samplers.churn import Churn, checked, churned
from ddpm_jax.schedules import Array, HasLevels, Level


class Coefficients(NamedTuple):
    """x <- x_scale * x + std * noise;  x_s = x0_scale * x0 + eps_scale * eps, each [N]."""

    level: Level
    x_scale: Array
    std: Array
    x0_scale: Array
    eps_scale: Array


@base.picklable
def euler(schedule: HasLevels | None = None, churn: Churn = Churn()) -> base.Sampler:  # noqa: B008
    """Algorithm 2 of the paper without its correction (lines 9 to 11), in x / alpha and rho = sigma / alpha.

        x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) eps,    that is    x_s = alpha_s x0 + sigma_s eps

    One network evaluation per step. Without churn it is DDIM with eta = 0, deterministic, and grids need not be monotone; with
    churn they go towards the data.

    Args:
        schedule: Needed with churn: gives the levels that it visits.
        churn: The noise added before each step; none by default.

    Returns:
        The Sampler.

    Raises:
        ValueError: churn with parameters out of range, or without a schedule.
    """
    checked(churn, schedule)

    def plan(levels: Level) -> Coefficients:
        if churn.amount > 0:
            base.check_decreasing(levels, "euler with churn")
        level, x_scale, std = churned(levels, churn, schedule)
        _, s = base.endpoints(levels)
        return Coefficients(level, x_scale, std, x0_scale=s.alpha, eps_scale=s.sigma)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        # increase noise temporarily
        if churn.amount > 0:
            x = jnp.asarray(c.x_scale * x + c.std * base.normal(keys, x.shape), x.dtype)
        # Euler step
        denoised = denoise(x, c.level)
        return c.x0_scale * denoised.x0 + c.eps_scale * denoised.eps, state, denoised

    return base.Sampler(plan, lambda x: (), step)
