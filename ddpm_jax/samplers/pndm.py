"""PNDM and PLMS: classical integrators of eps around DDIM's step (Liu et al. 2022, arXiv 2202.09778)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_jax.samplers import base, multistep
from ddpm_jax.schedules import Array, Level

STARTS = ("multistep", "runge_kutta")
ADAMS_BASHFORTH = np.array(
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)
RUNGE_KUTTA_CALLS = 12  # three steps of four


def pndm(start: str = "multistep", lower_order_final: bool = False) -> base.Sampler:
    """PLMS, the linear multistep method of PNDM (Eqs. 11 and 12 of the paper).

        x_s = alpha_s / alpha_t x_t + (sigma_s - alpha_s sigma_t / alpha_t) e
        e   = (55 eps_t - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24

    where eps_j is that of j steps before. The weights are those of Adams and Bashforth for equal steps whatever the
    steps are, as the paper has it; `deis` has them for the steps as they are.

    One network call a step. With "multistep" the first steps take Adams and Bashforth's weights of lower order. With
    "runge_kutta", PNDM's own, the first three are pseudo Runge-Kutta steps of four calls each (Eq. 13), and the grid
    is one from `grids.runge_kutta_start`, which visits t, the middle twice, and s, for each of the three. Grids go one
    way, either way.

    Args:
        start: "multistep" or "runge_kutta".
        lower_order_final: Whether the last steps are of order ..., 2, 1, which is steadier with few steps.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown start.
    """
    if start not in STARTS:
        raise ValueError(f"start: expected one of {STARTS}, received {start!r}")

    def plan_multistep(levels: Level) -> multistep.Coefficients:
        base.check_num_steps(levels, 4, "pndm")
        base.check_monotone(levels, "pndm")
        t, s = base.endpoints(levels)
        xp = multistep.namespace(t.alpha)
        order = multistep.orders(levels, 4, lower_order_final, end_too=True)
        past = transfer(xp, t, s)[1][:, None] * xp.asarray(ADAMS_BASHFORTH)[order - 1, 1:]
        # DDIM's step, and multiples of eps_j - eps_t: finite also where alpha_t is 0
        return multistep.multistep(t, 0 * s.alpha, past, s.alpha, s.sigma - past.sum(1), "eps", 0 * s.alpha)

    def plan_runge_kutta(levels: Level) -> multistep.Coefficients:
        base.check_num_steps(levels, RUNGE_KUTTA_CALLS + 1, "pndm with a Runge-Kutta start")
        check_runge_kutta(levels)
        first, rest = runge_kutta(levels), plan_multistep_after(levels)
        xp = multistep.namespace(first)
        t, _ = base.endpoints(levels)
        matrix = xp.concatenate([first, rest])
        return multistep.Coefficients(t, matrix, xp.zeros(len(matrix)))

    def plan_multistep_after(levels: Level) -> Array:
        """Rows after the start; columns: x, x of the Runge-Kutta step, its mean eps, three eps before, x0, eps."""
        steps = Level(*(np.concatenate([a[: RUNGE_KUTTA_CALLS - 1 : 4], a[RUNGE_KUTTA_CALLS:]]) for a in levels))
        c = plan_multistep(steps).matrix[3:]
        xp = multistep.namespace(c)
        zero = xp.zeros_like(c[..., :1])
        wide = xp.concatenate([c[..., :1], zero, zero, c[..., 1:]], axis=-1)
        idle = xp.zeros_like(wide[:, :1])
        return xp.concatenate([wide[:, :1], idle, idle, wide[:, 1:]], axis=1)

    if start == "multistep":
        return multistep.linear_method(plan_multistep, 3)
    return multistep.linear_method(plan_runge_kutta, 5)


def transfer(xp: Any, t: Level, s: Level) -> tuple[Array, Array]:
    """DDIM's step from t to s as (multiple of x, multiple of eps); the latter 0 where alpha_t is 0."""
    signal = t.alpha > 0
    x = s.alpha / xp.where(signal, t.alpha, 1.0)
    return x, xp.where(signal, s.sigma - x * t.sigma, 0.0)


def check_runge_kutta(levels: Level) -> None:
    """Raises ValueError where a grid's first levels are not those of three Runge-Kutta steps, strictly between the ends."""
    alpha, sigma = np.asarray(levels.alpha), np.asarray(levels.sigma)
    start = slice(0, RUNGE_KUTTA_CALLS + 1)
    calls = alpha[:RUNGE_KUTTA_CALLS].reshape(3, 4)
    joined = np.array_equal(alpha[4 : RUNGE_KUTTA_CALLS + 1 : 4], calls[:, 3])
    if not (joined and np.array_equal(calls[:, 1], calls[:, 2]) and np.all(alpha[start] > 0) and np.all(sigma[start] > 0)):
        raise ValueError(f"levels: pndm with a Runge-Kutta start expected a grid from grids.runge_kutta_start that starts "
                         f"below pure noise, received t = {levels.t[start]}")  # fmt: skip


def runge_kutta(levels: Level) -> np.ndarray:
    """The rows of three pseudo Runge-Kutta steps, [12, 6, 8]; columns as in plan_multistep_after."""
    x, start, mean, *_, eps = np.eye(8)
    history = [eps, *np.eye(8)[3:5]]
    rows = []
    for i in range(0, RUNGE_KUTTA_CALLS, 4):
        t, middle, s = (Level(*(np.asarray(a, np.float64)[i + j] for a in levels)) for j in (0, 1, 3))
        (half_x, half_eps), (whole_x, whole_eps) = transfer(np, t, middle), transfer(np, t, s)
        rows += [
            [half_x * x + half_eps * eps, x, eps / 6, *history],
            [half_x * start + half_eps * eps, start, mean + eps / 3, *np.eye(8)[3:6]],
            [whole_x * start + whole_eps * eps, start, mean + eps / 3, *np.eye(8)[3:6]],
            [whole_x * start + whole_eps * (mean + eps / 6), start, mean, *np.eye(8)[3:6]],
        ]
    return np.array(rows)
