"""Sources of images: scikit-learn's digits, an .npz file, a folder of image files, a TensorFlow Datasets data set."""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import json
import logging
import os
import pathlib
import re
import shlex
import threading
import zipfile
import zlib
from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")

# What Pillow raises for a file that is damaged or no image at all.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Source(Protocol):
    """Images by number, the same each time; safe to read from several threads.

    Every item has `image`, uint8 [H, W, C], and, where the source has labels, `label`, an int32 scalar array below
    num_classes; a negative one stands for none. All items have the same keys and shapes.

    Attributes:
        num_classes: How many labels there are; None for images without.
    """

    num_classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class Arrays:
    """A source in memory.

    Args:
        image: uint8 [N, H, W, C].
        label: Integers [N], or None.
    """

    def __init__(self, image: np.ndarray, label: np.ndarray | None = None):
        self._arrays = {"image": image}
        self.num_classes = None
        if label is not None:
            self._arrays["label"] = label.astype(np.int32)
            self.num_classes = int(label.max()) + 1

    def __len__(self) -> int:
        return len(self._arrays["image"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(array[index]) for name, array in self._arrays.items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self._arrays.items()}


def digits(split: str = "all") -> Source:
    """The 1,797 handwritten digits bundled with scikit-learn, labelled: uint8 [8, 8, 1], no download.

    Args:
        split: "test", every sixth of them; "train", the others; or "all". Another raises ValueError.
    """
    import sklearn.datasets  # here, since the import takes seconds

    data = sklearn.datasets.load_digits()
    image = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.arange(len(image)) % 6 == 5
    chosen = {"all": test | ~test, "train": ~test, "test": test}.get(split)
    if chosen is None:
        raise ValueError(f"split: expected all, train or test for digits, received {split}")
    return Arrays(image[chosen], data.target[chosen])


def npz(path: str | PathLike[str]) -> Source:
    """The arrays of an .npz file, held in memory.

    Args:
        path: A file with `image`, uint8 [N, H, W, C] or [N, H, W], and, where there are labels, `label`, integers
            [N]. Other arrays in it are ignored.

    Returns:
        The source; [N, H, W] becomes [N, H, W, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an .npz file, or its arrays are not as above.
    """
    arrays = _read_npz(pathlib.Path(path))
    if "image" not in arrays:
        raise ValueError(f"npz: expected an array `image`, received none in {path}")
    image, label = arrays["image"], arrays.get("label")
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or len(image) == 0:
        raise ValueError(f"npz: expected `image` as uint8 [N, H, W, C] or [N, H, W], N > 0, received {_spec(image)} in {path}")
    if label is not None and (label.dtype.kind not in "iu" or label.shape != (len(image),)):
        raise ValueError(f"npz: expected `label` as integers [{len(image)}], received {_spec(label)} in {path}")
    return Arrays(image if image.ndim == 4 else image[..., None], label)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads those of `image` and `label` that the file has; never unpickles."""
    if not path.is_file():
        raise FileNotFoundError(f"npz: expected an .npz file, there is none at {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"npz: expected an .npz file, received something else, or a part of one, in {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in ("image", "label") if name in file}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"npz: expected plain arrays, all images in one shape, received one that cannot be read in {path}: {error}"
        ) from error


def _spec(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


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
    _check_image_size("folder", image_size)
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


def _check_image_size(source: str, image_size: int) -> None:
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
            item = {"image": _pixels(image, self._channels, self._image_size)}
        if self._label is not None:
            item["label"] = np.asarray(self._label[index])
        return item

    def _warn_once(self, index: int, error: Exception) -> None:
        with self._lock:
            known = index in self._damaged
            self._damaged.add(index)
        if not known:
            logger.warning("%s is damaged, the next readable image takes its place: %s", self._files[index], error)


def _pixels(image: Image.Image, channels: int, image_size: int | None) -> np.ndarray:
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


def tfds(name: str, split: str = "train", data_dir: str | PathLike[str] | None = None, image_size: int | None = None) -> Source:
    """A data set of TensorFlow Datasets, prepared in the ArrayRecord format; TensorFlow is not needed to read it.

    Args:
        name: Such as "cifar10", "lsun/church_outdoor", "cifar10:3.0.2"; the newest prepared version by default.
        split: A split or a part of one, such as "train" or "train[:90%]".
        data_dir: Where data sets are prepared; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
        image_size: Height and width of the items: the square in the centre is resized to it. None keeps the images
            as they are, which must then all have one shape.

    Returns:
        The source, with the features `image` and, where there is such a class label, `label`.

    Raises:
        FileNotFoundError: the data set is not prepared, or in another format; the message has the command to do so.
        ValueError: an unknown name, configuration or split; a data set without images of 8 bits; images of differing
            shapes without an image_size.
    """
    import tensorflow_datasets  # here, since the import takes a second

    builder = tensorflow_datasets.builder_from_directory(_newest_version(name, data_dir))
    if tensorflow_datasets.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise FileNotFoundError(
            f"tfds: {name} is prepared in {builder.data_dir}, but not as ArrayRecord; to move that away and prepare it"
            f" again: mv {shlex.quote(builder.data_dir)} {shlex.quote(builder.data_dir + '.old')} &&"
            f" {_prepare_command(name, data_dir)}"
        )
    features = dict(builder.info.features)
    _check_features(name, features, image_size)
    encoded = tensorflow_datasets.decode.SkipDecoding()  # TFDS itself decodes by OpenCV or Pillow, as installed
    try:
        records = builder.as_data_source(split, decoders={"image": encoded}, file_format="array_record")
    except ValueError as error:
        names = ", ".join(builder.info.splits)
        raise ValueError(f"tfds: expected a split of {name}, of {names}, received {split!r}") from error
    label = features.get("label")
    num_classes = label.num_classes if isinstance(label, tensorflow_datasets.features.ClassLabel) else None
    Image.init()  # as in `folder`
    return Records(records, image_size, 1 if features["image"].shape[-1] == 1 else 3, num_classes)


def _newest_version(name: str, data_dir: str | PathLike[str] | None) -> PathLike[str]:
    """The folder of a prepared data set, found by its name alone: the code that prepares it may need TensorFlow."""
    import tensorflow_datasets

    dataset, _, version = name.partition(":")
    parent = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets") if data_dir is None else data_dir
    root = tensorflow_datasets.core.Path(parent).expanduser() / dataset
    folders = [file.parent for file in root.glob("*/features.json")]
    versions = {
        tuple(int(number) for number in folder.name.split(".")): folder
        for folder in folders
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name) and version in ("", folder.name)
    }
    if not versions:
        raise _not_prepared(name, data_dir, root)
    return versions[max(versions)]


def _not_prepared(name: str, data_dir: str | PathLike[str] | None, root: PathLike[str]) -> Exception:
    """The error for a data set that is not there: an unknown name or configuration, or one to prepare first."""
    import tensorflow_datasets

    dataset, _, config = name.partition(":")[0].partition("/")
    try:
        configs = tensorflow_datasets.builder_cls(dataset).builder_configs
    except tensorflow_datasets.core.DatasetNotFoundError:
        return ValueError(f"tfds: {name!r} is not prepared in {root}, nor is it known to TensorFlow Datasets")
    if (configs or config) and config not in configs:
        names = ", ".join(f"{dataset}/{known}" for known in configs) if configs else dataset
        return ValueError(f"tfds: expected one of {names}, received {name!r}")
    command = _prepare_command(name, data_dir)
    return FileNotFoundError(f"tfds: {name} is not prepared in {root}; to do so: {command}")


def _prepare_command(name: str, data_dir: str | PathLike[str] | None) -> str:
    """The shell command that prepares a data set; not `tfds build`, which does not start without apache-beam."""
    place = "" if data_dir is None else f", data_dir={json.dumps(os.fspath(data_dir))}"
    builder = f'tfds.builder({json.dumps(name)}, file_format="array_record"{place})'
    code = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'pip install -e ".[prepare]" && python -c {shlex.quote(code)}'


def _check_features(name: str, features: dict[str, Any], image_size: int | None) -> None:
    """Raises ValueError where a data set has no images of 8 bits, or differing ones that nothing resizes."""
    import tensorflow_datasets

    image = features.get("image")
    if not isinstance(image, tensorflow_datasets.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(f"tfds: expected a feature `image` of 8-bit images, {name} has {', '.join(features)}")
    if image_size is not None:
        _check_image_size("tfds", image_size)
    elif None in image.shape:
        raise ValueError(f"tfds: the images of {name} differ in shape, expected an image_size, received None")


class Records:
    """A source of TFDS records, their images decoded when asked for.

    Args:
        records: Examples with `image`, an encoded image, as bytes.
        image_size: Height and width of the items, >= 1; None for images that all have one shape.
        channels: 1 or 3.
        num_classes: Of the examples' `label`; None for items without.
    """

    def __init__(self, records: Sequence[dict[str, Any]], image_size: int | None, channels: int, num_classes: int | None):
        self._records = records
        self._image_size = image_size
        self._channels = channels
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[index]
        with Image.open(io.BytesIO(record["image"])) as image:
            item = {"image": _pixels(image, self._channels, self._image_size)}
        if self.num_classes is not None:
            item["label"] = np.asarray(record["label"], np.int32)
        return item
