"""The straight path of flow matching, alpha = 1 - t and sigma = t, as a noise schedule in continuous time."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.schedules.level import Array, Level, checked_time


class FlowSchedule(NamedTuple):
    """The path x_t = (1 - t) x0 + t eps of rectified flow (Liu et al. 2022, arXiv 2209.03003), with SD3's shift.

    Like every schedule it matters by its levels alone; alpha^2 + sigma^2 is not 1.

    Attributes:
        shift: k of Esser et al. 2024 (arXiv 2403.03206), Eq. 23: time s is at t = k s / (1 + (k - 1) s) on the path.
    """

    shift: float = 1.0

    @property
    def num_steps(self) -> None:
        """None: continuous time has no steps."""
        return None

    @property
    def last(self) -> float:
        """1, the time of pure noise."""
        return 1.0

    def level(self, t: ArrayLike) -> Level:
        """The Level at time t in [0, 1], of any shape; out of range, NaN if t is traced, and ValueError if it is concrete."""
        t = checked_time(t)
        total = 1 + (self.shift - 1) * t
        return Level(t, (1 - t) / total, self.shift * t / total)

    def level_at(self, log_snr: ArrayLike) -> Level:
        """The Level at which log(alpha^2 / sigma^2) is log_snr, from -inf to inf."""
        wanted: Array = jnp.asarray(log_snr) if isinstance(log_snr, jax.core.Tracer) else np.asarray(log_snr, np.float64)
        xp = wanted.__array_namespace__()
        alpha, sigma = (xp.exp(-xp.logaddexp(0.0, sign * wanted / 2)) for sign in (-1, 1))
        return Level(sigma / (sigma + self.shift * alpha), alpha, sigma)


def flow(shift: float = 1.0) -> FlowSchedule:
    """alpha = 1 - t, sigma = t: rectified flow (Liu et al. 2022), SiT (Ma et al. 2024), SD3 (Esser et al. 2024).

    Args:
        shift: SD3's k, above 0: the larger, the more noise at a given time, for larger images. log_snr falls by 2 log k.

    Returns:
        The FlowSchedule.

    Raises:
        ValueError: shift is not a positive, finite number.

    >>> from ddpm_jax import schedules
    >>> [float(a) for a in schedules.flow().level(0.25)]
    [0.25, 0.75, 0.25]
    """
    if not 0 < shift < np.inf:
        raise ValueError(f"shift: expected a finite number above 0, received {shift}")
    return FlowSchedule(shift)
