"""Image to image: add noise to an image, then sample from there (SDEdit, Meng et al. 2021, arXiv 2108.01073)."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from ddpm_jax import arguments, keys
from ddpm_jax.denoiser import Denoise, warn_beyond_clip
from ddpm_jax.diffusion import add_noise
from ddpm_jax.samplers import base
from ddpm_jax.samplers.grids import starting_at
from ddpm_jax.schedules import Level


def sdedit(
    key: jax.Array | None,
    sampler: base.Sampler,
    denoise: Denoise,
    levels: Level,
    x0: jax.Array,
    strength: float,
    ids: ArrayLike | None = None,
) -> jax.Array:
    """Algorithm 1 of the paper: x_t = alpha_t x0 + sigma_t noise at a level of the grid, then the steps from there.

    Args:
        key, sampler, denoise, ids: Same as for `sample`.
        levels: The whole grid [N + 1], towards the data.
        x0: The images to edit [B, ...].
        strength: In [0, 1]: the last round(strength * N) steps are taken. 0 returns x0; 1 takes the whole grid.

    Returns:
        The samples [B, ...].

    Raises:
        TypeError: a missing key, or x0 that is not floating-point.
        ValueError: strength outside [0, 1], or same as `sample`.

    Warns:
        UserWarning: x0 outside the range to which denoise clips.
    """
    base.check_arguments(sampler, denoise, levels)
    arguments.check_x0(x0)
    warn_beyond_clip(denoise, "x0", x0)
    part = starting_at(levels, strength)
    if len(part.alpha) == 1:
        return x0
    ids = keys.global_ids(ids, len(x0))
    first = Level(*(a[0] for a in part))
    noise = base.normal(None if key is None else keys.per_example(keys.stream(key, "init"), ids), x0.shape)
    return base.sample(key, sampler, denoise, part, x0.shape, ids, add_noise(first, x0, noise.astype(x0.dtype)))
