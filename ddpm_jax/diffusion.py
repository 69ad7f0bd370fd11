"""The forward process and the prediction parameterizations.

Notation, here and everywhere:

    x_t = alpha x0 + sigma eps          x0 in [-1, 1], eps ~ N(0, I), alpha^2 = alpha_bar  (Eq. 4, Ho et al. 2020)
    v = alpha eps - sigma x0                                                  (appendix D, Salimans & Ho 2022)
    u = eps - x0, "flow"                             (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747)
    score = grad log q(x_t | x0) = -eps / sigma                               (Eq. 151, Luo 2022, arXiv 2208.11970)
    log_snr = log(alpha^2 / sigma^2)                                          (Kingma et al. 2021, arXiv 2107.00630)

Given x_t, any one of x0, eps, v, u and score determines the others, and so does the mean of q(x_{t-1} | x_t, x0). Except for
the mean, alpha^2 + sigma^2 need not be 1. Arrays are [B, ...], of any rank; a Level's alpha and sigma are scalars or [B].

In continuous time (Eqs. 5, 6 and 13, Song et al. 2020, arXiv 2011.13456), with score = grad log q(x_t) = E[-eps | x_t] / sigma:

    forward SDE               dx = f x dt + g dw                      f = dlog alpha / dt,  g^2 = -sigma^2 dlog_snr / dt
    reverse SDE               dx = (f x - g^2 score) dt + g dw        from t = 1 to 0
    probability-flow ODE      dx = (f x - g^2 score / 2) dt           the same densities q(x_t), without noise
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax import arguments
from ddpm_jax.schedules import HasLevels, Level, Schedule, lookup, require_discrete, safe_divide

PREDICTIONS = ("eps", "x0", "v", "score", "mean", "flow")


class Gaussian(NamedTuple):
    """A normal distribution with independent dimensions.

    Attributes:
        mean: [B, ...].
        variance: [B, 1, ...]; broadcasts against the mean.
        log_variance: [B, 1, ...].
    """

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array


def expand(a: ArrayLike, x: jax.Array) -> jax.Array:
    """Gives per-example numbers the rank of the data: [B] -> [B, 1, ...]; a scalar stays one."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim)) if a.ndim else a


def q_sample(schedule: HasLevels, x0: jax.Array, t: ArrayLike, noise: jax.Array) -> jax.Array:
    """Adds noise to data: samples q(x_t | x0), Eq. 4 of Ho et al. 2020.

    Args:
        schedule: The noise schedule, in discrete time (T steps) or in continuous time.
        x0: Clean data [B, ...], in [-1, 1].
        t: The times, [B] or a scalar: integers in 0..T-1, or real numbers in [0, 1] in continuous time.
        noise: Standard normal, in the shape of x0.

    Returns:
        x_t [B, ...], in the dtype of x0; NaN if a traced t is out of range.

    Raises:
        TypeError: a discrete schedule's t is not an integer, or x0 is not floating-point.
        ValueError: noise has another shape than x0, or t another than [B]; a concrete t is out of range.

    >>> import numpy as np, jax.numpy as jnp
    >>> from ddpm_jax import diffusion, schedules
    >>> x0, noise = jnp.ones((2, 4)), jnp.zeros((2, 4))
    >>> x_t = diffusion.q_sample(schedules.linear(1000), x0, np.array([0, 999]), noise)
    >>> print(np.asarray(x_t[:, 0]).round(3))  # alpha
    [1.    0.006]
    """
    arguments.check_schedule(schedule)
    arguments.check_x0(x0)
    arguments.check_shape("noise", noise, x0.shape, "the shape of x0")
    arguments.check_per_example("t", t, len(x0))
    return add_noise(schedule.level(t), x0, noise)


def add_noise(level: Level, x0: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t = alpha x0 + sigma eps, [B, ...], in the dtype of x0; TypeError if x0 is not floating-point."""
    arguments.check_x0(x0)
    return (expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps).astype(x0.dtype)


def q_posterior(schedule: Schedule, x0: jax.Array, x_t: jax.Array, t: ArrayLike) -> Gaussian:
    """The forward process's posterior q(x_{t-1} | x_t, x0), Eqs. 6 and 7 of Ho et al. 2020.

    Args:
        schedule: The noise schedule, T steps.
        x0: Clean data [B, ...].
        x_t: Noisy data [B, ...].
        t: Integers in 0..T-1, [B] or a scalar. At t = 0 the posterior is the point x0.

    Returns:
        The Gaussian. Its log_variance at t = 0 would be -inf and is replaced by that at t = 1, as in the authors' code.

    Raises:
        TypeError: t is not an integer, or x0 or x_t is not floating-point.
        ValueError: a concrete t lies outside 0..T-1; T is 1, so that there is no t = 1; time is continuous; x_t has another
            shape than x0, or t another than [B].

    >>> import numpy as np, jax.numpy as jnp
    >>> from ddpm_jax import diffusion, schedules
    >>> x0, x_t, t = jnp.ones((2, 4)), jnp.zeros((2, 4)), np.array([0, 10])
    >>> posterior = diffusion.q_posterior(schedules.linear(1000), x0, x_t, t)
    >>> posterior.mean.shape, posterior.variance.shape
    ((2, 4), (2, 1))
    >>> print(np.asarray(posterior.mean[:, 0]).round(2))  # the coefficient of x0
    [1.   0.14]
    """
    arguments.check_x0(x0)
    arguments.check_floating("x_t", x_t)
    arguments.check_shape("x_t", x_t, x0.shape, "the shape of x0")
    arguments.check_per_example("t", t, len(x0))
    x0_scale, x_scale = posterior_scales(schedule, t)
    mean = expand(x0_scale, x0) * x0 + expand(x_scale, x0) * x_t

    # beta_tilde = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), 0 at t = 0.
    t = schedule.checked(t)
    variance = lookup(schedule.beta, t) * jnp.where(t == 0, 0.0, _noise_ratio(schedule, t))
    log_variance, _ = log_variance_range(schedule, t)
    return Gaussian(mean, expand(variance, x0), expand(log_variance, x0))


def posterior_scales(schedule: Schedule, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Coefficients of x0 and x_t in the mean of q(x_{t-1} | x_t, x0), Eq. 7 of Ho et al. 2020.

        x0_scale = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t)
        x_scale = sqrt(1 - beta_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)

    Args:
        schedule: The noise schedule, T >= 2 steps.
        t: Integers in 0..T-1, of any shape.

    Returns:
        The coefficients of x0 and x_t, each in the shape of t; 1 and 0 at t = 0.

    Raises:
        TypeError: t is not an integer.
        ValueError: a concrete t lies outside 0..T-1, T is 1, or time is continuous.
    """
    if require_discrete(schedule, "q(x_{t-1} | x_t, x0)").num_steps < 2:
        raise ValueError(f"schedule: expected at least 2 steps, received {schedule.num_steps}")
    t = schedule.checked(t)
    first = t == 0
    beta, alpha_s = lookup(schedule.beta, t), lookup(schedule.alpha, jnp.where(first, 0, t - 1))
    x0_scale = alpha_s * beta / lookup(schedule.sigma, t) ** 2
    x_scale = jnp.sqrt(1 - beta) * _noise_ratio(schedule, t)
    return jnp.where(first, 1.0, x0_scale), jnp.where(first, 0.0, x_scale)


def log_variance_range(schedule: Schedule, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Lower bound and range of the reverse step's log variance (section 3.1, Nichol & Dhariwal 2021).

    Args:
        schedule: The noise schedule, T >= 2 steps.
        t: Integers in 0..T-1, of any shape.

    Returns:
        log beta_tilde, at t = 0 that of t = 1; and log beta - log beta_tilde, accurate even if they nearly agree.

    Raises:
        TypeError: t is not an integer.
        ValueError: a concrete t lies outside 0..T-1, or time is continuous.
    """
    t = require_discrete(schedule, "the variance of a step").checked(t)
    at = jnp.where(t == 0, 1, t)
    small = jnp.log(lookup(schedule.beta, at) * _noise_ratio(schedule, at))
    span = -jnp.log1p(-lookup(schedule.alpha_bar, at - 1) * lookup(schedule.beta, at) / lookup(schedule.sigma, at) ** 2)
    return small, jnp.where(t == 0, jnp.log(lookup(schedule.beta, t)) - small, span)


def _noise_ratio(schedule: Schedule, t: jax.Array) -> jax.Array:
    """(1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) = (sigma_{t-1} / sigma_t)^2; at t = 0 that of t = 1."""
    t = jnp.where(t == 0, 1, t)
    return (lookup(schedule.sigma, t - 1) / lookup(schedule.sigma, t)) ** 2


def x0_from_eps(level: Level, x_t: jax.Array, eps: jax.Array) -> jax.Array:
    """x0 = (x_t - sigma eps) / alpha (Eq. 15, Ho et al. 2020); 0 at alpha = 0, where x_t carries no information about x0."""
    return safe_divide(x_t - expand(level.sigma, x_t) * eps, expand(level.alpha, x_t))


def eps_from_x0(level: Level, x_t: jax.Array, x0: jax.Array) -> jax.Array:
    """eps = (x_t - alpha x0) / sigma; 0 at sigma = 0, where x_t has no noise."""
    return safe_divide(x_t - expand(level.alpha, x_t) * x0, expand(level.sigma, x_t))


def x0_from_v(level: Level, x_t: jax.Array, v: jax.Array) -> jax.Array:
    """x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2) (appendix D, Salimans & Ho 2022)."""
    alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
    return (alpha * x_t - sigma * v) / (alpha**2 + sigma**2)


def eps_from_v(level: Level, x_t: jax.Array, v: jax.Array) -> jax.Array:
    """eps = (sigma x_t + alpha v) / (alpha^2 + sigma^2) (appendix D, Salimans & Ho 2022)."""
    alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
    return (sigma * x_t + alpha * v) / (alpha**2 + sigma**2)


def v_from_x0_eps(level: Level, x0: jax.Array, eps: jax.Array) -> jax.Array:
    """v = alpha eps - sigma x0 (appendix D, Salimans & Ho 2022)."""
    return expand(level.alpha, x0) * eps - expand(level.sigma, x0) * x0


def x0_from_flow(level: Level, x_t: jax.Array, u: jax.Array) -> jax.Array:
    """x0 = (x_t - sigma u) / (alpha + sigma), since x_t = (alpha + sigma) x0 + sigma u."""
    alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
    return (x_t - sigma * u) / (alpha + sigma)


def eps_from_flow(level: Level, x_t: jax.Array, u: jax.Array) -> jax.Array:
    """eps = (x_t + alpha u) / (alpha + sigma), since x_t = (alpha + sigma) eps - alpha u."""
    alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
    return (x_t + alpha * u) / (alpha + sigma)


def score_from_eps(level: Level, eps: jax.Array) -> jax.Array:
    """score = -eps / sigma (Eq. 151, Luo 2022); 0 at sigma = 0, where the score does not exist."""
    return safe_divide(-eps, expand(level.sigma, eps))


def eps_from_score(level: Level, score: jax.Array) -> jax.Array:
    """eps = -sigma score (Eq. 151, Luo 2022)."""
    return -expand(level.sigma, score) * score


def x0_from_mean(schedule: Schedule, x_t: jax.Array, mean: jax.Array, t: ArrayLike) -> jax.Array:
    """The x0 for which q(x_{t-1} | x_t, x0) has the given mean (Eq. 7, Ho et al. 2020); t as for `posterior_scales`.

    The mean is nearly x_t, so the subtraction loses digits of x0, most at large t.
    """
    x0_scale, x_scale = posterior_scales(schedule, t)
    return (mean - expand(x_scale, x_t) * x_t) / expand(x0_scale, x_t)


def target(level: Level, x0: jax.Array, eps: jax.Array, prediction: str, schedule: HasLevels | None = None) -> jax.Array:
    """The regression target for a network of the given prediction type at x_t = alpha x0 + sigma eps.

    Args:
        level: The noise level, scalars or [B].
        x0: Clean data [B, ...].
        eps: Its noise [B, ...].
        prediction: "eps", "x0", "v", "flow", "score" or "mean".
        schedule: The discrete schedule that defines the mean; only "mean" needs it, at integer times.

    Returns:
        [B, ...].

    Raises:
        ValueError: an unknown prediction, or a mean without a discrete schedule.
        TypeError: a mean at a non-integer time.
    """
    match prediction:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return v_from_x0_eps(level, x0, eps)
        case "flow":
            return eps - x0
        case "score":
            return score_from_eps(level, eps)
        case "mean":
            return q_posterior(schedule_of_mean(schedule), x0, add_noise(level, x0, eps), level.t).mean
    raise ValueError(f"prediction: expected one of {PREDICTIONS}, received {prediction!r}")


def x0_and_eps(
    level: Level, x_t: jax.Array, output: jax.Array, prediction: str, schedule: HasLevels | None = None
) -> tuple[jax.Array, jax.Array]:
    """Reads a network's output as an estimate of the clean data and of the noise; the inverse of `target`.

    Args:
        level: The noise level, scalars or [B].
        x_t: Noisy data [B, ...].
        output: The network's output [B, ...].
        prediction: "eps", "x0", "v", "flow", "score" or "mean".
        schedule: As for `target`.

    Returns:
        x0 and eps, each [B, ...].

    Raises:
        Same as `target`.
    """
    match prediction:
        case "eps":
            return x0_from_eps(level, x_t, output), output
        case "x0":
            return output, eps_from_x0(level, x_t, output)
        case "v":
            return x0_from_v(level, x_t, output), eps_from_v(level, x_t, output)
        case "flow":
            return x0_from_flow(level, x_t, output), eps_from_flow(level, x_t, output)
        case "score":
            eps = eps_from_score(level, output)
            return x0_from_eps(level, x_t, eps), eps
        case "mean":
            x0 = x0_from_mean(schedule_of_mean(schedule), x_t, output, level.t)
            return x0, eps_from_x0(level, x_t, x0)
    raise ValueError(f"prediction: expected one of {PREDICTIONS}, received {prediction!r}")


def schedule_of_mean(schedule: HasLevels | None) -> Schedule:
    """Returns the schedule of a predicted mean, which must be discrete.

    Raises:
        ValueError: no schedule is given, or one in continuous time.
    """
    if schedule is None:
        raise ValueError("schedule: expected the one that defines the mean, received None")
    return require_discrete(schedule, "the prediction 'mean'")
