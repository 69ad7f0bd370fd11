"""DPM-Solver++, multistep, and its SDE versions (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddpm_jax.samplers import base, multistep
from ddpm_jax.schedules import Array, Level

VARIANTS = ("midpoint", "heun")
SECOND_DIFFERENCES = ("corrected", "published")


def dpm_solver_pp(
    order: int = 2,
    variant: str = "midpoint",
    sde: bool = False,
    lower_order_final: bool = False,
    second_difference: str = "corrected",
) -> base.Sampler:
    """DPM-Solver++(1), (2M) and (3M): x0 as a polynomial in lambda = log(alpha / sigma) through its last values.

    With h = lambda_s - lambda_t, D0 = x0 at t, and D1, D2 estimates of h and h^2 times its first and second derivative,

        x_s = (sigma_s / sigma_t) x_t + alpha_s (psi1(h) D0 + psi2(h) D1 + psi3(h) D2)         (Proposition 4.1)
        psi1(h) = 1 - exp(-h),    psi2(h) = 1 - psi1(h) / h,    psi3(h) = 1 / 2 - psi2(h) / h

    SDE-DPM-Solver++ has psi_k(2 h) in their place, exp(-h) x_t in that of x_t, and adds
    sigma_s sqrt(1 - exp(-2 h)) * noise; at order 1 it is ancestral sampling with the small variance.

    One network call a step. Order 1 is DDIM. The first steps, and those to or from an infinite lambda, are of the lower
    order that their history allows. Grids go one way, either way; for the SDE towards the data.

    Args:
        order: 1, 2 or 3.
        variant: At order 2, "midpoint", which puts psi1 / 2 for psi2 as Algorithm 2 of the paper does, or "heun".
        sde: Whether it is the SDE that is solved.
        lower_order_final: Whether the last steps are of order ..., 2, 1, which is steadier with few steps.
        second_difference: At order 3, what D2 is: "published", (D1_0 - D1_1) / (r0 + r1), as the authors' code has it,
            which is half of h^2 times the second derivative and makes a method of order 2; or "corrected", twice that.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown order, variant or second_difference.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, received {order}")
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, received {variant!r}")
    if second_difference not in SECOND_DIFFERENCES:
        raise ValueError(f"second_difference: expected one of {SECOND_DIFFERENCES}, received {second_difference!r}")
    method, rate = f"dpm_solver_pp of order {order}", 2 if sde else 1

    def plan(levels: Level) -> multistep.Coefficients:
        base.check_num_steps(levels, order, method)
        (base.check_decreasing if sde else base.check_monotone)(levels, method)
        t, s = base.endpoints(levels)
        lam = multistep.half_log_snr(levels)
        xp, h = multistep.namespace(lam), lam[1:] - lam[:-1]
        reached = multistep.orders(levels, order, lower_order_final)[:, None]
        psi1, psi2, psi3 = (p[:, None] for p in psi(xp, rate * h))
        first, d1, half_d2 = differences(xp, h)
        d2 = half_d2 if second_difference == "published" else 2 * half_d2
        noisy = t.sigma > 0  # at the clean end x is x0, and x_s = alpha_s x0
        weights = xp.where(noisy[:, None], psi1, 1.0) * np.eye(3)[:1]
        weights = weights + xp.where(reached == 2, (psi1 / 2 if variant == "midpoint" else psi2) * first, 0.0)
        weights = weights + xp.where(reached == 3, psi2 * d1 + psi3 * d2, 0.0)
        weights = s.alpha[:, None] * weights
        x_scale = xp.where(noisy, s.sigma * xp.exp((1 - rate) * h) / xp.where(noisy, t.sigma, 1.0), 0.0)
        std = s.sigma * (-xp.expm1(-2 * h)) ** 0.5 if sde else 0 * h
        return multistep.multistep(t, x_scale, weights[:, 1:order], weights[:, 0], 0 * h, "x0", std)

    return multistep.linear_method(plan, order - 1, stochastic=sde)


def psi(xp: Any, h: Array, num: int = 3) -> list[Array]:
    """psi_k(h) = integral of exp(u - h) u^(k - 1) / (k - 1)! over u from 0 to h, over h^(k - 1), for k = 1 to num."""
    values = [-xp.expm1(-h)]
    for k in range(2, num + 1):
        values.append(1 / math.factorial(k - 1) - values[-1] / h)
    return values


def differences(xp: Any, h: Array) -> tuple[Array, Array, Array]:
    """Derivatives of x0 in units of h, as weights [N, 3] of its values at this step and the two before.

    Returns:
        The first derivative from two values (D1_0 in the paper); and from three, the first (D1) and half the second.
    """
    before, two_before = multistep.delayed(h) / h, multistep.delayed(h, 2) / h
    d1_0 = np.array([[1.0, -1.0, 0.0]]) / before[:, None]
    d1_1 = np.array([[0.0, 1.0, -1.0]]) / two_before[:, None]
    half_d2 = (d1_0 - d1_1) / (before + two_before)[:, None]
    return d1_0, d1_0 + before[:, None] * half_d2, half_d2
