"""DPM-Solver++, multistep, and its SDE versions (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import math

import numpy as np

from ddpm_jax.samplers import base
from ddpm_jax.samplers.multistep import Coefficients, delayed, half_log_snr, multistep, orders
from ddpm_jax.schedules import Array, Level, safe_divide

VARIANTS = ("midpoint", "heun")
SECOND_DIFFERENCES = ("corrected", "published")


@base.picklable
def dpm_solver_pp(
    order: int = 2,
    variant: str = "midpoint",
    sde: bool = False,
    lower_order_final: bool = False,
    second_difference: str = "corrected",
) -> base.Sampler:
    """DPM-Solver++(1), (2M) and (3M): x0 as a polynomial in lambda = log(alpha / sigma) through its last values.

    From t to s (from s to t in the paper), with h = lambda_s - lambda_t, D0 = x0 at t, and D1, D2 estimates of h and h^2 times
    its first and second derivative,

        x_s = (sigma_s / sigma_t) x_t + alpha_s (psi1(h) D0 + psi2(h) D1 + psi3(h) D2)         (Proposition 4.1)
        psi1(h) = 1 - exp(-h),    psi2(h) = 1 - psi1(h) / h,    psi3(h) = 1 / 2 - psi2(h) / h

    SDE-DPM-Solver++ has psi_k(2 h) instead of psi_k(h) and exp(-h) x_t instead of x_t, and adds
    sigma_s sqrt(1 - exp(-2 h)) * noise; order 1 is ancestral sampling with the small variance.

    One network evaluation per step. Order 1 is DDIM. The first steps have the lower order that the steps before them allow,
    and steps to or from an infinite lambda have order 1. Grids are monotone, in either direction; for the SDE, towards the
    data.

    Args:
        order: 1, 2 or 3.
        variant: At order 2, "midpoint", with psi1 / 2 instead of psi2 as in Algorithm 2 of the paper, or "heun".
        sde: Whether to solve the SDE instead of the ODE.
        lower_order_final: Whether the last steps have orders ..., 2, 1, which is more stable with few steps.
        second_difference: D2 at order 3: "published", (D1_0 - D1_1) / (r0 + r1), as in the authors' code, which is half of
            h^2 times the second derivative and makes the method one of order 2; or "corrected", twice that.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown order, variant or second_difference.

    Example:
        Standard normal data, for which the optimal network predicts eps = sigma_t x_t, and the ODE's solution is constant.
        From x = 1, twenty steps of order 1 and of order 2 end at

        >>> import jax.numpy as jnp
        >>> from ddpm_jax import samplers, schedules
        >>> from ddpm_jax.denoiser import make_denoise
        >>> schedule = schedules.linear(1000)
        >>> denoise = make_denoise(schedule, lambda x_t, t: schedule.sigma[t][:, None] * x_t, clip=False)
        >>> levels, x_init = samplers.grids.spaced(schedule, 20, "trailing"), jnp.ones((1, 1))
        >>> for order in (1, 2):
        ...     x = samplers.sample(None, samplers.dpm_solver_pp(order), denoise, levels, (1, 1), x_init=x_init)
        ...     print(round(float(x[0, 0]), 2))
        0.91
        1.0
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, received {order}")
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, received {variant!r}")
    if second_difference not in SECOND_DIFFERENCES:
        raise ValueError(f"second_difference: expected one of {SECOND_DIFFERENCES}, received {second_difference!r}")
    method, rate = f"dpm_solver_pp of order {order}", 2 if sde else 1
    published = second_difference == "published"

    def plan(levels: Level) -> Coefficients:
        base.check_num_steps(levels, order, method)
        (base.check_decreasing if sde else base.check_monotone)(levels, method)
        t, s = base.endpoints(levels)
        xp = t.alpha.__array_namespace__()
        lam = half_log_snr(levels)
        h = lam[1:] - lam[:-1]

        # D0, D1 and D2, as weights [N, 3] of x0 at this step and at the two before; D1_0 is D1 from two values
        d0, d1_0, d1, half_d2 = differences(h)
        d2 = half_d2 if published else 2 * half_d2

        # psi1 D0 + psi2 D1 + psi3 D2, to the order that each step can have
        psi1, psi2, psi3 = (p[:, None] for p in psi(rate * h))
        first = psi1 * d0
        second = psi1 * d0 + (psi1 / 2 if variant == "midpoint" else psi2) * d1_0
        third = psi1 * d0 + psi2 * d1 + psi3 * d2
        reached = orders(levels, order, lower_order_final)[:, None]
        weights = xp.where(reached == 3, third, xp.where(reached == 2, second, first))

        # at the clean end x_t is x0, and x_s = alpha_s x0
        weights = s.alpha[:, None] * xp.where(t.sigma[:, None] > 0, weights, d0)
        x = safe_divide(s.sigma * xp.exp((1 - rate) * h), t.sigma)
        std = s.sigma * (-xp.expm1(-2 * h)) ** 0.5 if sde else 0 * h
        return Coefficients(t, x, x0=weights[:, 0], eps=0 * h, past=weights[:, 1:order], std=std)

    return multistep(plan, "x0", order - 1, order=min(order, 2) if published else order, stochastic=sde)


def psi(h: Array, num: int = 3) -> list[Array]:
    """psi_k(h) = h^(1 - k) int_0^h exp(u - h) u^(k - 1) / (k - 1)! du, for k = 1 to num: h times the psi_k of UniPC's paper."""
    xp = h.__array_namespace__()
    values = [-xp.expm1(-h)]
    for k in range(2, num + 1):
        values.append(1 / math.factorial(k - 1) - values[-1] / h)
    return values


def differences(h: Array) -> tuple[Array, Array, Array, Array]:
    """D0, D1_0, D1 and (D1_0 - D1_1) / (r0 + r1) as the authors' code has them, as weights [N, 3] of the last values of x0."""
    x0_t, x0_1, x0_2 = np.eye(3)[:, None]
    r0, r1 = (delayed(h)[:, None] / h[:, None], delayed(h, 2)[:, None] / h[:, None])
    d1_0 = (x0_t - x0_1) / r0
    d1_1 = (x0_1 - x0_2) / r1
    d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
    return x0_t, d1_0, d1, (d1_0 - d1_1) / (r0 + r1)
