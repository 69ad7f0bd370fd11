"""Training losses, one per example."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax import arguments, denoiser, diffusion, keys, likelihood
from ddpm_jax.denoiser import Predict
from ddpm_jax.losses import timesteps, weightings
from ddpm_jax.losses.weightings import Weighting
from ddpm_jax.schedules import HasLevels, Level, Schedule, require_discrete

LossOf = Callable[[jax.Array, Predict, jax.Array, jax.Array, jax.Array], jax.Array]
"""A loss with its settings bound: (key, predict, x0 [B, ...], ids [B], t [B]) -> [B]."""

DISTANCES = ("l2", "l1", "huber")


def simple(
    key: jax.Array,
    schedule: HasLevels,
    predict: Predict,
    x0: jax.Array,
    prediction: str = "eps",
    ids: ArrayLike | None = None,
    t: ArrayLike | None = None,
    weighting: Weighting | None = None,
    distance: str = "l2",
) -> jax.Array:
    """L_simple, Eq. 14 of Ho et al. 2020: the squared error of the prediction at a random noise level.

        E_{t, eps} || eps - eps_theta(alpha x0 + sigma eps, t) ||^2,    as a mean over dimensions

    Args:
        key: A typed key.
        schedule: The noise schedule, in discrete time (T steps) or in continuous time.
        predict: The network, (x_t [B, ...], t [B]) -> [B, ...].
        x0: Clean data [B, ...], in [-1, 1].
        prediction: The quantity that the network predicts: "eps", "x0", "v", "flow", "score", or "mean" (in discrete time
            only).
        ids: Global example indices, integers [B], 0..B-1 by default: example i's t and noise depend on (key, ids[i])
            alone, not on the rest of the batch.
        t: The times, [B] or a scalar: integers in 0..T-1, or real numbers in [0, 1] in continuous time. By default
            independent and uniform over the schedule's range.
        weighting: From `weightings`; by default every error has weight 1.
        distance: "l2", the squared error; "l1", the absolute error; "huber", half the square up to 1 and linear beyond.

    Returns:
        [B], the mean over all other axes, in float32 (float64 under `jax_enable_x64`). If a traced t is out of range, x_t
        is NaN, and so is the loss of a network that reads it.

    Raises:
        TypeError: no key, no schedule or no function; a discrete schedule's t that is not an integer, or an x0 that is not
            floating-point.
        ValueError: an unknown prediction or distance; a concrete t out of range, or not [B]; an output of another shape than
            x0; a mean in continuous time.

    Warns:
        UserWarning: prediction is "eps" or "score", and the schedule has no signal at its last step.

    >>> from ddpm_jax import losses, schedules
    >>> x0, predict = jnp.zeros((4, 32, 32, 3)), lambda x_t, t: jnp.zeros_like(x_t)
    >>> loss = losses.simple(jax.random.key(0), schedules.linear(1000), predict, x0)
    >>> loss.shape, round(float(loss.mean()), 1)  # predicting eps = 0 costs the variance of eps
    ((4,), 1.0)
    """
    _check(schedule, predict, x0)
    denoiser.warn_without_signal(schedule, prediction)
    level, x_t, eps, t = _diffuse(key, schedule, x0, ids, t)
    output, _ = denoiser.split(predict(x_t, t), x_t, "fixed_large")
    return _error(schedule, level, x0, eps, output, prediction, weighting, distance)


def vlb(
    key: jax.Array,
    schedule: HasLevels,
    predict: Predict,
    x0: jax.Array,
    prediction: str = "eps",
    variance: str = "learned",
    ids: ArrayLike | None = None,
    t: ArrayLike | None = None,
) -> jax.Array:
    """L_vlb, the variational bound of Ho et al. 2020, Eq. 5, estimated by one of its T terms at a random t: T L_t.

    L_T is left out, since no network changes it. The estimate of x0 is not clipped.

    Args:
        key, x0, prediction, ids, t: As for `simple`.
        schedule: The noise schedule, in discrete time, T >= 2 steps.
        predict: The network, (x_t [B, ..., C], t [B]) -> [B, ..., C], or [B, ..., 2C] if the variance is learned.
        variance: "fixed_small", "fixed_large", "learned" or "learned_raw" (see `denoiser.read`).

    Returns:
        [B], whose mean over t and noise is the bound in bits per dimension, as in `likelihood`.

    Raises:
        As `simple`; ValueError: an unknown variance, or a schedule in continuous time.
    """
    schedule = require_discrete(schedule, "the bound")
    _check(schedule, predict, x0)
    denoiser.warn_without_signal(schedule, prediction)
    level, x_t, _, t = _diffuse(key, schedule, x0, ids, t)
    return _bound_term(schedule, level, x0, x_t, t, predict(x_t, t), prediction, variance)


def hybrid(
    key: jax.Array,
    schedule: HasLevels,
    predict: Predict,
    x0: jax.Array,
    prediction: str = "eps",
    variance: str = "learned",
    ids: ArrayLike | None = None,
    t: ArrayLike | None = None,
    weighting: Weighting | None = None,
    distance: str = "l2",
    vlb_weight: float = 0.001,
) -> jax.Array:
    """L_hybrid = L_simple + 0.001 L_vlb, Eq. 16 of Nichol & Dhariwal 2021 (arXiv 2102.09672).

    L_vlb trains only the variance; the mean is under stop_gradient.

    Args:
        key, x0, prediction, ids, t, weighting, distance: As for `simple`.
        schedule: The noise schedule, in discrete time, T >= 2 steps.
        predict: The network, (x_t [B, ..., C], t [B]) -> [B, ..., 2C].
        variance: "learned" or "learned_raw".
        vlb_weight: The weight of L_vlb.

    Returns:
        [B].

    Raises:
        As `simple`; ValueError: a variance that is not learned, or a schedule in continuous time.
    """
    schedule = require_discrete(schedule, "the bound")
    if variance not in ("learned", "learned_raw"):
        raise ValueError(f"variance: expected 'learned' or 'learned_raw' for the hybrid loss, received {variance!r}")
    _check(schedule, predict, x0)
    denoiser.warn_without_signal(schedule, prediction)
    level, x_t, eps, t = _diffuse(key, schedule, x0, ids, t)
    both = predict(x_t, t)
    output, _ = denoiser.split(both, x_t, variance)

    # L_simple trains the mean, the bound only the variance.
    error = _error(schedule, level, x0, eps, output, prediction, weighting, distance)
    frozen = jnp.concatenate([jax.lax.stop_gradient(output), both[..., x_t.shape[-1] :]], axis=-1)
    return error + vlb_weight * _bound_term(schedule, level, x0, x_t, t, frozen, prediction, variance)


def _check(schedule: HasLevels, predict: Predict, x0: jax.Array) -> None:
    """Raises TypeError: no schedule, no function, or an x0 that is not floating-point."""
    arguments.check_schedule(schedule)
    denoiser.check_predict(predict)
    arguments.check_x0(x0)


def _diffuse(
    key: jax.Array, schedule: HasLevels, x0: jax.Array, ids: ArrayLike | None, t: ArrayLike | None
) -> tuple[Level, jax.Array, jax.Array, jax.Array]:
    """Draws eps, and t if it is not given; returns the noise level, x_t, eps, and t [B]."""
    ids = keys.global_ids(ids, len(x0))
    t = timesteps.uniform(key, schedule.num_steps, ids) if t is None else t
    arguments.check_per_example("t", t, len(x0))
    eps = keys.draw(jax.random.normal, keys.per_example(keys.stream(key, "noise"), ids), x0.shape[1:])
    level = schedule.level(t)
    return level, diffusion.add_noise(level, x0, eps), eps, jnp.broadcast_to(level.t, (len(x0),))


def _error(
    schedule: HasLevels,
    level: Level,
    x0: jax.Array,
    eps: jax.Array,
    output: jax.Array,
    prediction: str,
    weighting: Weighting | None,
    distance: str,
) -> jax.Array:
    """The weighted error of a prediction, [B]."""
    error = output.astype(eps.dtype) - diffusion.target(level, x0.astype(eps.dtype), eps, prediction, schedule)
    match distance:
        case "l2":
            error = error**2
        case "l1":
            error = jnp.abs(error)
        case "huber":
            error = jnp.where(jnp.abs(error) < 1, error**2 / 2, jnp.abs(error) - 0.5)
        case _:
            raise ValueError(f"distance: expected one of {DISTANCES}, received {distance!r}")
    mean = jnp.mean(error, axis=range(1, x0.ndim))
    return mean if weighting is None else mean * weightings.weight(weighting, level, prediction, schedule)


def _bound_term(
    schedule: Schedule,
    level: Level,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    output: jax.Array,
    prediction: str,
    variance: str,
) -> jax.Array:
    """T L_t, [B], in float32 whatever the network computes in."""
    x0, x_t, output = (jnp.asarray(a, jnp.promote_types(a.dtype, jnp.float32)) for a in (x0, x_t, output))
    denoised = denoiser.read(schedule, level, x_t, output, prediction, variance)
    return schedule.num_steps * likelihood.term(schedule, denoised, x0, x_t, t, variance)
