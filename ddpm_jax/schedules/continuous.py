"""Noise schedules in continuous time: log_snr = log(alpha^2 / sigma^2) as a falling function of t in [0, 1].

    alpha^2 = sigmoid(log_snr),    sigma^2 = sigmoid(-log_snr)                       (Kingma et al. 2021, arXiv 2107.00630)

A schedule matters only by the log_snr that it visits and how often; discrete schedules of one function of time, at any
number of steps, are discretizations of one process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.schedules.discrete import Schedule, checked_num_steps, from_log_snr
from ddpm_jax.schedules.level import Array, Level, checked_time, signal_and_noise


class ContinuousSchedule(NamedTuple):
    """A noise schedule for every time in [0, 1]; both functions map arrays of any shape, numpy to numpy and JAX to JAX.

    Attributes:
        log_snr: t -> log(alpha^2 / sigma^2), strictly falling.
        time: Its inverse.
    """

    log_snr: Callable[[Array], Array]
    time: Callable[[Array], Array]

    @property
    def num_steps(self) -> None:
        """None: continuous time has no steps."""
        return None

    @property
    def last(self) -> float:
        """1, the time of most noise."""
        return 1.0

    def level(self, t: ArrayLike) -> Level:
        """The noise level at a time.

        Args:
            t: Real numbers in [0, 1], of any shape.

        Returns:
            The Level, its arrays in the shape of t; its t, which is passed to the network, is the given one. All three are
            NaN if t is traced and outside [0, 1].

        Raises:
            ValueError: t is concrete and outside [0, 1].
        """
        t = checked_time(t)
        return Level(t, *signal_and_noise(t.__array_namespace__().asarray(self.log_snr(t))))

    def level_at(self, log_snr: ArrayLike) -> Level:
        """The noise level of a given signal-to-noise ratio.

        Args:
            log_snr: log(alpha^2 / sigma^2), of any shape, within those of times 0 to 1, or inf for clean data.

        Returns:
            The Level; its t is 0 at the clean level, and NaN if log_snr is traced and out of range.

        Raises:
            ValueError: log_snr is concrete and out of range.
        """
        known = not isinstance(log_snr, jax.core.Tracer)
        wanted: Array = np.asarray(log_snr, np.float64) if known else jnp.asarray(log_snr)
        xp = wanted.__array_namespace__()
        t = xp.where(wanted == np.inf, 0.0, self.time(wanted))
        inside = (t >= -1e-6) & (t <= 1 + 1e-6)  # up to rounding
        if known and not np.all(inside):
            raise ValueError(f"log_snr: expected those of times 0 to 1, or inf, received {wanted[~inside]}")
        return Level(xp.where(inside, xp.clip(t, 0, 1), np.nan), *signal_and_noise(wanted))

    def schedule(self, num_steps: int) -> Schedule:
        """The discrete schedule at times 1/T, 2/T, ..., 1.

        Args:
            num_steps: T, at least 1.

        Returns:
            The Schedule; its integer t is the time (t + 1) / T.

        Raises:
            ValueError: num_steps is below 1, or log_snr does not fall.
        """
        return from_log_snr(self.log_snr(np.arange(1, checked_num_steps(num_steps) + 1) / num_steps))


def linear_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> ContinuousSchedule:
    """The variance-preserving SDE of Song et al. 2020 (arXiv 2011.13456), appendix B: the limit of DDPM's linear betas.

        log alpha_bar = -beta_min t - (beta_max - beta_min) t^2 / 2

    Args:
        beta_min: Noise rate at t = 0, above 0. The discrete form has T betas from beta_min / T to beta_max / T.
        beta_max: Noise rate at t = 1, at least beta_min.

    Returns:
        The ContinuousSchedule.

    Raises:
        ValueError: rates out of range.
    """
    if not 0 < beta_min <= beta_max:
        raise ValueError(f"beta_min: expected 0 < beta_min <= beta_max, received {beta_min} and {beta_max}")
    rates = beta_min, beta_max - beta_min
    return ContinuousSchedule(functools.partial(_linear_vp_log_snr, *rates), functools.partial(_linear_vp_time, *rates))


def _linear_vp_log_snr(beta_min: float, slope: float, t: Array) -> Array:
    xp = t.__array_namespace__()
    noise = beta_min * t + slope / 2 * t**2  # -log alpha_bar
    with np.errstate(divide="ignore"):
        return -xp.log(xp.expm1(noise))


def _linear_vp_time(beta_min: float, slope: float, log_snr: Array) -> Array:
    xp = log_snr.__array_namespace__()
    noise = xp.logaddexp(0.0, -log_snr)
    return 2 * noise / (beta_min + xp.sqrt(beta_min**2 + 2 * slope * noise))  # no cancellation near t = 0


def cosine(log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> ContinuousSchedule:
    """alpha = cos(pi t / 2), restricted to a range of log_snr (Hoogeboom et al. 2023, arXiv 2301.11093, section 3.1).

        log_snr = -2 log tan(a + (b - a) t),    tan(a) = exp(-log_snr_max / 2),    tan(b) = exp(-log_snr_min / 2)

    Args:
        log_snr_min: log_snr at t = 1; may be -inf.
        log_snr_max: log_snr at t = 0, above log_snr_min; may be inf.

    Returns:
        The ContinuousSchedule.

    Raises:
        ValueError: an empty range.
    """
    if not log_snr_min < log_snr_max:
        raise ValueError(f"log_snr_min: expected below log_snr_max, received {log_snr_min} and {log_snr_max}")
    start, end = (float(np.arctan(np.exp(-bound / 2))) for bound in (log_snr_max, log_snr_min))
    rest = float(np.arctan(np.exp(log_snr_min / 2)))  # pi / 2 - end
    return ContinuousSchedule(functools.partial(_cosine_log_snr, start, end, rest), functools.partial(_cosine_time, start, end))


def _cosine_log_snr(start: float, end: float, rest: float, t: Array) -> Array:
    xp = t.__array_namespace__()
    noise, signal = start + (end - start) * t, rest + (end - start) * (1 - t)  # cos(noise) = sin(signal), exact near t = 1
    with np.errstate(divide="ignore"):
        return 2 * (xp.log(xp.sin(signal)) - xp.log(xp.sin(noise)))


def _cosine_time(start: float, end: float, log_snr: Array) -> Array:
    xp = log_snr.__array_namespace__()
    return (xp.arctan(xp.exp(-log_snr / 2)) - start) / (end - start)


def shifted(schedule: ContinuousSchedule, ratio: float) -> ContinuousSchedule:
    """Adds more noise for larger images, whose neighbouring pixels are redundant (Hoogeboom et al. 2023, section 3.1).

        log_snr_shifted(t) = log_snr(t) + 2 log(ratio)

    Args:
        schedule: A schedule for small images.
        ratio: Small size over large size, above 0; 64 / 256 to use a schedule for 64 x 64 at 256 x 256.

    Returns:
        The ContinuousSchedule.

    Raises:
        ValueError: ratio is not positive.
    """
    if not ratio > 0:
        raise ValueError(f"ratio: expected above 0, received {ratio}")
    shift = 2 * float(np.log(ratio))
    return ContinuousSchedule(
        functools.partial(_shifted_log_snr, schedule, shift), functools.partial(_shifted_time, schedule, shift)
    )


def _shifted_log_snr(schedule: ContinuousSchedule, shift: float, t: Array) -> Array:
    return schedule.log_snr(t) + shift


def _shifted_time(schedule: ContinuousSchedule, shift: float, log_snr: Array) -> Array:
    return schedule.time(log_snr - shift)
