"""Churn: noise added before each step, which then removes it (Karras et al. 2022, arXiv 2206.00364, Algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddpm_jax import arguments
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, HasLevels, Level, safe_divide

MAX_GAMMA = 2**0.5 - 1


class Churn(NamedTuple):
    """The parameters of Algorithm 2; rho = sigma / alpha is the paper's sigma.

    Attributes:
        amount: S_churn, at least 0: rho grows by the factor 1 + min(amount / N, sqrt(2) - 1).
        low: S_tmin: no churn below this rho.
        high: S_tmax: no churn above this rho.
        noise: S_noise, the scale of the added noise, about 1.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = float("inf")
    noise: float = 1.0


def checked(churn: Churn, schedule: HasLevels | None) -> Churn:
    """Returns churn.

    Raises:
        TypeError: no Churn, or no schedule.
        ValueError: a negative amount, an empty range, or an amount without a schedule.
    """
    if not all(hasattr(churn, name) for name in Churn._fields):
        raise TypeError(f"churn: expected a Churn such as samplers.Churn(40.0), received {arguments.described(churn)}")
    if schedule is not None:
        arguments.check_schedule(schedule)
    if not 0 <= churn.amount < np.inf:
        raise ValueError(f"churn: expected a finite amount of at least 0, received {churn.amount}")
    if not 0 <= churn.low < churn.high or not 0 <= churn.noise < np.inf:
        raise ValueError(f"churn: expected 0 <= low < high and noise of at least 0, received {churn}")
    if churn.amount > 0 and schedule is None:
        raise ValueError("schedule: expected one for the levels between the grid's, received None")
    return churn


def churned(levels: Level, churn: Churn, schedule: HasLevels | None) -> tuple[Level, Array, Array]:
    """The noisier level that each step starts from, reached by x <- x_scale x + std * noise.

    Args:
        levels: The grid [N + 1].
        churn: The parameters.
        schedule: Gives the levels. Unlike in the paper, none is noisier than the grid's first, which may be the noisiest that
            the model knows.

    Returns:
        The Level [N], x_scale [N] and std [N].
    """
    t, _ = base.endpoints(levels)
    xp = t.alpha.__array_namespace__()
    if schedule is None or churn.amount == 0:
        return t, xp.ones_like(t.alpha), xp.zeros_like(t.alpha)

    # rho_hat = (1 + gamma) rho, if rho is in the range of churn; not from pure noise, whose rho is infinite
    rho = safe_divide(t.sigma, t.alpha)
    rho_max = xp.where(t.alpha[0] > 0, rho[0], np.inf)
    rho_hat = xp.minimum((1 + min(churn.amount / len(rho), MAX_GAMMA)) * rho, rho_max)
    moved = (rho > 0) & (rho >= churn.low) & (rho <= churn.high) & (rho_hat > rho)

    # x_hat / alpha_hat = x_t / alpha_t + S_noise sqrt(rho_hat^2 - rho^2) noise
    raised = schedule.level_at(-2 * xp.log(xp.where(moved, rho_hat, 1.0)))
    level = Level(*(xp.where(moved, a, b) for a, b in zip(raised, t, strict=True)))
    x_scale = xp.where(moved, safe_divide(level.alpha, t.alpha), 1.0)
    added = xp.where(moved, rho_hat**2 - rho**2, 0.0) ** 0.5
    return level, x_scale, churn.noise * xp.where(moved, level.alpha, 0.0) * added
