"""Image generation: from noise, from a given image (SDEdit), or around the known part of one (inpainting)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import samplers
from ddpm_jax.data import images
from ddpm_jax.denoiser import Denoise
from ddpm_jax.devices.compiler import compiler_options
from ddpm_jax.samplers import Sampler
from ddpm_jax.schedules import Level

Generate = Callable[[jax.Array, Any, jax.Array], jax.Array]
"""(key, params, ids [B]) -> uint8 [B, H, W, C]; image i depends only on key and ids[i]."""


class ImageEdit(NamedTuple):
    """An image to edit.

    Attributes:
        image: float32 [H, W, C], in [-1, 1].
        mask: [H, W, 1], 1 to keep a pixel and 0 to inpaint it; None for SDEdit, which changes all of them.
        strength: The strength of SDEdit, in [0, 1]: 0 returns the image, 1 starts at the noisiest level.
        resamplings, jump_length: RePaint's, with a mask; see `samplers.grids.back_and_forth`. None: plain replacement.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    strength: float = 1.0
    resamplings: int | None = None
    jump_length: int = 10


def generator(
    denoise_of: Callable[[Any, jax.Array], Denoise],
    sampler: Sampler,
    levels: Level,
    image_shape: Sequence[int],
    edit: ImageEdit | None = None,
) -> Generate:
    """Returns a function that generates images; it is compiled at its first call.

    Args:
        denoise_of: (params, ids [B]) -> the Denoise of a batch.
        sampler: The sampling method.
        levels: The grid of noise levels [N + 1].
        image_shape: (H, W, C).
        edit: The image to edit, the same for the whole batch; None to start from noise.

    Returns:
        (key, params, ids [B]) -> uint8 [B, H, W, C].
    """

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def generate(key: jax.Array, params: Any, ids: jax.Array) -> jax.Array:
        denoise, shape = denoise_of(params, ids), (len(ids), *image_shape)
        if edit is None:
            return images.to_uint8(samplers.sample(key, sampler, denoise, levels, shape, ids))
        image = jnp.broadcast_to(edit.image, shape)
        if edit.mask is None:
            return images.to_uint8(samplers.sdedit(key, sampler, denoise, levels, image, edit.strength, ids))
        filling, grid = _inpainting(edit, sampler, levels, image)
        return images.to_uint8(samplers.sample(key, filling, denoise, grid, shape, ids))

    return generate


def check_edit(edit: ImageEdit, sampler: Sampler, levels: Level) -> None:
    """Raises ValueError for a mask that inpainting refuses, and for a strength out of range or with too few steps left."""
    if edit.mask is not None:
        filling, grid = _inpainting(edit, sampler, levels, jnp.asarray(edit.image)[None])
        filling.plan(grid)
    elif len((part := samplers.grids.starting_at(levels, edit.strength)).t) > 1:
        sampler.plan(part)


def _inpainting(edit: ImageEdit, sampler: Sampler, levels: Level, known: jax.Array) -> tuple[Sampler, Level]:
    """The sampler that keeps the known pixels, and its grid."""
    mask = np.broadcast_to(np.asarray(edit.mask), known.shape)
    if edit.resamplings is None:
        return samplers.inpaint(sampler, known, mask), levels
    return samplers.repaint(sampler, known, mask), samplers.grids.back_and_forth(levels, edit.jump_length, edit.resamplings)
