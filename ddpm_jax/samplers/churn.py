"""Churn: noise added before a step, that the step then removes (Karras et al. 2022, arXiv 2206.00364, Algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddpm_jax.samplers import base, multistep
from ddpm_jax.schedules import Array, HasLevels, Level

MAX_GAIN = 2**0.5 - 1


class Churn(NamedTuple):
    """The parameters of Algorithm 2; rho = sigma / alpha is what the paper calls sigma.

    Attributes:
        amount: S_churn, at least 0: the noise grows by the factor 1 + min(amount / N, sqrt(2) - 1); 0 for none.
        low: S_tmin: below this rho there is none.
        high: S_tmax: above this rho there is none.
        noise: S_noise, the scale of the noise that is added, about 1.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = float("inf")
    noise: float = 1.0


def checked(churn: Churn, schedule: HasLevels | None) -> Churn:
    """Returns churn, or raises ValueError: a negative amount, an empty range, or an amount without a schedule."""
    if not 0 <= churn.amount < np.inf:
        raise ValueError(f"churn: expected a finite amount of at least 0, received {churn.amount}")
    if not 0 <= churn.low < churn.high or churn.noise < 0:
        raise ValueError(f"churn: expected 0 <= low < high and noise of at least 0, received {churn}")
    if churn.amount > 0 and schedule is None:
        raise ValueError("schedule: expected one, where the levels between the grid's come from, received None")
    return churn


def churned(levels: Level, churn: Churn, schedule: HasLevels | None) -> tuple[Level, Array, Array]:
    """Where each step goes first: x <- x_scale x + std * noise, at a noisier level.

    Args:
        levels: The grid [N + 1].
        churn: The parameters.
        schedule: Where the levels come from; none noisier than the grid's first is visited, which a model may not know.

    Returns:
        The Level [N], x_scale [N] and std [N].
    """
    t, _ = base.endpoints(levels)
    xp = multistep.namespace(t.alpha)
    if schedule is None or churn.amount == 0:
        return t, xp.ones_like(t.alpha), xp.zeros_like(t.alpha)
    signal = t.alpha > 0
    rho = t.sigma / xp.where(signal, t.alpha, 1.0)
    first = xp.where(signal[0], rho[0], np.inf)
    moved = signal & (rho > 0) & (rho >= churn.low) & (rho <= churn.high)
    higher = xp.minimum((1 + min(churn.amount / len(rho), MAX_GAIN)) * rho, first)
    moved = moved & (higher > rho)
    raised = schedule.level_at(-2 * xp.log(xp.where(moved, higher, 1.0)))
    level = Level(*(xp.where(moved, a, b) for a, b in zip(raised, t, strict=True)))
    x_scale = xp.where(moved, level.alpha / xp.where(signal, t.alpha, 1.0), 1.0)
    added = xp.where(moved, higher**2 - rho**2, 0.0)
    return level, x_scale, churn.noise * xp.where(moved, level.alpha, 0.0) * added**0.5
