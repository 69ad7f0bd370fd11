"""From a network to a Denoise, the estimate of the clean data that every sampler uses."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion
from ddpm_jax.schedules import HasLevels, Level, Schedule, require_discrete

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, ...], t [B]) -> the network's raw output; parameters, labels and dropout keys are already bound."""


class Denoised(NamedTuple):
    """The denoiser's prediction at x_t.

    Attributes:
        x0: Estimate of the clean data [B, ...].
        eps: The corresponding noise [B, ...]. Both are finite, also at alpha = 0 and at sigma = 0.
        fraction: Learned variance [B, ...] as a fraction between beta_tilde and beta in log space, or None.
    """

    x0: jax.Array
    eps: jax.Array
    fraction: jax.Array | None = None


Denoise = Callable[[jax.Array, Level], Denoised]
"""(x_t [B, ...], a Level of scalars or [B]) -> Denoised."""


A_DENOISE = "a function (x_t, Level) -> Denoised such as make_denoise(schedule, predict)"

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_raw")
"""The variance of p(x_{t-1} | x_t): the posterior variance, beta, or learned (see `read`)."""


def make_denoise(
    schedule: HasLevels, predict: Predict, prediction: str = "eps", clip: bool = True, variance: str = "fixed_large"
) -> Denoise:
    """Turns a network into a Denoise.

    Args:
        schedule: The schedule that the network was trained on, in discrete or continuous time. A level whose t is outside
            0 to `schedule.last` gives NaN.
        predict: The network, (x_t [B, ..., C], t [B]) -> [B, ..., C], or [B, ..., 2C] if it learned its variance.
        prediction: The quantity it predicts: "eps", "x0", "v", "flow", "score", or "mean" (in discrete time only).
        clip: Whether x0 is clipped to [-1, 1], as DDPM does in sampling, and eps recomputed from it.
        variance: One of VARIANCES. With "learned" and "learned_raw", in discrete time only, the second half of the
            output's last axis is the variance.

    Returns:
        The Denoise. It can be pickled if predict can.

    Raises:
        ValueError: an unknown prediction or variance, or one that continuous time does not have; when called, an output
            with the wrong number of channels.
        TypeError: schedule is no schedule, or predict no function (x_t, t); when called, "mean" or "learned_raw" at
            non-integer times.

    Warns:
        UserWarning: prediction is "eps" or "score", and the schedule has no signal at its last step.

    >>> import jax.numpy as jnp
    >>> from ddpm_jax import schedules
    >>> schedule = schedules.linear(1000)
    >>> denoise = make_denoise(schedule, lambda x_t, t: jnp.zeros_like(x_t))  # a network that predicts eps = 0
    >>> print(denoise(jnp.array([[-2.0, 0.0, 2.0]]), schedule.level(100)).x0)  # x_t / alpha, clipped
    [[-1.  0.  1.]]
    """
    _check(schedule, prediction, variance)
    check_predict(predict)
    warn_without_signal(schedule, prediction)
    denoise = functools.partial(_denoise, schedule, predict, prediction, variance)
    return clipped(denoise) if clip else denoise


def _denoise(schedule: HasLevels, predict: Predict, prediction: str, variance: str, x_t: jax.Array, level: Level) -> Denoised:
    output = predict(x_t, jnp.broadcast_to(level.t, x_t.shape[:1]))
    denoised = read(schedule, level, x_t, output, prediction, variance)
    in_range = diffusion.expand((level.t >= 0) & (level.t <= schedule.last), x_t)
    return jax.tree.map(lambda a: jnp.where(in_range, a, jnp.nan), denoised)


def check_predict(predict: Predict) -> None:
    """Raises TypeError unless predict can be called; a network lacks its parameters."""
    expected = "a function (x_t, t) -> output such as lambda x_t, t: network.apply(params, x_t, t)"
    arguments.check_function("predict", predict, expected)


def warn_without_signal(schedule: HasLevels, prediction: str) -> None:
    """Warns if eps or the score is predicted, which do not determine x0 at the schedule's last step, without signal."""
    if prediction not in ("eps", "score"):
        return
    with jax.ensure_compile_time_eval():  # concrete, also inside a compiled function
        alpha = schedule.level(np.asarray(schedule.last)).alpha
    if not arguments.is_traced(alpha) and float(alpha) == 0:
        warnings.warn(f"prediction: expected v, flow or x0 for a schedule that ends without signal, received {prediction}; "
                      f"at t = {schedule.last} it carries no information about x0, which is taken as 0",
                      stacklevel=3)  # fmt: skip


def check_denoise(denoise: Denoise) -> None:
    """Raises TypeError unless denoise can be called; a network lacks its schedule and its parameters."""
    arguments.check_function("denoise", denoise, A_DENOISE)


def evaluated(denoise: Denoise, x_t: jax.Array, level: Level) -> Denoised:
    """denoise(x_t, level), with a message if `denoise` is no Denoise.

    Raises:
        TypeError: it is not a function (x_t, Level) -> Denoised; a network, or a Predict (x_t, t).
        ValueError: its x0 has another shape than x_t.
    """
    check_denoise(denoise)
    try:
        denoised = denoise(x_t, level)
    except Exception as error:
        if _returns_an_array(denoise, x_t, jnp.broadcast_to(level.t, x_t.shape[:1])):
            raise TypeError(f"denoise: expected {A_DENOISE}, received a Predict, a function (x_t, t)") from error
        raise
    if not (hasattr(denoised, "x0") and hasattr(denoised, "eps")):
        raise TypeError(f"denoise: expected {A_DENOISE}, received one that returns {arguments.described(denoised)}")
    arguments.check_shape("denoise", denoised.x0, x_t.shape, "an x0 of the shape of x_t")
    return denoised


def _returns_an_array(function: Callable, *args: jax.Array) -> bool:
    """Whether a function accepts the arguments, and returns an array."""
    try:
        return hasattr(jax.eval_shape(function, *args), "shape")
    except Exception:
        return False


def _check(schedule: HasLevels, prediction: str, variance: str) -> None:
    """Raises TypeError: no schedule; ValueError: an unknown prediction or variance, or one that continuous time lacks."""
    arguments.check_schedule(schedule)
    if prediction not in diffusion.PREDICTIONS:
        raise ValueError(f"prediction: expected one of {diffusion.PREDICTIONS}, received {prediction!r}")
    if variance not in VARIANCES:
        raise ValueError(f"variance: expected one of {VARIANCES}, received {variance!r}")
    if prediction == "mean":
        diffusion.schedule_of_mean(schedule)
    if variance in ("learned", "learned_raw"):
        require_discrete(schedule, f"the variance {variance!r}")


def read(
    schedule: HasLevels, level: Level, x_t: jax.Array, output: jax.Array, prediction: str, variance: str = "fixed_large"
) -> Denoised:
    """Reads a network's output as the estimate of the clean data, the noise and, if learned, the variance.

        learned       u [B, ..., C] -> fraction (u + 1) / 2: log variance = fraction log beta + (1 - fraction) log
                      beta_tilde                                     (Eq. 15, Nichol & Dhariwal 2021, arXiv 2102.09672)
        learned_raw   u is the log variance itself ("learned" in the code of Ho et al. 2020), converted to the equivalent
                      fraction, so that it applies to steps of any length; needs integer times

    Args:
        schedule: The schedule of the network, in discrete time for a mean or a learned variance.
        level: Scalars or [B].
        x_t: Noisy data [B, ..., C].
        output: [B, ..., C], or [B, ..., 2C] if the variance is learned: prediction first, then u.
        prediction: "eps", "x0", "v", "flow", "score" or "mean".
        variance: One of VARIANCES.

    Returns:
        The Denoised, not clipped.

    Raises:
        ValueError: an unknown prediction or variance, or one that continuous time does not have; an output of another
            shape.
        TypeError: "mean" or "learned_raw" at non-integer times.
    """
    _check(schedule, prediction, variance)
    output, u = split(output, x_t, variance)
    x0, eps = diffusion.x0_and_eps(level, x_t, output, prediction, schedule)
    if u is None:
        return Denoised(x0, eps)
    if variance == "learned":
        return Denoised(x0, eps, (u + 1) / 2)
    schedule = require_discrete(schedule, f"the variance {variance!r}")
    small, span = (diffusion.expand(a, x_t) for a in diffusion.log_variance_range(schedule, level.t))
    return Denoised(x0, eps, (u - small) / span)


def split(output: jax.Array, x_t: jax.Array, variance: str) -> tuple[jax.Array, jax.Array | None]:
    """Splits a network's output into prediction and variance (None if the variance is fixed).

    Raises:
        ValueError: the output has another shape than x_t, with twice the channels if the variance is learned.
    """
    learned = variance.startswith("learned")
    if not hasattr(output, "shape"):
        raise TypeError(f"predict: expected an array as output, received {arguments.described(output)}")
    expected = (*x_t.shape[:-1], 2 * x_t.shape[-1]) if learned else x_t.shape
    if output.shape != expected:
        why = "twice the channels, for the learned variance" if learned else "that of x_t"
        raise ValueError(f"predict: expected an output of shape {expected}, {why}, received {output.shape}")
    if not learned:
        return output, None
    prediction, u = jnp.split(output, 2, axis=-1)
    return prediction, u


def p_reverse(
    schedule: Schedule, denoised: Denoised, x_t: jax.Array, t: ArrayLike, variance: str = "fixed_large"
) -> diffusion.Gaussian:
    """The model's step p(x_{t-1} | x_t): the posterior q(x_{t-1} | x_t, x0) at the estimated x0, Eq. 11 of Ho et al. 2020.

    Args:
        schedule: The noise schedule, in discrete time, T >= 2 steps.
        denoised: The denoiser's prediction at x_t.
        x_t: Noisy data [B, ...].
        t: Integers in 0..T-1, [B] or a scalar.
        variance: "fixed_small", the posterior's; "fixed_large", beta; "learned", from `denoised.fraction`. At t = 0 the
            posterior's, which is 0, is replaced by that at t = 1, also for "fixed_large", as in the authors' code.

    Returns:
        The Gaussian.

    Raises:
        ValueError: an unknown variance, or a learned one that the model lacks; t or T out of range; a schedule in
            continuous time.
        TypeError: t is not an integer.
    """
    mean, _, small = diffusion.q_posterior(schedule, denoised.x0, x_t, t)
    span = diffusion.expand(diffusion.log_variance_range(schedule, t)[1], x_t)
    match variance:
        case "fixed_small":
            log_variance = small
        case "fixed_large":
            log_variance = jnp.where(diffusion.expand(jnp.equal(t, 0), x_t), small, small + span)
        case "learned" | "learned_raw":
            if denoised.fraction is None:
                raise ValueError("variance: expected fixed_small or fixed_large if the network has not learned one, "
                                 f"received {variance!r}")  # fmt: skip
            log_variance = small + denoised.fraction * span
        case _:
            raise ValueError(f"variance: expected one of {VARIANCES}, received {variance!r}")
    return diffusion.Gaussian(mean, jnp.exp(log_variance), log_variance)


def clipped(denoise: Denoise, low: float = -1.0, high: float = 1.0, rederive_eps: bool = True) -> Denoise:
    """Clips the estimate of the clean data to the range of the data; applied last, after any guidance.

    Args:
        denoise: The Denoise to clip.
        low: The smallest value of the data.
        high: The largest value.
        rederive_eps: Whether eps is recomputed from the clipped x0, so that x_t = alpha x0 + sigma eps holds, or kept as
            predicted. It matters to samplers that use both, such as DDIM; DDPM uses x0 alone.

    Returns:
        The clipped Denoise.

    Raises:
        TypeError: denoise is no function.
        ValueError: low is not below high.
    """
    check_denoise(denoise)
    if not arguments.is_traced(low, high) and not low < high:
        raise ValueError(f"low, high: expected low below high, received {low} and {high}")
    return functools.partial(_clipped, denoise, low, high, rederive_eps)


def _clipped(denoise: Denoise, low: float, high: float, rederive_eps: bool, x_t: jax.Array, level: Level) -> Denoised:
    denoised = denoise(x_t, level)
    x0 = jnp.clip(denoised.x0, low, high)
    eps = diffusion.eps_from_x0(level, x_t, x0) if rederive_eps else denoised.eps
    return denoised._replace(x0=x0, eps=eps)


def warn_beyond_clip(denoise: Denoise, name: str, data: jax.Array) -> None:
    """Warns if data of known values lie outside the range to which a Denoise clips its x0."""
    if isinstance(denoise, functools.partial) and denoise.func is evaluated:  # as samplers receive it
        denoise = denoise.args[0]
    if not (isinstance(denoise, functools.partial) and denoise.func is _clipped) or arguments.is_traced(data):
        return
    _, low, high, _ = denoise.args
    if not getattr(data, "is_fully_addressable", True) or arguments.is_traced(low, high):
        return
    values = np.asarray(data, np.float64)
    if values.size and not (low - 0.01 <= values.min() and values.max() <= high + 0.01):
        warnings.warn(f"{name}: expected values from {low} to {high}, to which denoise clips, received {values.min():.3g} to "
                      f"{values.max():.3g}; scale the data, or use make_denoise(..., clip=False)", stacklevel=3)  # fmt: skip
