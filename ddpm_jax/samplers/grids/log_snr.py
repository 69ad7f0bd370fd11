"""Timestep grids at given values of log(alpha^2 / sigma^2), or spaced in it or in sigma / alpha."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments
from ddpm_jax.samplers.grids.times import ending
from ddpm_jax.schedules import HasLevels, Level, checked_num_steps, log_snr_range, require_discrete


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
        TypeError: schedule is no schedule; its values or log_snr are traced.
    """
    arguments.check_schedule(schedule)
    log_snr = arguments.known("log_snr", log_snr).astype(np.float64)
    if log_snr.ndim != 1 or len(log_snr) < 2 - clean or not np.all(np.isfinite(log_snr)):
        raise ValueError(f"log_snr: expected one dimension, at least {2 - clean} finite numbers, received {log_snr}")
    return ending(Level(*map(np.asarray, schedule.level_at(log_snr))), clean)


def uniform_log_snr(
    schedule: HasLevels, num_steps: int, log_snr: tuple[float, float] | None = None, clean: bool = True
) -> Level:
    """Levels uniform in log(alpha^2 / sigma^2), as in DPM-Solver (Lu et al. 2022, arXiv 2206.00927).

    k-diffusion calls it exponential, since sigma / alpha falls by the same factor at each step.

    Args:
        schedule: One with `level_at`, in discrete or continuous time.
        num_steps: N, at least 1.
        log_snr: (noisiest, least noisy); by default the schedule's, and instead of an infinite one that of
            `schedules.log_snr_range`: `linear_vp` and `flow` are clean at t = 0, and `flow` has no signal at t = 1.
        clean: Whether the last step goes from the least noisy level to the clean one, or to the least noisy one.

    Returns:
        A Level of numpy arrays [N + 1].

    Raises:
        ValueError: num_steps out of range, or log_snr not rising, not finite, or out of the schedule's range.
        TypeError: schedule is no schedule, or its values are traced; num_steps is no integer.
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


def _ramp(num_steps: int, clean: bool) -> np.ndarray:
    """From 1 to 0, one number for each level before the clean one."""
    return np.linspace(1, 0, checked_num_steps(num_steps) + (not clean))


def _range(schedule: HasLevels, log_snr: tuple[float, float] | None) -> tuple[float, float]:
    """The noisiest and the least noisy log_snr; by default the schedule's own, or the last finite ones."""
    if log_snr is None:
        ends = zip(_own_range(schedule), log_snr_range(schedule), strict=True)
        noisiest, cleanest = (own if np.isfinite(own) else finite for own, finite in ends)
        log_snr = noisiest, cleanest
    if not -np.inf < log_snr[0] < log_snr[1] < np.inf:
        raise ValueError(f"log_snr: expected (noisiest, least noisy), finite and rising, received {log_snr}")
    return log_snr


def _own_range(schedule: HasLevels) -> tuple[float, float]:
    arguments.check_schedule(schedule)
    if schedule.num_steps is None:
        noisiest, cleanest = schedule.level(np.array([schedule.last, 0.0])).log_snr
    else:
        log_snr = require_discrete(schedule, "the range of its steps").log_snr
        noisiest, cleanest = log_snr[-1], log_snr[0]
    return float(noisiest), float(cleanest)
