"""Noise schedules in discrete time: the signal and noise scales of x_t.

    x_t = alpha x0 + sigma eps,    alpha = sqrt(alpha_bar),    sigma = sqrt(1 - alpha_bar)

t is an integer in 0..T-1; t = 0 is one step of noise (the paper's t minus 1). `alpha` and `sigma` are the signal and noise
scales; the per-step quantity that Ho et al. call alpha_t is written `1 - beta`.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments
from ddpm_jax.schedules.level import Array, HasLevels, Level, lookup, signal_and_noise


class Schedule(NamedTuple):
    """The tables of a discrete-time diffusion process, each [T].

    They are computed in float64 and stored in JAX's default precision: float32, or float64 under `jax_enable_x64`. Each is
    stored, because 1 - alpha_bar in float32 keeps four digits at t = 0, and `sigma` seven.

    Attributes:
        beta: Variance of the noise that step t adds, in (0, 1).
        alpha_bar: Product of 1 - beta over 0..t (Eq. 4, Ho et al. 2020).
        alpha: Signal scale sqrt(alpha_bar).
        sigma: Noise scale sqrt(1 - alpha_bar).
    """

    beta: jax.Array
    alpha_bar: jax.Array
    alpha: jax.Array
    sigma: jax.Array

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.beta)

    @property
    def last(self) -> int:
        """T - 1, the time of most noise."""
        return self.num_steps - 1

    def level(self, t: ArrayLike) -> Level:
        """Looks up the noise level at integer times.

        Args:
            t: Integers in 0..T-1, of any shape.

        Returns:
            The Level, its arrays in the shape of t. A t that is traced, as under `jit`, cannot be checked: outside 0..T-1
            it gives NaN, never a neighbour.

        Raises:
            TypeError: t is not an integer.
            ValueError: t is concrete and outside 0..T-1.

        >>> import numpy as np
        >>> from ddpm_jax import schedules
        >>> level = schedules.linear(1000).level(np.array([0, 999]))
        >>> print(np.asarray(level.alpha).round(3), np.asarray(level.sigma).round(3))
        [1.    0.006] [0.01 1.  ]
        """
        t = self.checked(t)
        return Level(t, lookup(self.alpha, t), lookup(self.sigma, t))

    @property
    def log_snr(self) -> np.ndarray:
        """log(alpha^2 / sigma^2) of every step, float64 [T], falling; -inf if alpha is 0. TypeError if it is traced."""
        alpha, sigma = (arguments.known("schedule", a).astype(np.float64) for a in (self.alpha, self.sigma))
        return np.asarray(Level(np.arange(self.num_steps), alpha, sigma).log_snr)

    def level_at(self, log_snr: ArrayLike) -> Level:
        """The level of a given signal-to-noise ratio, in general at a non-integer time.

        Time is interpolated linearly in log_snr, as in DPM-Solver (Lu et al. 2022, arXiv 2206.00927, appendix D.4); alpha
        and sigma are exact.

        Args:
            log_snr: log(alpha^2 / sigma^2), of any shape, within those of the schedule's steps, or inf for clean data.

        Returns:
            The Level; its t is 0 at the clean level, and NaN if log_snr is traced and out of range.

        Raises:
            ValueError: log_snr is concrete and out of range.
            TypeError: the schedule's values are traced.
        """
        table, known = self.log_snr, not isinstance(log_snr, jax.core.Tracer)
        wanted: Array = np.asarray(log_snr, np.float64) if known else jnp.asarray(log_snr)
        xp = wanted.__array_namespace__()
        slack = 1e-4  # a level's own log_snr, rounded, is within the range
        inside = (wanted >= table[-1] - slack) & (wanted <= table[0] + slack) | (wanted == np.inf)
        if known and not np.all(inside):
            raise ValueError(f"log_snr: expected {table[-1]:.6g} to {table[0]:.6g}, or inf, received {wanted[~inside]}")
        t = xp.interp(-wanted, xp.asarray(-table), xp.arange(self.num_steps, dtype=wanted.dtype))
        return Level(xp.where(inside, t, np.nan), *signal_and_noise(wanted))

    def checked(self, t: ArrayLike) -> jax.Array:
        """Returns t as an array, or raises TypeError and ValueError as `level` does."""
        t = jnp.asarray(t) if isinstance(t, list | tuple) else t
        if not jnp.issubdtype(jnp.result_type(t), jnp.integer):
            raise TypeError(f"t: expected integers in 0..{self.num_steps - 1}, received {jnp.result_type(t)}")
        if not isinstance(t, jax.core.Tracer) and np.any((np.asarray(t) < 0) | (np.asarray(t) >= self.num_steps)):
            raise ValueError(f"t: expected integers in 0..{self.num_steps - 1}, received {np.asarray(t)}")
        return jnp.asarray(t)


def from_betas(betas: ArrayLike) -> Schedule:
    """Builds a schedule from the variances of its steps.

    Args:
        betas: [T], each in (0, 1).

    Returns:
        The Schedule, with T steps.

    Raises:
        ValueError: betas is not one-dimensional, is empty, or has a value outside (0, 1).
        TypeError: betas is traced. Build the schedule outside of `jit` and `vmap`, which take schedules as arguments.
    """
    beta = arguments.known("betas", betas).astype(np.float64)
    if beta.ndim != 1 or len(beta) == 0:
        raise ValueError(f"betas: expected one dimension [T], received shape {beta.shape}")
    if not np.all((beta > 0) & (beta < 1)):
        raise ValueError(f"betas: expected values in (0, 1), received {beta.min()} to {beta.max()}")
    return _from_log_alpha_bar(np.cumsum(np.log1p(-beta)), beta)


def from_log_snr(log_snr: ArrayLike) -> Schedule:
    """Builds a schedule from the signal-to-noise ratios of its steps.

    Args:
        log_snr: log(alpha^2 / sigma^2) [T], strictly falling and finite; the last may be -inf, which leaves no signal.

    Returns:
        The Schedule, with T steps.

    Raises:
        ValueError: log_snr is not one-dimensional, is empty, or does not fall.
        TypeError: log_snr is traced.
    """
    log_snr = arguments.known("log_snr", log_snr).astype(np.float64)
    if log_snr.ndim != 1 or len(log_snr) == 0:
        raise ValueError(f"log_snr: expected one dimension [T], received shape {log_snr.shape}")
    if not (np.all(np.diff(log_snr) < 0) and np.all(np.isfinite(log_snr[:-1])) and log_snr[-1] < np.inf):
        raise ValueError(f"log_snr: expected finite values, each below the one before, received {log_snr}")
    log_alpha_bar = -np.logaddexp(0, -log_snr)
    return _from_log_alpha_bar(log_alpha_bar, -np.expm1(np.diff(log_alpha_bar, prepend=0)))


def _from_log_alpha_bar(log_alpha_bar: np.ndarray, beta: np.ndarray) -> Schedule:
    alpha_bar, alpha, sigma = np.exp(log_alpha_bar), np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))
    with jax.ensure_compile_time_eval():  # concrete tables, also inside a compiled function
        return Schedule(*map(jnp.asarray, (beta, alpha_bar, alpha, sigma)))


def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """The schedule of Ho et al. 2020, section 4: linearly increasing betas.

    Args:
        num_steps: T, at least 1.
        beta_start: beta at t = 0, in (0, 1).
        beta_end: beta at t = T - 1, in (0, 1).

    Returns:
        The Schedule.

    Raises:
        ValueError: num_steps is below 1 or a beta outside (0, 1).

    >>> from ddpm_jax import schedules
    >>> schedule = schedules.linear(1000)
    >>> schedule.num_steps, schedule.beta.shape
    (1000, (1000,))
    >>> print(f"{schedule.alpha_bar[-1]:.1e}")  # almost no signal left
    4.0e-05
    """
    return from_betas(np.linspace(beta_start, beta_end, checked_num_steps(num_steps), dtype=np.float64))


def quadratic(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas whose square roots increase linearly ("quad" in the code of Ho et al. 2020); arguments as for `linear`."""
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, checked_num_steps(num_steps), dtype=np.float64) ** 2)


def constant(num_steps: int = 1000, beta: float = 0.02) -> Schedule:
    """The same beta, in (0, 1), at every step ("const" in the code of Ho et al. 2020)."""
    return from_betas(np.full(checked_num_steps(num_steps), beta, np.float64))


def warmup(num_steps: int = 1000, fraction: float = 0.1, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas that increase linearly, then stay constant ("warmup10" and "warmup50" in the code of Ho et al. 2020).

    Args:
        num_steps: T, at least 1.
        fraction: Fraction of the steps over which beta increases, in [0, 1].
        beta_start: beta at t = 0, in (0, 1).
        beta_end: beta after the warm-up, in (0, 1).

    Returns:
        The Schedule.

    Raises:
        ValueError: num_steps is below 1, fraction outside [0, 1], or a beta outside (0, 1).
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected 0 to 1, received {fraction}")
    beta = np.full(checked_num_steps(num_steps), beta_end, np.float64)
    num_warmup = int(num_steps * fraction)
    beta[:num_warmup] = np.linspace(beta_start, beta_end, num_warmup)
    return from_betas(beta)


def jsd(num_steps: int = 1000) -> Schedule:
    """beta = 1/T, 1/(T - 1), ..., 1 (Sohl-Dickstein et al. 2015, arXiv 1503.03585, section 2.4.1): alpha_bar falls linearly.

    The last step leaves no signal: alpha is 0 there, and a prediction of eps or score carries no information about x0.

    Args:
        num_steps: T, at least 1.

    Returns:
        The Schedule.

    Raises:
        ValueError: num_steps is below 1.
    """
    steps = np.arange(checked_num_steps(num_steps), 0, -1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return _from_log_alpha_bar(np.log((steps - 1) / num_steps), 1 / steps)


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """The schedule of Nichol & Dhariwal 2021 (arXiv 2102.09672), Eq. 17: alpha_bar falls as a squared cosine.

        alpha_bar(u) proportional to cos((u + offset) / (1 + offset) * pi / 2)^2,    u in [0, 1]

    Args:
        num_steps: T, at least 1.
        offset: Keeps beta from being too small near t = 0; at least 0.
        max_beta: The largest beta, in (0, 1).

    Returns:
        The Schedule.

    Raises:
        ValueError: num_steps is below 1, or the betas leave (0, 1).
    """
    u = np.linspace(0, 1, checked_num_steps(num_steps) + 1, dtype=np.float64)
    return _capped(np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2, max_beta)


def sigmoid(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, temperature: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """The schedule of Jabri et al. 2022 (arXiv 2212.11972), algorithm 1: alpha_bar falls as a segment of a sigmoid.

        alpha_bar(u) proportional to sigmoid(end / temperature) - sigmoid((start + u (end - start)) / temperature)

    Args:
        num_steps: T, at least 1.
        start: Where the segment begins, below end.
        end: Where it ends.
        temperature: Above 0; lower values make the middle steeper.
        max_beta: The largest beta, in (0, 1).

    Returns:
        The Schedule.

    Raises:
        ValueError: num_steps is below 1, the segment does not rise, or the betas leave (0, 1).
    """
    if not (start < end and temperature > 0):
        raise ValueError(f"sigmoid: expected start < end and temperature > 0, received {start}, {end} and {temperature}")
    u = np.linspace(0, 1, checked_num_steps(num_steps) + 1, dtype=np.float64)
    height = 1 / (1 + np.exp(-(start + u * (end - start)) / temperature))
    return _capped((height[-1] - height) / (height[-1] - height[0]), max_beta)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shifts and scales alpha so that the last step leaves no signal, algorithm 1 of Lin et al. 2023 (arXiv 2305.08891).

    For networks that predict v or x0: at alpha = 0 a prediction of eps or score carries no information about x0.

    Args:
        schedule: The schedule, at least 2 steps.

    Returns:
        The Schedule; alpha is unchanged at t = 0, and 0 at T - 1.

    Raises:
        ValueError: the schedule has one step.
        TypeError: the schedule's values are traced.
    """
    if require_discrete(schedule, "zero terminal SNR").num_steps < 2:
        raise ValueError(f"schedule: expected at least 2 steps, received {schedule.num_steps}")
    beta = arguments.known("schedule", schedule.beta).astype(np.float64)
    with np.errstate(divide="ignore"):
        alpha = np.exp(np.cumsum(np.log1p(-beta)) / 2)  # more accurate than the stored alpha
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        beta = 1 - (alpha / np.append(1, alpha[:-1])) ** 2
        return _from_log_alpha_bar(2 * np.log(alpha), beta)


def require_discrete(schedule: HasLevels, purpose: str) -> Schedule:
    """Returns the schedule if it is in discrete time.

    Args:
        schedule: In discrete or continuous time.
        purpose: The quantity that continuous time leaves undefined, for the message.

    Returns:
        The schedule, as a Schedule.

    Raises:
        ValueError: the schedule is in continuous time.
        TypeError: it is no schedule.
    """
    arguments.check_schedule(schedule)
    if schedule.num_steps is None:
        raise ValueError(f"schedule: expected one with a number of steps for {purpose}, received one in continuous time")
    return cast(Schedule, schedule)


def checked_num_steps(num_steps: int) -> int:
    """Returns num_steps, or raises ValueError if it is below 1 and TypeError if it is no integer."""
    arguments.check_integer("num_steps", num_steps)
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, received {num_steps}")
    return num_steps


def _capped(alpha_bar: np.ndarray, max_beta: float) -> Schedule:
    """The schedule with the given alpha_bar [T + 1], which begins with 1, and betas capped at max_beta."""
    return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))
