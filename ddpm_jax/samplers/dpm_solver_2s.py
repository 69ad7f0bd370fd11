"""DPM-Solver++(2S), singlestep: a level between those of the grid (Lu et al. 2022, arXiv 2211.01095, Algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base, multistep
from ddpm_jax.samplers.dpm_solver import VARIANTS, psi
from ddpm_jax.schedules import Array, HasLevels, Level


class Coefficients(NamedTuple):
    """u = middle_x * x_t + middle_x0 * x0_t;  x_s = x * x_t + x0 * x0_t + change * (x0_u - x0_t), each [N]."""

    level: Level
    middle: Level
    middle_x: Array
    middle_x0: Array
    x: Array
    x0: Array
    change: Array


def dpm_solver_pp_2s(schedule: HasLevels, variant: str = "midpoint", ratio: float = 0.5) -> base.Sampler:
    """Order 2 without a history: x0 is looked at once more at lambda_u = lambda_t + ratio h.

        x_u = (sigma_u / sigma_t) x_t + alpha_u psi1(ratio h) x0_t
        x_s = (sigma_s / sigma_t) x_t + alpha_s (psi1(h) x0_t + psi2(h) (x0_u - x0_t) / ratio)

    with psi_k as in `dpm_solver_pp`. Two network calls a step. Steps to or from an infinite lambda are of order 1 (and
    their second call is wasted). Grids may go any way.

    Args:
        schedule: Where the levels between come from, by its `level_at`.
        variant: "midpoint", which puts psi1 / 2 for psi2, or "heun".
        ratio: Where between t and s, in (0, 1).

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown variant, or a ratio out of range.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, received {variant!r}")
    if not 0 < ratio < 1:
        raise ValueError(f"ratio: expected above 0 and below 1, received {ratio}")

    def plan(levels: Level) -> Coefficients:
        base.check_distinct(levels, "dpm_solver_pp_2s")
        t, s = base.endpoints(levels)
        lam = multistep.half_log_snr(levels)
        xp, h = multistep.namespace(lam), lam[1:] - lam[:-1]
        finite = (t.alpha > 0) & (t.sigma > 0) & (s.alpha > 0) & (s.sigma > 0)
        inside = schedule.level_at(xp.where(finite, 2 * (lam[:-1] + ratio * h), 0.0))
        u = Level(*(xp.where(finite, a, b) for a, b in zip(inside, t, strict=True)))
        noisy = t.sigma > 0
        psi1, psi2, _ = psi(xp, h)
        change = xp.where(finite, s.alpha * (psi1 / 2 if variant == "midpoint" else psi2) / ratio, 0.0)
        sigma_t = xp.where(noisy, t.sigma, 1.0)
        return Coefficients(
            t, u,
            middle_x=u.sigma / sigma_t,
            middle_x0=xp.where(finite, u.alpha * psi(xp, ratio * h)[0], 0.0),
            x=xp.where(noisy, s.sigma / sigma_t, 0.0),
            x0=s.alpha * xp.where(noisy, psi1, 1.0),
            change=change,
        )  # fmt: skip

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised = denoise(x, c.level)
        x_u = jnp.asarray(c.middle_x * x + c.middle_x0 * denoised.x0, x.dtype)
        change = denoise(x_u, c.middle).x0 - denoised.x0
        return c.x * x + c.x0 * denoised.x0 + c.change * change, state, denoised

    return base.Sampler(plan, lambda x: (), step)
