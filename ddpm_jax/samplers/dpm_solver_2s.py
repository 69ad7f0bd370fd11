"""DPM-Solver++(2S), singlestep: a level between those of the grid (Lu et al. 2022, arXiv 2211.01095, Algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import arguments
from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.samplers.dpm_solver import VARIANTS, psi
from ddpm_jax.samplers.multistep import half_log_snr
from ddpm_jax.schedules import Array, HasLevels, Level, safe_divide


class Coefficients(NamedTuple):
    """x_u = middle_x * x_t + middle_x0 * x0_t;  x_s = x * x_t + x0 * x0_t + change * (x0_u - x0_t), each [N]."""

    level: Level
    middle: Level
    middle_x: Array
    middle_x0: Array
    x: Array
    x0: Array
    change: Array


@base.picklable
def dpm_solver_pp_2s(schedule: HasLevels, variant: str = "midpoint", ratio: float = 0.5) -> base.Sampler:
    """Order 2 without past outputs: x0 is evaluated a second time, at lambda_u = lambda_t + ratio h.

        x_u = (sigma_u / sigma_t) x_t + alpha_u psi1(ratio h) x0_t
        x_s = (sigma_s / sigma_t) x_t + alpha_s (psi1(h) x0_t + psi2(h) (x0_u - x0_t) / ratio)

    with psi_k as in `dpm_solver_pp`. Two network evaluations per step (NFE). Steps to or from an infinite lambda have order 1
    (and their second evaluation is wasted). Grids need not be monotone.

    Args:
        schedule: Its `level_at` gives the levels between the grid's.
        variant: "midpoint", with psi1 / 2 instead of psi2, or "heun".
        ratio: Position of u between t and s, in (0, 1).

    Returns:
        The Sampler.

    Raises:
        TypeError: no schedule.
        ValueError: an unknown variant, or a ratio out of range.
    """
    arguments.check_schedule(schedule)
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, received {variant!r}")
    if not 0 < ratio < 1:
        raise ValueError(f"ratio: expected above 0 and below 1, received {ratio}")

    def plan(levels: Level) -> Coefficients:
        base.check_distinct(levels, "dpm_solver_pp_2s")
        t, s = base.endpoints(levels)
        xp = t.alpha.__array_namespace__()
        lam = half_log_snr(levels)
        h = lam[1:] - lam[:-1]

        # u, if lambda is finite at both ends, else t
        finite = (t.alpha > 0) & (t.sigma > 0) & (s.alpha > 0) & (s.sigma > 0)
        inside = schedule.level_at(xp.where(finite, 2 * (lam[:-1] + ratio * h), 0.0))
        u = Level(*(xp.where(finite, a, b) for a, b in zip(inside, t, strict=True)))
        psi1_u = xp.where(finite, psi(ratio * h, 1)[0], 0.0)

        # order 2, if lambda is finite at both ends; at the clean end x_t is x0, and x_s = alpha_s x0
        psi1, psi2 = psi(h, 2)
        change = xp.where(finite, (psi1 / 2 if variant == "midpoint" else psi2) / ratio, 0.0)
        psi1 = xp.where(t.sigma > 0, psi1, 1.0)
        return Coefficients(
            t, u,
            middle_x=safe_divide(u.sigma, t.sigma), middle_x0=u.alpha * psi1_u,
            x=safe_divide(s.sigma, t.sigma), x0=s.alpha * psi1, change=s.alpha * change,
        )  # fmt: skip

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised = denoise(x, c.level)
        # x0 at u
        x_u = c.middle_x * x + c.middle_x0 * denoised.x0
        x0_u = denoise(jnp.asarray(x_u, x.dtype), c.middle).x0
        # x_s, from both
        x_s = c.x * x + c.x0 * denoised.x0 + c.change * (x0_u - denoised.x0)
        return x_s, state, denoised

    return base.Sampler(plan, lambda x: (), step, order=2, nfe=2)
