"""From image files to arrays: the decoder of all images that the program reads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

MAX_PIXELS = 178_956_970
"""Pillow's default limit, above which it considers an image a decompression bomb."""

MAX_PIXELS_OF_DATA = 500_000_000
"""The default limit for images of a data set: one takes up to 16 bytes of memory per pixel while it is decoded."""

_raised_limit, _large = threading.Lock(), threading.Lock()


class TooLarge(OSError):
    """An image has too many pixels."""


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that makes an image upright."""


def decode(
    file: BinaryIO, name: str, channels: int, image_size: int | None = None, max_pixels: int | None = MAX_PIXELS
) -> np.ndarray:
    """Decodes an image, upright, opaque and 8-bit.

    The EXIF orientation is applied, transparent pixels are blended with white, and 16-bit grayscale is scaled to 8 bits.
    Damaged metadata are ignored. Images above Pillow's limit are decoded one at a time, even if several threads ask for them.

    Args:
        file: The encoded image, at its start.
        name: The image's name, for error messages.
        channels: 1 or 3.
        image_size: Height and width of the result, to which the central square is resized; None keeps the image's size.
        max_pixels: Larger images are refused; None for no limit.

    Returns:
        uint8 [H, W, channels].

    Raises:
        TooLarge: the image has more than max_pixels.
        OSError: the file is not an image, or is damaged. No file raises another exception.
    """
    with _opened(file, name, max_pixels) as image, _large if is_large(image.size) else contextlib.nullcontext():
        if is_large(image.size) and image_size is not None:
            image.draft(None, (2 * image_size, 2 * image_size))  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if enough
        image = _opaque(_upright(image))
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)  # which would copy
        if image_size is not None:
            image = _central_square(image, image_size)
        return np.asarray(image).reshape(image.height, image.width, channels)


def header(file: BinaryIO, name: str, max_pixels: int | None = MAX_PIXELS) -> tuple[tuple[int, int], int]:
    """(width, height) and the number of channels, 1 for grayscale and 3 for colour, as the header of an image says.

    Arguments and exceptions are those of `decode`.
    """
    with _opened(file, name, max_pixels) as image:
        return image.size, 1 if Image.getmodebase(image.mode) == "L" else 3


def is_large(size: tuple[int, int]) -> bool:
    """Whether an image is above Pillow's limit."""
    return size[0] * size[1] > MAX_PIXELS


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str, max_pixels: int | None) -> Iterator[Image.Image]:
    """Opens an image; all errors within the context become an OSError that names it."""
    try:
        with _open(file, max_pixels) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise TooLarge(f"{name}: max_pixels: expected an image of at most {max_pixels:,} pixels, received {size}")
            yield image
    except Image.UnidentifiedImageError as error:
        raise OSError(f"{name}: expected an image, received a file of another kind, or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name}: max_pixels: {error}") from error
    except TooLarge:
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of all types for damaged files
        raise OSError(f"{name}: {str(error) or type(error).__name__}") from error


def _open(file: BinaryIO, max_pixels: int | None) -> Image.Image:
    """`Image.open`, also for large images. Pillow's limit is a global variable, so it is raised as briefly as possible."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        if max_pixels is not None and max_pixels <= MAX_PIXELS:
            raise
    file.seek(0)
    with _raised_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation. ImageOps.exif_transpose does so too, but fails if it cannot rewrite the other tags."""
    image.load()
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
        transposition = _UPRIGHT.get(orientation)
    except Exception:  # exceptions of all types for damaged metadata
        return image
    return image if transposition is None else image.transpose(transposition)


def _opaque(image: Image.Image) -> Image.Image:
    """Scales 16-bit grayscale to 8 bits, and blends transparent pixels with white."""
    if image.mode.startswith("I"):  # convert("L") would clip; mode I holds 16 bits too
        level = np.asarray(image)
        gray = ((np.clip(level, 0, 65535).astype(np.int32) + 128) // 257).astype(np.uint8)  # level / 257, rounded
        transparent = image.info.get("transparency")
        return Image.fromarray(gray if transparent is None else np.where(level == transparent, np.uint8(255), gray))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


def _central_square(image: Image.Image, size: int) -> Image.Image:
    """Resizes the central square, by the filter that FFHQ and CelebA-HQ were made with.

    Pillow widens Lanczos by the reduction factor, so that it does not alias.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
