"""Timestep grids at given times, or evenly spaced ones."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np

from ddpm_jax import arguments
from ddpm_jax.schedules import HasLevels, Level, Schedule, checked_num_steps, require_discrete

SPACINGS = ("leading", "linspace", "trailing", "quadratic")
CONTINUOUS_STEPS = 100
"""Default number of steps in continuous time."""


def spaced(schedule: HasLevels, num_steps: int | None = None, spacing: str = "leading", clean: bool = True) -> Level:
    """Picks num_steps of the schedule's levels, noisiest first, and ends at the clean one.

    In discrete time, with T = 1000 and 10 steps:

        leading    900, 800, ..., 0       every (T // N)-th from 0, as in the code of DDIM and of diffusers
        linspace   999, 888, ..., 0       both ends, rounded
        trailing   999, 899, ..., 99      from the end; section 3.2 of Lin et al. 2023, arXiv 2305.08891
        quadratic  800, 632, ..., 0       (linspace from 0 to sqrt(0.8 T)) squared; appendix D.2 of Song et al. 2020

    "leading" starts at (N - 1) (T // N) and "quadratic" at 0.8 T: below T - 1, and with one step at 0. If N does not divide T,
    N times with the stride T // N may end far below T, as they do in diffusers, while DDIM's code takes more steps than N. If
    they end more than two strides below T (with T = 1000 never for N up to 31), "leading" is floor(i T / N), i = 0..N-1. The
    other spacings are spread over the whole range for every N, "linspace" as in iDDPM's code and "trailing" as in diffusers.
    "quadratic" visits each time once, where DDIM's code repeats some: fewer than N steps if N is large.

    In continuous time, with N steps:

        leading, linspace, trailing    1, 1 - 1/N, ..., 1/N    they differ only in the rounding to whole steps
        quadratic                      1, (1 - 1/N)^2, ..., 1/N^2

    Args:
        schedule: The schedule, in discrete time (T steps) or in continuous time.
        num_steps: In discrete time from 1 to T, T by default; times that coincide after rounding are visited once. In
            continuous time at least 1, and 100 by default.
        spacing: "leading", "linspace", "trailing" or "quadratic".
        clean: Whether the grid ends at the clean level. If not, it visits one more of the schedule's levels and ends at
            the least noisy of them. In discrete time num_steps is then at most T - 1, and "linspace" ends at t = 0, as in
            DPM-Solver's code; in continuous time every spacing does.

    Returns:
        A Level of numpy arrays [N + 1], traced if the schedule's values are; with `clean`, the last is t = 0, alpha = 1,
        sigma = 0.

    Raises:
        ValueError: num_steps out of range, or an unknown spacing.
        TypeError: schedule is no schedule, or num_steps no integer.

    Example:
        >>> from ddpm_jax import schedules
        >>> from ddpm_jax.samplers import grids
        >>> levels = grids.spaced(schedules.linear(1000), 5, "trailing")
        >>> levels.t.tolist()
        [999, 799, 599, 399, 199, 0]
        >>> levels.sigma.round(2).tolist()
        [1.0, 1.0, 0.99, 0.9, 0.58, 0.0]
    """
    arguments.check_schedule(schedule)
    if spacing not in SPACINGS:
        raise ValueError(f"spacing: expected one of {SPACINGS}, received {spacing!r}")
    if schedule.num_steps is None:
        num_steps = checked_num_steps(CONTINUOUS_STEPS if num_steps is None else num_steps)
        real = np.arange(num_steps, 0 if clean else -1, -1) / num_steps
        return at(schedule, real**2 if spacing == "quadratic" else real, clean)
    total, most = schedule.num_steps, schedule.num_steps - (not clean)
    num_steps = most if num_steps is None else num_steps
    arguments.check_integer("num_steps", num_steps)
    if not 1 <= num_steps <= most:
        raise ValueError(f"num_steps: expected 1 to {most}, the schedule's number of steps, received {num_steps}")
    num_steps += not clean
    t: np.ndarray
    match spacing:
        case "leading":
            stride, left = divmod(total, num_steps)
            t = np.arange(num_steps) * (stride if left <= stride else total / num_steps)
        case "linspace":
            t = np.linspace(total - 1, 0, num_steps).round()
        case "trailing":
            t = np.round(total - np.arange(num_steps) * (total / num_steps)) - 1
        case "quadratic":
            t = np.linspace(0, np.sqrt(0.8 * total), num_steps) ** 2
    return at(schedule, np.unique(t.astype(np.int32))[::-1], clean)


def at(schedule: HasLevels, t: np.ndarray, clean: bool = True) -> Level:
    """The grid of the given times, in their order, then the clean level.

    Args:
        schedule: The schedule, in discrete time (T steps) or in continuous time.
        t: The times [N], or [N + 1] without the clean level: integers in 0..T-1, or real numbers in [0, 1].
        clean: Whether the clean level comes last.

    Returns:
        A Level of numpy arrays [N + 1], traced if the schedule's values are; with `clean`, the last is t = 0, alpha = 1,
        sigma = 0.

    Raises:
        ValueError: t is empty (or a single time, without the clean level), not one-dimensional, or out of range.
        TypeError: schedule is no schedule; t is traced, or not an integer for a discrete schedule.
    """
    arguments.check_schedule(schedule)
    t = arguments.known("t", t)
    if t.ndim != 1 or len(t) < 2 - clean:
        raise ValueError(f"t: expected one dimension, at least {2 - clean} times, received shape {t.shape}")
    if schedule.num_steps is None:
        return ending(Level(*map(np.asarray, schedule.level(t))), clean)
    last = schedule.last
    if not np.issubdtype(t.dtype, np.integer):
        raise TypeError(f"t: expected integers in 0..{last}, received {t.dtype}")
    if np.any((t < 0) | (t > last)):
        raise ValueError(f"t: expected integers in 0..{last}, received {t}")
    table = require_discrete(schedule, "integer times")
    if arguments.is_traced(table.alpha, table.sigma):
        return ending(Level(t, table.alpha[t], table.sigma[t]), clean)
    return ending(Level(t, np.asarray(table.alpha)[t], np.asarray(table.sigma)[t]), clean)


def runge_kutta_start(schedule: Schedule, t: np.ndarray, clean: bool = True) -> Level:
    """The grid for `pndm(start="runge_kutta")`: each of the first three intervals visits t, its middle twice, and s.

    Args:
        schedule: The schedule, in discrete time, T steps.
        t: Decreasing integers [N], N at least 4; [N + 1] without the clean level.
        clean: Whether the clean level comes last.

    Returns:
        A Level of numpy arrays [N + 9 + 1].

    Raises:
        ValueError: Same as `at`; fewer than four times; or a schedule in continuous time.
    """
    schedule, t = require_discrete(schedule, "a Runge-Kutta start"), np.asarray(t)
    if t.ndim != 1 or len(t) < 4:
        raise ValueError(f"t: expected one dimension, at least 4 times, received shape {t.shape}")
    start = [[a, (a + b) // 2, (a + b) // 2, b] for a, b in itertools.pairwise(t[:4])]
    return at(schedule, np.concatenate([*start, t[3:]]), clean)


def ending(levels: Level, clean: bool) -> Level:
    """The grid, with the clean level at its end if `clean`."""
    if not clean:
        return levels
    append = jnp.append if arguments.is_traced(*levels) else np.append
    return Level(np.append(levels.t, 0), append(levels.alpha, 1.0), append(levels.sigma, 0.0))
