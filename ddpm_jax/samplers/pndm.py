"""PNDM and PLMS: classical integrators of eps around DDIM's step (Liu et al. 2022, arXiv 2202.09778)."""

from __future__ import annotations

import numpy as np

from ddpm_jax.samplers import base
from ddpm_jax.samplers.multistep import Coefficients, multistep, orders
from ddpm_jax.samplers.pndm_runge_kutta import runge_kutta_start
from ddpm_jax.schedules import Level, safe_divide

STARTS = ("multistep", "runge_kutta")
ADAMS_BASHFORTH = np.array(
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)


@base.picklable
def pndm(start: str = "multistep", lower_order_final: bool = False) -> base.Sampler:
    """PLMS, the linear multistep method of PNDM (Eqs. 11 and 12 of the paper).

        x_s = alpha_s / alpha_t x_t + (sigma_s - alpha_s sigma_t / alpha_t) e
        e   = (55 eps_t - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24

    where eps_j is the output j steps before. As in the paper, the weights are those of Adams and Bashforth for equal steps,
    whatever the grid's steps are, and so the method is of order 2; `deis` has the weights for the actual steps.

    One network evaluation per step. With "multistep" the first steps take Adams and Bashforth's weights of lower order. With
    "runge_kutta", PNDM's own start, the first three intervals are pseudo Runge-Kutta steps of four evaluations each
    (Eq. 13), on a grid from `grids.runge_kutta_start`. Grids are monotone, in either direction.

    Args:
        start: "multistep" or "runge_kutta".
        lower_order_final: Whether the last steps have orders ..., 2, 1, which is more stable with few steps.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown start.
    """
    if start not in STARTS:
        raise ValueError(f"start: expected one of {STARTS}, received {start!r}")

    def plan(levels: Level) -> Coefficients:
        base.check_num_steps(levels, 4, "pndm")
        base.check_monotone(levels, "pndm")
        t, s = base.endpoints(levels)
        xp = t.alpha.__array_namespace__()

        # e, as weights [N, 4] of eps_t, eps_1, eps_2 and eps_3
        e = xp.asarray(ADAMS_BASHFORTH)[orders(levels, 4, lower_order_final, end_too=True) - 1]

        # x_s = alpha_s x0 + sigma_s eps_t + transfer (e - eps_t): finite also at alpha_t = 0, where e = eps_t
        transfer = xp.where(t.alpha > 0, s.sigma - s.alpha * safe_divide(t.sigma, t.alpha), 0.0)[:, None]
        eps, past = s.sigma + (transfer * (e - np.eye(4)[:1]))[:, 0], transfer * e[:, 1:]
        zero = 0 * s.alpha
        return Coefficients(t, x=zero, x0=s.alpha, eps=eps, past=past, std=zero)

    plms = multistep(plan, "eps", num_past=3, order=2)
    return plms if start == "multistep" else runge_kutta_start(plms)
