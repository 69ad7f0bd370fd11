"""From a network to an estimate of the clean data: what every sampler is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import diffusion
from ddpm_jax.schedules import Level, Schedule

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, ...], t [B]) -> the network's raw output; parameters, labels and dropout key are already bound."""


class Denoised(NamedTuple):
    """What is believed about x_t.

    Attributes:
        x0: Estimate of the clean data [B, ...].
        eps: The noise that goes with it [B, ...]. Both are finite, also at alpha = 0 and at sigma = 0.
        fraction: A learned variance [B, ...], as interpolation in log space, where the network has one.
    """

    x0: jax.Array
    eps: jax.Array
    fraction: jax.Array | None = None


Denoise = Callable[[jax.Array, Level], Denoised]
"""(x_t [B, ...], a Level of scalars or [B]) -> Denoised."""


def make_denoise(schedule: Schedule, predict: Predict, prediction: str = "eps", clip: bool = True) -> Denoise:
    """Turns a network into a Denoise.

    Args:
        schedule: The schedule that the network was trained on. A level whose t it does not have gives NaN.
        predict: The network, (x_t [B, ...], t [B]) -> [B, ...].
        prediction: What it predicts: "eps", "x0", "v" or "score".
        clip: Whether x0 is clipped to [-1, 1], as DDPM does in sampling, and eps derived from it anew.

    Returns:
        The Denoise.

    Raises:
        ValueError: an unknown prediction.
    """
    if prediction not in diffusion.PREDICTIONS:
        raise ValueError(f"prediction: expected one of {diffusion.PREDICTIONS}, received {prediction!r}")

    def denoise(x_t: jax.Array, level: Level) -> Denoised:
        t = jnp.broadcast_to(level.t, x_t.shape[:1])
        known = (level.t >= 0) & (level.t <= schedule.num_steps - 1)
        known = diffusion.expand(known, x_t)
        x0, eps = diffusion.x0_and_eps(level, x_t, predict(x_t, t), prediction)
        return Denoised(jnp.where(known, x0, jnp.nan), jnp.where(known, eps, jnp.nan))

    return clipped(denoise) if clip else denoise


def clipped(denoise: Denoise, low: float = -1.0, high: float = 1.0, rederive_eps: bool = True) -> Denoise:
    """Clips the estimate of the clean data to the range that the data have; composes last, after any guidance.

    Args:
        denoise: The Denoise to clip.
        low: The smallest value of the data.
        high: The largest value.
        rederive_eps: Whether eps is made to agree with the clipped x0 (so that x_t = alpha x0 + sigma eps holds), or kept
            as the network said. It matters to samplers that use both, as DDIM does; DDPM uses x0 alone.

    Returns:
        The clipped Denoise.
    """

    def denoise_clipped(x_t: jax.Array, level: Level) -> Denoised:
        denoised = denoise(x_t, level)
        x0 = jnp.clip(denoised.x0, low, high)
        eps = diffusion.eps_from_x0(level, x_t, x0) if rederive_eps else denoised.eps
        return denoised._replace(x0=x0, eps=eps)

    return denoise_clipped
