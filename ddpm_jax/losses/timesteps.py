"""Sampling of training times: uniform, stratified over the batch, log-normal in the noise level, or by importance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, keys
from ddpm_jax.schedules import HasLevels, safe_divide

DrawTimes = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, jax.Array]]
"""(key, LossHistory or (), ids [B]) -> t [B], and weights for their losses [B]."""

HISTORY = 10
"""Losses stored per time, as in Nichol & Dhariwal 2021."""


def uniform(key: jax.Array, num_steps: int | None, ids: ArrayLike) -> jax.Array:
    """Uniform and independent times, Algorithm 1 of Ho et al. 2020.

    Args:
        key: A typed key.
        num_steps: T; None for continuous time.
        ids: Global example indices, integers [B].

    Returns:
        Integers in 0..T-1, or real numbers in (0, 1), [B]; the i-th depends on (key, ids[i]) alone.
    """
    example_keys = keys.per_example(keys.stream(key, "t"), ids)
    if num_steps is None:
        return _between_the_ends(keys.draw(jax.random.uniform, example_keys))
    return keys.draw(jax.random.randint, example_keys, (), 0, num_steps)


def stratified(key: jax.Array, num_steps: int | None, ids: ArrayLike, batch_size: int) -> jax.Array:
    """Uniform times, spread evenly over the batch to reduce variance (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).

        t_i = (u + i / batch_size) mod 1,    u uniform in [0, 1), the same for all;    floor(T t_i) in discrete time

    Args:
        key: A typed key.
        num_steps: T; None for continuous time.
        ids: Indices in the global batch, integers [B] in 0..batch_size-1.
        batch_size: The size of the global batch.

    Returns:
        Integers in 0..T-1, or real numbers in (0, 1), [B]; the i-th depends on (key, ids[i]) alone, and is uniform.
    """
    shift = jax.random.uniform(keys.stream(key, "t"))
    t = (shift + jnp.asarray(ids) / batch_size) % 1.0
    if num_steps is None:
        return _between_the_ends(t)
    return jnp.minimum((t * num_steps).astype(jnp.int32), num_steps - 1)


def log_normal(key: jax.Array, schedule: HasLevels, ids: ArrayLike, mean: float, std: float) -> jax.Array:
    """Independent times whose noise level is log-normal: log(sigma / alpha) ~ N(mean, std^2).

    It is the law of EDM (Karras et al. 2022, arXiv 2206.00364), with P_mean = mean and P_std = std. On the path of flow
    matching with shift 1, log(sigma / alpha) = log(t / (1 - t)), and it is the logit-normal(mean, std) law of t of SD3 (Esser
    et al. 2024, arXiv 2403.03206); with shift k, that of mean - log k.

    Args:
        key: A typed key.
        schedule: In continuous time. Noise levels beyond its own become its least or its most noisy one.
        ids: Global example indices, integers [B].
        mean: The mean of log(sigma / alpha).
        std: Its standard deviation, above 0.

    Returns:
        Real numbers in (0, 1), [B]; the i-th depends on (key, ids[i]) alone.

    Raises:
        TypeError: no key or no schedule, or ids are not integers.
        ValueError: a schedule in discrete time; a mean that is not finite, or a std that is not positive and finite.
    """
    arguments.check_schedule(schedule)
    if schedule.num_steps is not None:
        raise ValueError(f"schedule: expected one in continuous time for log-normal noise levels, received "
                         f"{schedule.num_steps} steps")  # fmt: skip
    check_log_normal(mean, std)
    with jax.ensure_compile_time_eval():  # concrete, also inside a compiled function
        high, low = map(float, schedule.level(np.array([0.0, schedule.last])).log_snr)
    example_keys = keys.per_example(keys.stream(key, "t"), ids)
    log_snr = -2 * (mean + std * keys.draw(jax.random.normal, example_keys))

    # level_at within the schedule's range, which may be infinite; its ends are known without rounding
    t = jnp.asarray(schedule.level_at(jnp.clip(log_snr, low, high)).t, log_snr.dtype)
    return _between_the_ends(jnp.where(log_snr >= high, 0.0, jnp.where(log_snr <= low, schedule.last, t)))


def check_log_normal(mean: float, std: float) -> None:
    """Raises ValueError unless mean is finite, and std positive and finite."""
    if not -np.inf < mean < np.inf:
        raise ValueError(f"mean: expected a finite number, received {mean}")
    if not 0 < std < np.inf:
        raise ValueError(f"std: expected a finite number above 0, received {std}")


def _between_the_ends(t: jax.Array) -> jax.Array:
    """Moves t = 0 and t = 1 inwards by half a rounding error, since alpha or sigma may be 0 and a weight infinite there."""
    half = jnp.finfo(t.dtype).eps / 2
    return jnp.clip(t, half, 1 - half)


class LossHistory(NamedTuple):
    """The past losses at each time, for importance sampling.

    Attributes:
        losses: The latest HISTORY losses [T, HISTORY].
        seen: Number of losses so far, [T].
    """

    losses: jax.Array
    seen: jax.Array


def empty_history(num_steps: int | None) -> LossHistory:
    """The history before the first training step, for T times.

    Raises:
        ValueError: num_steps is None: in continuous time no t occurs twice, so no t has a history.
    """
    if num_steps is None:
        raise ValueError("num_steps: expected a number of steps for importance sampling, received None, continuous time")
    return LossHistory(jnp.zeros((num_steps, HISTORY)), jnp.zeros(num_steps, jnp.int32))


def probabilities(history: LossHistory, uniform_share: float = 0.001) -> jax.Array:
    """p_t proportional to the root mean square of the losses at t, Eq. 18 of Nichol & Dhariwal 2021 (arXiv 2102.09672).

    Args:
        history: The losses so far. Until every time has HISTORY of them, all times are equally likely.
        uniform_share: Weight of the uniform distribution that is mixed in.

    Returns:
        [T], which sum to 1.
    """
    num_steps = len(history.seen)
    rms = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
    p = safe_divide(rms, jnp.sum(rms), 1 / num_steps)
    mixed = (1 - uniform_share) * p + uniform_share / num_steps
    return jnp.where(jnp.all(history.seen >= HISTORY), mixed, 1 / num_steps)


def importance(key: jax.Array, history: LossHistory, ids: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Draws times at which the loss is large more often, with weights that keep the expected loss.

    Args:
        key: A typed key.
        history: The losses so far.
        ids: Global example indices, integers [B].

    Returns:
        Integers in 0..T-1, [B], the i-th from (key, ids[i]) and the history alone; and weights 1 / (T p_t), [B].
    """
    p = probabilities(history)
    t = keys.draw(jax.random.categorical, keys.per_example(keys.stream(key, "t"), ids), jnp.log(p))
    return t, 1 / (len(p) * p[t])


def remember(history: LossHistory, t: jax.Array, losses: jax.Array) -> LossHistory:
    """Adds the losses of a global batch to the history, in the order of the batch, overwriting the oldest.

    Args:
        history: The losses so far.
        t: Their times [B], in 0..T-1.
        losses: Unweighted [B].

    Returns:
        The new history.
    """
    same = t[:, None] == t[None, :]
    earlier = jnp.sum(jnp.tril(same, -1), axis=1)  # losses of the same time before this one in the batch
    later = jnp.sum(jnp.triu(same, 1), axis=1)
    slot = (history.seen[t] + earlier) % HISTORY
    t_kept = jnp.where(later < HISTORY, t, len(history.seen))  # the last HISTORY of each time; others out of bounds: dropped
    return LossHistory(
        history.losses.at[t_kept, slot].set(losses.astype(history.losses.dtype), mode="drop"),
        history.seen.at[t].add(1),
    )
