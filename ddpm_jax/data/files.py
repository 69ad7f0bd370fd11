"""A folder of image files as a source."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import logging
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ddpm_jax.data.decoding import MAX_PIXELS_OF_DATA, TooLarge, decode, header, is_large
from ddpm_jax.data.sources import Source

logger = logging.getLogger(__name__)

_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")


def folder(path: str | os.PathLike[str], image_size: int, max_pixels: int | None = MAX_PIXELS_OF_DATA) -> Source:
    """All PNG, JPEG and WebP files below a folder, in the order of their relative paths.

    Images are decoded as by `decoding.decode`: upright, opaque, 8-bit, the central square resized to image_size. Hidden files
    and folders are skipped. Symbolic links are followed, except links to a folder that contains them. If every image is exactly
    one level down, in at least two folders, these are the classes: `label` is the index of the folder's name among the sorted
    names. Otherwise there are no labels; unless all images are at the top level, a warning says why.

    A file is left out with a warning if its header is not that of an image, or if the image is too large. A file that turns out
    to be damaged when it is read is replaced by the next readable one, also with a warning. Images above Pillow's limit against
    decompression bombs, 179 megapixels, are named in a warning, because reading them takes much memory.

    Args:
        path: The folder.
        image_size: Height and width of the items, >= 1.
        max_pixels: Images with more pixels are left out. None: no limit.

    Returns:
        The source; it has one channel if all files are grayscale, else three.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no readable images in it, or image_size or max_pixels is below 1.
    """
    root = pathlib.Path(path)
    check_image_size("folder", image_size)
    if max_pixels is not None and max_pixels < 1:
        raise ValueError(f"folder: expected max_pixels of at least 1 or None, received {max_pixels}")
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of images, there is none at {root}")
    candidates = _image_files(root)
    Image.init()  # now: if several threads make Pillow load its formats at first use, one may miss a format
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:  # on a network drive, opening is all waiting
        channels = list(pool.map(functools.partial(_num_channels, max_pixels=max_pixels), candidates))
    files = [file for file, number in zip(candidates, channels, strict=True) if number]
    if not files:
        raise ValueError(f"folder: expected images ending in {', '.join(_ENDINGS)}, found none that can be read below {root}")
    label, classes = _class_labels(root, files)
    return ImageFiles(files, image_size, max(channels), label, max_pixels, classes)


def check_image_size(source: str, image_size: int) -> None:
    """Raises ValueError, naming the source, for a size below 1."""
    if image_size < 1:
        raise ValueError(f"{source}: expected an image_size of at least 1, received {image_size}")


def _image_files(root: pathlib.Path) -> list[pathlib.Path]:
    """All files below root with the suffix of an image, except hidden ones, sorted by relative path."""
    return sorted(_walk(root, frozenset()), key=lambda file: file.relative_to(root).as_posix())


def _walk(folder: pathlib.Path, containing: frozenset[pathlib.Path]) -> Iterator[pathlib.Path]:
    """The image files below a folder. It is skipped if `containing`, the real paths of the folders around it, has its own."""
    real = folder.resolve()
    if real in containing:
        return
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        logger.warning("%s is left out, it cannot be listed: %s", folder, error)
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry, containing | {real, *real.parents})
        elif entry.suffix.lower() in _ENDINGS and entry.is_file():
            yield entry


def _num_channels(file: pathlib.Path, max_pixels: int | None) -> int:
    """1 for grayscale, 3 for colour; 0, with a warning, for a file that cannot be read as an image."""
    try:
        with file.open("rb") as opened:
            (width, height), channels = header(opened, str(file), max_pixels)
    except TooLarge as error:
        logger.warning("%s (left out; --data.max_pixels lets it in)", error)
        return 0
    except OSError as error:
        logger.warning("%s (left out)", error)
        return 0
    if is_large((width, height)):
        memory = f"takes up to {16e-9 * width * height:.1f} GB to read; --data.max_pixels leaves it out"
        logger.warning("%s has %s x %s pixels and %s", file, f"{width:,}", f"{height:,}", memory)
    return channels


def _class_labels(root: pathlib.Path, files: Sequence[pathlib.Path]) -> tuple[np.ndarray | None, list[str] | None]:
    """int32 [N], the index of each file's folder, and the folders' names; None if the files are not in class folders."""
    folders = [file.relative_to(root).parent for file in files]
    classes = sorted({folder.as_posix() for folder in folders})
    depths = [len(folder.parts) for folder in folders]
    if max(depths) == 0:
        return None, None
    if min(depths) != 1 or max(depths) != 1:
        odd = files[next(index for index, depth in enumerate(depths) if depth != 1)]
        logger.warning("%s has no labels: expected every image one folder down, in that of its class, found %s", root, odd)
    elif len(classes) < 2:
        logger.warning("%s has no labels: expected a folder for each of two classes or more, found only %s", root, classes[0])
    else:
        return np.searchsorted(classes, [folder.as_posix() for folder in folders]).astype(np.int32), classes
    return None, None


class ImageFiles(Source):
    """A source of image files, decoded on access.

    Args:
        files: The files, at least one.
        image_size: Height and width of the items, >= 1.
        channels: 1 or 3.
        label: int32 [N], or None.
        max_pixels: Images with more pixels are treated as damaged; None for no limit.
        classes: The names of the classes, by label, or None.
    """

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        image_size: int,
        channels: int,
        label: np.ndarray | None,
        max_pixels: int | None = MAX_PIXELS_OF_DATA,
        classes: Sequence[str] | None = None,
    ):
        self._files = files
        self._image_size = image_size
        self._channels = channels
        self._label = label
        self._max_pixels = max_pixels
        self.num_classes = None if label is None else int(label.max()) + 1
        if classes is not None:
            self.classes, self.num_classes = tuple(classes), len(classes)
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
            except OSError as error:
                self._warn_once(candidate, error)
        raise OSError(f"none of the {len(self)} images can be read, the first of them {self._files[0]}")

    def _read(self, index: int) -> dict[str, np.ndarray]:
        path = self._files[index]
        with path.open("rb") as file:
            item = {"image": decode(file, str(path), self._channels, self._image_size, self._max_pixels)}
        if self._label is not None:
            item["label"] = np.asarray(self._label[index])
        return item

    def _warn_once(self, index: int, error: OSError) -> None:
        with self._lock:
            known = index in self._damaged
            self._damaged.add(index)
        if not known:
            logger.warning("%s is damaged, the next readable image takes its place: %s", self._files[index], error)
