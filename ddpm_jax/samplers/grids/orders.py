"""Grids that visit the levels of another in another order."""

from __future__ import annotations

import numpy as np

from ddpm_jax import arguments
from ddpm_jax.schedules import Level


def reversed(levels: Level) -> Level:
    """The grid in reverse, from data to noise, for inversion; TypeError or ValueError if levels are no grid."""
    arguments.check_grid(levels)
    return _visiting(levels, slice(None, None, -1))


def starting_at(levels: Level, strength: float) -> Level:
    """The last part of a grid, for SDEdit (Meng et al. 2021, arXiv 2108.01073): its last round(strength * N) steps.

    Args:
        levels: The grid [N + 1].
        strength: In [0, 1]: 1 returns the whole grid; 0 its last level alone, and so no step.

    Returns:
        A Level [round(strength * N) + 1].

    Raises:
        ValueError: strength outside [0, 1], or levels are no grid.
        TypeError: levels are no Level.
    """
    arguments.check_grid(levels)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 to 1, received {strength}")
    num_steps = len(levels.alpha) - 1
    first = num_steps - round(strength * num_steps)
    return _visiting(levels, slice(first, None))


def back_and_forth(levels: Level, jump_length: int = 10, resamplings: int = 10) -> Level:
    """RePaint's grid: each stretch of jump_length steps is taken several times (Lugmayr et al. 2022, arXiv 2201.09865).

    The steps that lead to position j, 2 j, ... from the end are each followed by a jump back of j = jump_length steps,
    resamplings - 1 times. (The authors' code jumps back one step at a time; a single jump has the same distribution.)

    Args:
        levels: The grid [N + 1], towards the data.
        jump_length: j, at least 1.
        resamplings: How often each stretch is taken, at least 1; 1 returns the grid.

    Returns:
        A non-monotone Level, for `samplers.repaint` or `samplers.restart`.

    Raises:
        ValueError: jump_length or resamplings below 1, or levels are no grid.
        TypeError: levels are no Level.
    """
    arguments.check_grid(levels)
    if jump_length < 1 or resamplings < 1:
        raise ValueError(f"jump_length, resamplings: expected at least 1, received {jump_length}, {resamplings}")
    num_levels = len(levels.alpha) - 1  # without the last, from which no step starts
    left = dict.fromkeys(range(0, num_levels - jump_length, jump_length), resamplings - 1)
    visited, position = [], num_levels
    while position > 0:
        position -= 1
        visited.append(position)
        if left.get(position, 0) > 0:
            left[position] -= 1
            position += jump_length
            visited.append(position)
    return _visiting(levels, num_levels - 1 - np.array([*visited, -1]))


def restart(levels: Level, t_max: float, t_min: float, num_restarts: int = 1) -> Level:
    """Restart sampling's grid: an interval of times is traversed several times (Xu et al. 2023, arXiv 2306.14878).

    From the last level in the interval the grid jumps back to the first in it, num_restarts times.

    Args:
        levels: The grid [N + 1], towards the data.
        t_max, t_min: The ends of the interval; it has at least two levels of the grid, the clean level not counted.
        num_restarts: K in the paper, at least 0; 0 returns the grid.

    Returns:
        A non-monotone Level, for `samplers.restart`.

    Raises:
        ValueError: fewer than two levels in the interval, num_restarts below 0, or levels are no grid.
        TypeError: levels are no Level, or traced.
    """
    arguments.check_grid(levels)
    if num_restarts < 0:
        raise ValueError(f"num_restarts: expected at least 0, received {num_restarts}")
    t, sigma = arguments.known("levels", levels.t), arguments.known("levels", levels.sigma)
    inside = np.flatnonzero((t_min <= t) & (t <= t_max) & (sigma > 0))
    if len(inside) < 2:
        raise ValueError(f"t_max, t_min: expected at least two levels of the grid between them, received {t_max}, {t_min}")
    order = np.concatenate([np.arange(inside[-1] + 1), *[inside] * num_restarts, np.arange(inside[-1] + 1, len(t))])
    return _visiting(levels, order)


def _visiting(levels: Level, order: np.ndarray | slice) -> Level:
    """The levels of a grid in another order; numpy arrays, or traced if the levels are."""
    return Level(*(a[order] if arguments.is_traced(a) else np.asarray(a)[order] for a in levels))
