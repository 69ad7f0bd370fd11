"""Images as arrays: uint8 in files and batches, float32 in [-1, 1] in the model."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_float(image: jax.Array) -> jax.Array:
    """uint8 to float32 in [-1, 1], x / 127.5 - 1 as in the code of Ho et al. 2020."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """[-1, 1] to uint8, rounded to the nearest 8-bit value and clipped; the inverse of `to_float`."""
    return jnp.clip(jnp.round((x.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def random_flip(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
        keys: Typed keys [B], one per image.
        x: Images [B, H, W, C].

    Returns:
        Images [B, H, W, C].
    """
    flip = jax.vmap(lambda key: jax.random.bernoulli(key))(keys)
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def grid(image: np.ndarray, gap: int = 1, columns: int | None = None) -> np.ndarray:
    """Lays images out in rows.

    Args:
        image: uint8 [N, H, W, C].
        gap: Black pixels between images.
        columns: Images per row; by default, the grid is as square as possible.

    Returns:
        uint8 [rows * (H + gap) - gap, columns * (W + gap) - gap, C]; cells without an image are black.
    """
    num, height, width, channels = image.shape
    columns = math.ceil(math.sqrt(num)) if columns is None else columns
    rows = math.ceil(num / columns)
    sheet = np.zeros((rows * columns, height + gap, width + gap, channels), np.uint8)
    sheet[:num, :height, :width] = image
    sheet = sheet.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    return sheet.reshape(rows * (height + gap), columns * (width + gap), channels)[: -gap or None, : -gap or None]


def save_grid(path: str | os.PathLike[str], image: np.ndarray, max_size: int = 512, columns: int | None = None) -> None:
    """Writes a grid of images as a PNG, enlarged by an integer factor without smoothing if it is small.

    Args:
        path: The file; its folder is created if missing.
        image: uint8 [N, H, W, C]. C = 1 is shown as grayscale, 3 as RGB and 4 as RGBA; otherwise the first channel is shown as
            grayscale.
        max_size: The largest width that the grid is enlarged to.
        columns: Images per row; by default, the grid is as square as possible.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sheet(image, max_size, columns).save(path)


def save(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an image, uint8 [H, W, C], as a PNG of the same size, with channels as in `save_grid`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sheet(image[None], 0, 1).save(path)


def load(path: str | os.PathLike[str], shape: tuple[int, int, int]) -> np.ndarray:
    """Reads an image file of size (H, W, C), decoded as the images of a data set are (`decoding.decode`).

    Args:
        path: The file.
        shape: (H, W, C), C = 1 or 3.

    Returns:
        uint8 [H, W, C].

    Raises:
        OSError: there is no such file, or it cannot be read as an image.
        ValueError: the image is of another size, or C is neither 1 nor 3.
    """
    from ddpm_jax.data.decoding import decode

    height, width, channels = shape
    if channels not in (1, 3):
        raise ValueError(f"expected a model of images with 1 or 3 channels, received {channels}")
    with open(path, "rb") as file:
        image = decode(file, str(path), channels)
    if image.shape != shape:
        raise ValueError(f"expected an image {width} wide and {height} high, as the model generates, received "
                         f"{image.shape[1]} x {image.shape[0]} in {path}")  # fmt: skip
    return image


def save_film(path: str | os.PathLike[str], frames: np.ndarray, seconds: float = 4.0) -> None:
    """Writes an animated GIF in a loop, each frame a grid of images. The last frame lasts a second.

    Args:
        path: The file.
        frames: uint8 [F, N, H, W, C], with channels as in `save_grid`.
        seconds: Duration of all frames except the last.
    """
    first, *others = (_sheet(frame, 512, None) for frame in frames)
    durations = [max(int(1000 * seconds / len(frames)), 20)] * len(others) + [1000]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def _sheet(image: np.ndarray, max_size: int, columns: int | None) -> Any:
    from PIL import Image  # here, so that the arithmetic above needs only jax

    sheet = grid(image, columns=columns)
    scale = max(max_size // sheet.shape[1], 1)
    sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(sheet if sheet.shape[-1] in (3, 4) else sheet[..., 0])
