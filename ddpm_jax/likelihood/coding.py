"""Progressive lossy coding, section 4.3 of Ho et al. 2020: the bound as the length of a code, sent coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion, keys
from ddpm_jax.denoiser import Denoise, evaluated
from ddpm_jax.diffusion import expand
from ddpm_jax.likelihood.variational import prior, term
from ddpm_jax.schedules import HasLevels, require_discrete


def rate_distortion(prior: ArrayLike, terms: ArrayLike, mse: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The rate-distortion curve of progressive coding, section 4.3 of Ho et al. 2020: x_T is sent first, then x_{T-1}, ...

    Args:
        prior: Mean of L_T over examples.
        terms: Means of L_t [T].
        mse: Mean squared errors of the estimate of x0 from x_t [T], on the scale [-1, 1].

    Returns:
        rate [T]: bits per dimension received up to and including x_t; distortion [T]: root mean squared error of the
        estimate of x0 from it, on the scale 0 to 255. t = 0, with the most bits and the least distortion, comes first.
    """
    terms = np.asarray(terms, np.float64)
    received = np.cumsum(terms[::-1])[::-1] - terms  # of the steps after t: step t itself sends x_{t-1}
    return np.asarray(prior, np.float64) + received, 127.5 * np.sqrt(np.asarray(mse, np.float64))


class Coded(NamedTuple):
    """The receiver's estimates of images, by stage.

    Attributes:
        x0: Estimates at each stage [K, B, ...], the coarsest first.
        rate: Bits per dimension received so far, [K, B].
        mse: Mean squared error of the estimates, on the scale [-1, 1], [K, B].
    """

    x0: jax.Array
    rate: jax.Array
    mse: jax.Array


def progressive_coding(
    key: jax.Array,
    schedule: HasLevels,
    denoise: Denoise,
    x0: jax.Array,
    times: Sequence[int],
    variance: str = "fixed_large",
    ids: ArrayLike | None = None,
) -> Coded:
    """Progressive lossy coding, algorithms 3 and 4 and figure 5: x_T is sent, then x_{T-1} given x_T, and so on.

    Sender and receiver share p, so a sample of q costs about KL(q || p) bits (minimal random coding); they are counted, not
    written. The receiver's estimate after x_t is the model's estimate of x0.

    Args:
        key: A typed key.
        schedule: The noise schedule, in discrete time, T >= 2 steps.
        denoise: The model.
        x0: Clean data [B, ...], in [-1, 1].
        times: The t to report, integers in 0..T-1.
        variance: "fixed_small", "fixed_large" or "learned".
        ids: Global example indices, integers [B], 0..B-1 by default.

    Returns:
        Coded, one stage per time, the largest first.

    Raises:
        ValueError: times out of range, or a schedule in continuous time.
        TypeError: times are not integers; no key, schedule or Denoise; or an x0 that is not floating-point.
    """
    schedule = require_discrete(schedule, "progressive coding")
    arguments.check_x0(x0)
    schedule.checked(np.asarray(times))
    wanted = np.unique(times)[::-1]
    example_keys = keys.per_example(keys.stream(key, "coding"), keys.global_ids(ids, len(x0)))

    def noise(t: ArrayLike) -> jax.Array:
        return keys.draw(jax.random.normal, keys.fold(example_keys, t), x0.shape[1:])

    # The stage that each time is reported as; one out of bounds, and so dropped, for all others.
    slots = np.full(schedule.num_steps, len(wanted))
    slots[wanted] = np.arange(len(wanted))

    def send(carry: tuple[jax.Array, jax.Array, Coded], at: tuple[jax.Array, jax.Array]):
        (x_t, rate, seen), (t, slot) = carry, at

        # The receiver has x_t: its estimate, and the bits so far.
        denoised = evaluated(denoise, x_t, schedule.level(t))
        mse = jnp.mean((denoised.x0 - x0) ** 2, axis=range(1, x0.ndim))
        stage = Coded(denoised.x0, rate, mse)
        seen = jax.tree.map(lambda a, new: a.at[slot].set(new, mode="drop"), seen, stage)

        # The sender sends x_{t-1} ~ q(x_{t-1} | x_t, x0).
        posterior = diffusion.q_posterior(schedule, x0, x_t, t)
        x_s = posterior.mean + expand(jnp.sqrt(posterior.variance), x0) * noise(t)
        return (x_s, rate + term(schedule, denoised, x0, x_t, t, variance), seen), None

    empty = Coded(*(jnp.zeros((len(wanted), *shape), x0.dtype) for shape in (x0.shape, x0.shape[:1], x0.shape[:1])))
    x_last = diffusion.q_sample(schedule, x0, schedule.num_steps - 1, noise(schedule.num_steps))
    times_down = jnp.arange(schedule.num_steps)[::-1]
    carry = (x_last, prior(schedule, x0), empty)
    (_, _, seen), _ = jax.lax.scan(send, carry, (times_down, jnp.asarray(slots)[times_down]))
    return seen
