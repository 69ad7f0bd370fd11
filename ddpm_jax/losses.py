"""Training losses, one number an example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax import diffusion, keys
from ddpm_jax.denoiser import Predict
from ddpm_jax.schedules import Schedule


def simple(
    key: jax.Array,
    schedule: Schedule,
    predict: Predict,
    x0: jax.Array,
    prediction: str = "eps",
    ids: ArrayLike | None = None,
    t: ArrayLike | None = None,
) -> jax.Array:
    """L_simple, Eq. 14 of Ho et al. 2020: the squared error of the prediction at a random noise level.

        E_{t, eps} || eps - eps_theta(alpha x0 + sigma eps, t) ||^2,    as a mean over dimensions

    Args:
        key: A typed key.
        schedule: The noise schedule, T steps.
        predict: The network, (x_t [B, ...], t [B]) -> [B, ...].
        x0: Clean data [B, ...], in [-1, 1].
        prediction: What the network predicts: "eps", "x0", "v" or "score".
        ids: Integers [B], the examples' global numbers, 0..B-1 by default: example i's t and noise depend on
            (key, ids[i]) alone, whatever else is in the batch.
        t: Integers in 0..T-1, [B] or a scalar, to set the noise level; uniform and independent by default.

    Returns:
        [B], the mean over all other axes, in float32 (float64 under `jax_enable_x64`).

    Raises:
        TypeError: no key, a t that is not an integer, or an x0 that is not floating-point.
        ValueError: an unknown prediction; a concrete t outside 0..T-1; a prediction in another shape than x0.
    """
    batch = x0.shape[0]
    ids = jnp.arange(batch) if ids is None else ids
    if t is None:
        t = keys.draw(jax.random.randint, keys.per_example(keys.stream(key, "t"), ids), (), 0, schedule.num_steps)
    eps = keys.draw(jax.random.normal, keys.per_example(keys.stream(key, "noise"), ids), x0.shape[1:])
    level = schedule.level(t)
    x_t = diffusion.add_noise(level, x0, eps)
    output = predict(x_t, jnp.broadcast_to(level.t, (batch,)))
    if output.shape != x0.shape:
        raise ValueError(f"predict: expected an output in the shape of x0, {x0.shape}, received {output.shape}")
    error = output.astype(eps.dtype) - diffusion.target(level, x0.astype(eps.dtype), eps, prediction)
    return jnp.mean(error**2, axis=range(1, x0.ndim))
