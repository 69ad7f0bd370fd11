"""Timestep grids: the noise levels that a sampler visits."""

from __future__ import annotations

import itertools

import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.schedules import HasLevels, Level, Schedule, checked_num_steps, require_discrete

SPACINGS = ("leading", "linspace", "trailing", "quadratic")

CONTINUOUS_STEPS = 100
"""Default number of steps in continuous time."""


def spaced(schedule: HasLevels, num_steps: int | None = None, spacing: str = "leading", clean: bool = True) -> Level:
    """Picks num_steps of the schedule's levels, noisiest first, and ends at the clean one.

    In discrete time, with T = 1000 and 10 steps:

        leading    900, 800, ..., 0       every (T // num_steps)-th from 0, as in DDIM's code
        linspace   999, 888, ..., 0       both ends, rounded
        trailing   999, 899, ..., 99      from the end; section 3.2 of Lin et al. 2023, arXiv 2305.08891
        quadratic  800, 632, ..., 0       (linspace from 0 to sqrt(0.8 T)) squared; appendix D.2 of Song et al. 2020

    "leading" starts at (num_steps - 1) (T // num_steps) and "quadratic" at 0.8 T: below T - 1, and with one step at 0.

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
        A Level of numpy arrays [N + 1]; with `clean`, the last is t = 0, alpha = 1, sigma = 0.

    Raises:
        ValueError: num_steps out of range, or an unknown spacing.

    Example:
        >>> from ddpm_jax import schedules
        >>> from ddpm_jax.samplers import grids
        >>> levels = grids.spaced(schedules.linear(1000), 5, "trailing")
        >>> levels.t.tolist()
        [999, 799, 599, 399, 199, 0]
        >>> levels.sigma.round(2).tolist()
        [1.0, 1.0, 0.99, 0.9, 0.58, 0.0]
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing: expected one of {SPACINGS}, received {spacing!r}")
    if schedule.num_steps is None:
        num_steps = CONTINUOUS_STEPS if num_steps is None else checked_num_steps(num_steps)
        real = np.arange(num_steps, 0 if clean else -1, -1) / num_steps
        return at(schedule, real**2 if spacing == "quadratic" else real, clean)
    total, most = schedule.num_steps, schedule.num_steps - (not clean)
    num_steps = most if num_steps is None else num_steps
    if not 1 <= num_steps <= most:
        raise ValueError(f"num_steps: expected 1 to {most}, the schedule's number of steps, received {num_steps}")
    num_steps += not clean
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
    return at(schedule, np.unique(t.astype(np.int32))[::-1], clean)


def at(schedule: HasLevels, t: np.ndarray, clean: bool = True) -> Level:
    """The grid of the given times, in their order, then the clean level.

    Args:
        schedule: The schedule, in discrete time (T steps) or in continuous time.
        t: The times [N], or [N + 1] without the clean level: integers in 0..T-1, or real numbers in [0, 1].
        clean: Whether the clean level comes last.

    Returns:
        A Level of numpy arrays [N + 1]; with `clean`, the last is t = 0, alpha = 1, sigma = 0.

    Raises:
        ValueError: t is empty (or a single time, without the clean level), not one-dimensional, or out of range.
        TypeError: non-integer t for a discrete schedule.
    """
    t = np.asarray(t)
    if t.ndim != 1 or len(t) < 2 - clean:
        raise ValueError(f"t: expected one dimension, at least {2 - clean} times, received shape {t.shape}")
    if schedule.num_steps is None:
        return _ending(Level(*map(np.asarray, schedule.level(t))), clean)
    last = schedule.last
    if not np.issubdtype(t.dtype, np.integer):
        raise TypeError(f"t: expected integers in 0..{last}, received {t.dtype}")
    if np.any((t < 0) | (t > last)):
        raise ValueError(f"t: expected integers in 0..{last}, received {t}")
    table = require_discrete(schedule, "integer times")
    return _ending(Level(t, np.asarray(table.alpha)[t], np.asarray(table.sigma)[t]), clean)


def at_log_snr(schedule: HasLevels, log_snr: ArrayLike, clean: bool = True) -> Level:
    """The grid of the given log(alpha^2 / sigma^2), in their order, then the clean level.

    Args:
        schedule: One with `level_at`, in discrete or continuous time.
        log_snr: Finite numbers [N]; [N + 1] without the clean level.
        clean: Whether the clean level comes last.

    Returns:
        A Level of numpy arrays [N + 1]; its t is fractional between a discrete schedule's steps.

    Raises:
        ValueError: log_snr is too short, not one-dimensional, not finite, or out of the schedule's range.
    """
    log_snr = np.asarray(log_snr, np.float64)
    if log_snr.ndim != 1 or len(log_snr) < 2 - clean or not np.all(np.isfinite(log_snr)):
        raise ValueError(f"log_snr: expected one dimension, at least {2 - clean} finite numbers, received {log_snr}")
    return _ending(Level(*map(np.asarray, schedule.level_at(log_snr))), clean)


def uniform_log_snr(
    schedule: HasLevels, num_steps: int, log_snr: tuple[float, float] | None = None, clean: bool = True
) -> Level:
    """Levels uniform in log(alpha^2 / sigma^2), as in DPM-Solver (Lu et al. 2022, arXiv 2206.00927).

    k-diffusion calls it exponential, since sigma / alpha falls by the same factor at each step.

    Args:
        schedule: One with `level_at`, in discrete or continuous time.
        num_steps: N, at least 1.
        log_snr: (noisiest, least noisy); by default the schedule's, if they are finite. `linear_vp` is clean at t = 0 and
            needs them.
        clean: Whether the last step goes from the least noisy level to the clean one, or to the least noisy one.

    Returns:
        A Level of numpy arrays [N + 1].

    Raises:
        ValueError: num_steps out of range, or log_snr missing, not rising, or out of the schedule's range.
    """
    return exponential(schedule, num_steps, 1.0, log_snr, clean)


def exponential(
    schedule: HasLevels, num_steps: int, power: float = 1.0, log_snr: tuple[float, float] | None = None, clean: bool = True
) -> Level:
    """Levels whose log(sigma / alpha) is a power of a ramp: k-diffusion's "polyexponential", "exponential" at power 1.

        log rho_i = log rho_min + (1 - i / M)^power (log rho_max - log rho_min),    rho = sigma / alpha,    i = 0..M

    Args:
        schedule, num_steps, log_snr, clean: Same as for `uniform_log_snr`.
        power: Above 0; above 1 puts more levels at low noise.

    Returns:
        A Level of numpy arrays [N + 1].

    Raises:
        ValueError: Same as `uniform_log_snr`, or a power of 0 or less.
    """
    if not 0 < power < np.inf:
        raise ValueError(f"power: expected a finite number above 0, received {power}")
    noisiest, cleanest = _range(schedule, log_snr)
    ramp = _ramp(num_steps, clean) ** power
    return at_log_snr(schedule, cleanest + ramp * (noisiest - cleanest), clean)


def karras(
    schedule: HasLevels, num_steps: int, rho: float = 7.0, log_snr: tuple[float, float] | None = None, clean: bool = True
) -> Level:
    """Eq. 5 of Karras et al. 2022 (arXiv 2206.00364), for sigma / alpha.

        sigma_i = (sigma_max^(1 / rho) + i / M (sigma_min^(1 / rho) - sigma_max^(1 / rho)))^rho,    i = 0..M

    Args:
        schedule, num_steps, log_snr, clean: Same as for `uniform_log_snr`; sigma_max and sigma_min are those of log_snr.
        rho: Above 0; the larger, the more levels at low noise. 7 is the paper's.

    Returns:
        A Level of numpy arrays [N + 1].

    Raises:
        ValueError: Same as `uniform_log_snr`, or a rho of 0 or less.
    """
    if not 0 < rho < np.inf:
        raise ValueError(f"rho: expected a finite number above 0, received {rho}")
    largest, smallest = (np.exp(-end / (2 * rho)) for end in _range(schedule, log_snr))
    ramp = _ramp(num_steps, clean)
    return at_log_snr(schedule, -2 * rho * np.log(smallest + ramp * (largest - smallest)), clean)


def reversed(levels: Level) -> Level:
    """The grid in reverse, from data to noise, for inversion."""
    return Level(*(np.asarray(a)[::-1] for a in levels))


def starting_at(levels: Level, strength: float) -> Level:
    """The last part of a grid, for SDEdit (Meng et al. 2021, arXiv 2108.01073): its last round(strength * N) steps.

    Args:
        levels: The grid [N + 1].
        strength: In [0, 1]: 1 returns the whole grid; 0 its last level alone, and so no step.

    Returns:
        A Level [round(strength * N) + 1].

    Raises:
        ValueError: strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 to 1, received {strength}")
    num_steps = len(levels.alpha) - 1
    first = num_steps - round(strength * num_steps)
    return Level(*(np.asarray(a)[first:] for a in levels))


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
        ValueError: jump_length or resamplings below 1.
    """
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
    order = num_levels - 1 - np.array([*visited, -1])
    return Level(*(np.asarray(a)[order] for a in levels))


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
        ValueError: fewer than two levels in the interval, or num_restarts below 0.
    """
    if num_restarts < 0:
        raise ValueError(f"num_restarts: expected at least 0, received {num_restarts}")
    t = np.asarray(levels.t)
    inside = np.flatnonzero((t_min <= t) & (t <= t_max) & (np.asarray(levels.sigma) > 0))
    if len(inside) < 2:
        raise ValueError(f"t_max, t_min: expected at least two levels of the grid between them, received {t_max}, {t_min}")
    order = np.concatenate([np.arange(inside[-1] + 1), *[inside] * num_restarts, np.arange(inside[-1] + 1, len(t))])
    return Level(*(np.asarray(a)[order] for a in levels))


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


def _ramp(num_steps: int, clean: bool) -> np.ndarray:
    """From 1 to 0, one number for each level before the clean one."""
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, received {num_steps}")
    return np.linspace(1, 0, num_steps + (not clean))


def _range(schedule: HasLevels, log_snr: tuple[float, float] | None) -> tuple[float, float]:
    """The noisiest and the least noisy log_snr; by default the schedule's own."""
    if log_snr is None:
        log_snr = _own_range(schedule)
        if not np.all(np.isfinite(log_snr)):
            raise ValueError(f"log_snr: expected (noisiest, least noisy) for a schedule whose own are {log_snr}, received None")
    if not -np.inf < log_snr[0] < log_snr[1] < np.inf:
        raise ValueError(f"log_snr: expected (noisiest, least noisy), finite and rising, received {log_snr}")
    return log_snr


def _own_range(schedule: HasLevels) -> tuple[float, float]:
    if schedule.num_steps is None:
        noisiest, cleanest = schedule.level(np.array([schedule.last, 0.0])).log_snr
    else:
        log_snr = require_discrete(schedule, "the range of its steps").log_snr
        noisiest, cleanest = log_snr[-1], log_snr[0]
    return float(noisiest), float(cleanest)


def _ending(levels: Level, clean: bool) -> Level:
    """The grid, with the clean level at its end if `clean`."""
    if not clean:
        return levels
    return Level(np.append(levels.t, 0), np.append(levels.alpha, 1.0), np.append(levels.sigma, 0.0))
