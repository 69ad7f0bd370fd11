"""A folder of image files as a source, and how images are decoded."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import pathlib
import threading
from collections.abc import Sequence
from os import PathLike

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.data.sources import Source

logger = logging.getLogger(__name__)

_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")

# What Pillow raises for a file that is damaged or no image at all.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def folder(path: str | PathLike[str], image_size: int) -> Source:
    """All PNG, JPEG and WebP files below a folder, in the order of their relative paths.

    Images are turned as their EXIF data say, laid on white where they are transparent, cropped to the square in their
    centre, and resized. Hidden files and folders are passed over. Where every image lies exactly one level down, in
    at least two folders, these are the classes: `label` is the index of the folder's name among the sorted names.

    A file that is not an image, by its header, is named in a warning and left out. One that turns out to be damaged
    when it is read is named too, and the next readable one takes its place.

    Args:
        path: The folder.
        image_size: Height and width of the items, >= 1.

    Returns:
        The source; it has one channel if all files are grayscale, else three.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no images in it, or image_size is below 1.
    """
    root = pathlib.Path(path)
    check_image_size("folder", image_size)
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of images, there is none at {root}")
    candidates = _image_files(root)
    Image.init()  # now: when several threads make Pillow load its formats at first use, one may miss a format
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:  # on a network drive, opening is all waiting
        channels = list(pool.map(_num_channels, candidates))
    files = [file for file, number in zip(candidates, channels, strict=True) if number]
    if not files:
        raise ValueError(f"folder: expected images ending in {', '.join(_ENDINGS)}, found none that can be read below {root}")
    return Files(files, image_size, max(channels), _class_labels(root, files))


def check_image_size(source: str, image_size: int) -> None:
    """Raises ValueError, naming the source, for a size below 1."""
    if image_size < 1:
        raise ValueError(f"{source}: expected an image_size of at least 1, received {image_size}")


def _image_files(root: pathlib.Path) -> list[pathlib.Path]:
    """All files below root with the ending of an image, hidden ones excepted, sorted by relative path."""
    found = (file for file in root.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file())
    names = (file.relative_to(root) for file in found)
    visible = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return [root / name for name in sorted(visible, key=pathlib.PurePath.as_posix)]


def _num_channels(file: pathlib.Path) -> int:
    """1 for grayscale, 3 for colour, from the header alone; 0, with a warning, for what is no image."""
    try:
        with Image.open(file) as image:
            return 1 if Image.getmodebase(image.mode) == "L" else 3
    except _UNREADABLE as error:
        logger.warning("%s is left out, it cannot be read as an image: %s", file, error)
        return 0


def _class_labels(root: pathlib.Path, files: Sequence[pathlib.Path]) -> np.ndarray | None:
    """int32 [N], the number of each file's folder, or None where the files do not lie in class folders."""
    folders = [file.relative_to(root).parent for file in files]
    classes = sorted({folder.as_posix() for folder in folders})
    if len(classes) < 2 or any(len(folder.parts) != 1 for folder in folders):
        return None
    return np.searchsorted(classes, [folder.as_posix() for folder in folders]).astype(np.int32)


class Files:
    """A source of image files, decoded when asked for.

    Args:
        files: The files, at least one.
        image_size: Height and width of the items, >= 1.
        channels: 1 or 3.
        label: int32 [N], or None.
    """

    def __init__(self, files: Sequence[pathlib.Path], image_size: int, channels: int, label: np.ndarray | None):
        self._files = files
        self._image_size = image_size
        self._channels = channels
        self._label = label
        self.num_classes = None if label is None else int(label.max()) + 1
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in 0..{len(self) - 1}, received {index}")
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            try:
                return self._read(candidate)
            except _UNREADABLE as error:
                self._warn_once(candidate, error)
        raise OSError(f"none of the {len(self)} images can be read, the first of them {self._files[0]}")

    def _read(self, index: int) -> dict[str, np.ndarray]:
        with Image.open(self._files[index]) as image:
            item = {"image": pixels(image, self._channels, self._image_size)}
        if self._label is not None:
            item["label"] = np.asarray(self._label[index])
        return item

    def _warn_once(self, index: int, error: Exception) -> None:
        with self._lock:
            known = index in self._damaged
            self._damaged.add(index)
        if not known:
            logger.warning("%s is damaged, the next readable image takes its place: %s", self._files[index], error)


def pixels(image: Image.Image, channels: int, image_size: int | None) -> np.ndarray:
    """Decodes to uint8 [H, W, channels], upright, opaque and, where image_size is given, square."""
    ImageOps.exif_transpose(image, in_place=True)
    image, mode = _opaque(image), "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # which would copy
    if image_size is not None:
        image = _square(image, image_size)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _opaque(image: Image.Image) -> Image.Image:
    """Brings 16-bit grayscale to 8 bits, and lays a transparent image on white."""
    if image.mode.startswith("I"):  # convert("L") would clip; mode I is 16 bits as well, in 32
        return Image.fromarray(np.clip(np.round(np.asarray(image) / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


def _square(image: Image.Image, size: int) -> Image.Image:
    """Resizes the square in the centre, by the filter that FFHQ and CelebA-HQ were made with.

    Pillow widens Lanczos by the factor of reduction, so that it does not alias.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
