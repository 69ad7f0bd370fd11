"""Noise levels, x_t = alpha x0 + sigma eps, and the protocol of noise schedules."""

from __future__ import annotations

from typing import NamedTuple, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments

Array = jax.Array | np.ndarray


class Level(NamedTuple):
    """One noise level (scalars or [B]), or a grid of them ([N + 1]).

    >>> import numpy as np
    >>> from ddpm_jax.schedules import Level
    >>> level = Level(t=np.array([0.0, 0.5]), alpha=np.array([1.0, 0.6]), sigma=np.array([0.0, 0.8]))
    >>> print(level.log_snr.round(3))
    [   inf -0.575]

    Attributes:
        t: The time passed to the network; 0 at the clean level.
        alpha: Signal scale, in [0, 1].
        sigma: Noise scale, in [0, 1].
    """

    t: Array
    alpha: Array
    sigma: Array

    @property
    def log_snr(self) -> Array:
        """log(alpha^2 / sigma^2): inf at the clean level, -inf at pure noise."""
        xp = self.alpha.__array_namespace__()
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha) - xp.log(self.sigma))


class HasLevels(Protocol):
    """A noise schedule, in discrete time (t = 0, 1, ..., T - 1) or in continuous time (t a real number in [0, 1])."""

    @property
    def num_steps(self) -> int | None:
        """T, or None in continuous time."""

    @property
    def last(self) -> float:
        """The t of most noise: T - 1, or 1 in continuous time."""

    def level(self, t: ArrayLike) -> Level:
        """The Level at time t, of any shape: NaN if t is out of range and traced, ValueError if it is concrete."""

    def level_at(self, log_snr: ArrayLike) -> Level:
        """The Level at which log(alpha^2 / sigma^2) is log_snr."""


def log_snr_range(schedule: HasLevels, cleanest: float = 1e-3) -> tuple[float, float]:
    """The smallest and the largest finite log_snr of a schedule: of its steps, or of t = 1 and t = cleanest.

    In continuous time without signal at t = 1, as on the path of flow matching, the smallest is that of t = 1 - cleanest.

    Args:
        schedule: In discrete or continuous time.
        cleanest: The time of the largest, in (0, 1/2), if time is continuous; 1/1000 is the first of 1,000 steps.

    Raises:
        TypeError: no schedule, or one whose values are traced.
    """
    arguments.check_schedule(schedule)
    with jax.ensure_compile_time_eval():  # concrete numbers, also inside a compiled function
        continuous = np.array([cleanest, 1 - cleanest, 1.0])
        level = schedule.level(continuous if schedule.num_steps is None else np.arange(schedule.num_steps))
    log_snr = Level(*(arguments.known("schedule", a).astype(np.float64) for a in level)).log_snr
    finite = log_snr[np.isfinite(log_snr)]
    return float(finite[-1]), float(finite[0])


def checked_time(t: ArrayLike) -> Array:
    """Real times [...] in [0, 1]; out of range, NaN if t is traced, and ValueError if it is concrete."""
    if isinstance(t, jax.core.Tracer):
        return jnp.where((t >= 0) & (t <= 1), t, jnp.nan)
    t = np.asarray(t, np.float64)
    if not np.all((t >= 0) & (t <= 1)):
        raise ValueError(f"t: expected 0 to 1, received {t}")
    return t


def signal_and_noise(log_snr: Array) -> tuple[Array, Array]:
    """alpha = sqrt(sigmoid(log_snr)) and sigma = sqrt(sigmoid(-log_snr)), 1 and 0 at inf; numpy if log_snr is numpy."""
    xp = log_snr.__array_namespace__()
    return xp.exp(-xp.logaddexp(0.0, -log_snr) / 2), xp.exp(-xp.logaddexp(0.0, log_snr) / 2)


@overload
def safe_divide(a: ArrayLike, b: jax.Array, otherwise: ArrayLike = 0.0) -> jax.Array: ...
@overload
def safe_divide(a: ArrayLike, b: Array, otherwise: ArrayLike = 0.0) -> Array: ...
def safe_divide(a: ArrayLike, b: Array, otherwise: ArrayLike = 0.0) -> Array:
    """a / b, or `otherwise` if b is 0; the gradient is finite there too."""
    xp = b.__array_namespace__()
    return xp.where(b != 0, a / xp.where(b != 0, b, 1.0), otherwise)


def lookup(table: jax.Array, t: jax.Array) -> jax.Array:
    """Reads table[t], or NaN if t lies outside the table (JAX's own indexing would clamp).

    Args:
        table: [T].
        t: Integers, of any shape.

    Returns:
        Values in the shape of t.
    """
    inside = (t >= 0) & (t < len(table))
    return jnp.where(inside, table[jnp.where(inside, t, 0)], jnp.nan)
