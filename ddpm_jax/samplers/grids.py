"""Grids: which noise levels a sampler visits."""

from __future__ import annotations

import numpy as np

from ddpm_jax.schedules import Level, Schedule

SPACINGS = ("leading", "linspace", "trailing", "quadratic")


def spaced(schedule: Schedule, num_steps: int | None = None, spacing: str = "leading") -> Level:
    """Picks num_steps of the schedule's T levels, noisiest first, and ends at the clean one.

    With T = 1000 and 10 steps:

        leading    900, 800, ..., 0       every (T // num_steps)-th from 0 on, as DDIM's code does
        linspace   999, 888, ..., 0       both ends, rounded
        trailing   999, 899, ..., 99      from the end; section 3.2 of Lin et al. 2023, arXiv 2305.08891
        quadratic  800, 632, ..., 0       (linspace from 0 to sqrt(0.8 T)) squared; appendix D.2 of Song et al. 2020

    "leading" starts at (num_steps - 1) (T // num_steps) and "quadratic" at 0.8 T: below T - 1, and with one step at 0.

    Args:
        schedule: The schedule, T steps.
        num_steps: From 1 to T; all T by default. Times that fall together after rounding are visited once.
        spacing: "leading", "linspace", "trailing" or "quadratic".

    Returns:
        A Level of numpy arrays [N + 1]; the last is t = 0, alpha = 1, sigma = 0.

    Raises:
        ValueError: num_steps outside 1..T, or an unknown spacing.
    """
    total = schedule.num_steps
    num_steps = total if num_steps is None else num_steps
    if not 1 <= num_steps <= total:
        raise ValueError(f"num_steps: expected 1 to {total}, the schedule's number of steps, received {num_steps}")
    t: np.ndarray
    match spacing:
        case "leading":
            t = np.arange(num_steps) * (total // num_steps)
        case "linspace":
            t = np.linspace(total - 1, 0, num_steps).round()
        case "trailing":
            t = np.round(total - np.arange(num_steps) * (total / num_steps)) - 1
        case "quadratic":
            t = np.linspace(0, np.sqrt(0.8 * total), num_steps) ** 2
        case _:
            raise ValueError(f"spacing: expected one of {SPACINGS}, received {spacing!r}")
    return at(schedule, np.unique(t.astype(np.int32))[::-1])


def at(schedule: Schedule, t: np.ndarray) -> Level:
    """The grid that visits the given times in their order, then the clean level.

    Args:
        schedule: The schedule, T steps.
        t: Integers [N] in 0..T-1.

    Returns:
        A Level of numpy arrays [N + 1]; the last is t = 0, alpha = 1, sigma = 0.

    Raises:
        ValueError: t is empty, not one-dimensional, or leaves 0..T-1.
        TypeError: t is not of integers.
    """
    t = np.asarray(t)
    if t.ndim != 1 or len(t) == 0:
        raise ValueError(f"t: expected one dimension [N], N at least 1, received shape {t.shape}")
    schedule.checked(t)
    alpha, sigma = np.asarray(schedule.alpha)[t], np.asarray(schedule.sigma)[t]
    return Level(np.append(t, 0), np.append(alpha, 1.0), np.append(sigma, 0.0))
