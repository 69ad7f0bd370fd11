"""Image files for the tests to write."""

import numpy as np
from PIL import Image


def gradient(height=12, width=12, channels=3):
    """An image uint8 [height, width, channels] without symmetry."""
    y, x, c = np.mgrid[:height, :width, :channels]
    return ((y * 7 + x * 13 + c * 40) % 256).astype(np.uint8)


def save(file, image, **options):
    """Writes an image, an array or one of Pillow's, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())
    image.save(file, **options)
    return file


def truncate(file):
    """Keeps the header of an image and the first half of its pixels."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flat(level, mode="L", size=(8, 8)):
    """An image of one colour, by Pillow."""
    return Image.new(mode, size, level)


def damaged(whole, rng):
    """A copy with a few bytes changed, or cut short, or both."""
    content = bytearray(whole)
    for place in rng.integers(len(content), size=rng.integers(0, 4)):
        content[place] = rng.integers(256)
    return bytes(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
