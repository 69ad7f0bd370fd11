"""Sources of images; scikit-learn's digits, and an .npz file. `files` has folders, `tfds` TensorFlow Datasets."""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from os import PathLike
from typing import Any, Protocol

import numpy as np


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


def __getattr__(name: str) -> Any:
    """The old places of `files.folder` and `tfds.tfds`; they go with the next version."""
    if name not in ("folder", "tfds"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddpm_jax.data import files, tfds

    return files.folder if name == "folder" else tfds.tfds
