"""The interface of image sources, scikit-learn's digits, and .npz files. See also `files` (folders) and `tfds`."""

from __future__ import annotations

import pathlib
import zipfile
from os import PathLike
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """Images by index, the same each time; safe to read from several threads.

    Every item has `image`, uint8 [H, W, C], and, if the images are labelled, `label`, an int32 scalar array below
    num_classes, or negative for an unlabelled image. All items have the same keys and shapes.

    A class that inherits from this one needs `__len__`, `__getitem__` and `num_classes`; `take` has a default.

    Attributes:
        num_classes: The number of classes; None for images without labels.
    """

    num_classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The items at indices [B], stacked: `image` uint8 [B, H, W, C] and, if labelled, `label` int32 [B].

        By default they are read one by one; a source that can read several at once overrides this.
        """
        items = [self[int(index)] for index in indices]
        return {name: np.stack([item[name] for item in items]) for name in items[0]}


def check_source(source: Source) -> None:
    """Raises TypeError if a source's class has no `take`."""
    if not callable(getattr(source, "take", None)):
        received = f"{type(source).__name__} without it"
        raise TypeError(f"source: expected a method take(indices), as inherited from sources.Source, received {received}")


class Arrays(Source):
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
    """The 1,797 labelled handwritten digits bundled with scikit-learn, uint8 [8, 8, 1]; no download.

    Args:
        split: "test", every sixth of them; "train", the others; or "all".

    Raises:
        ValueError: another split.
    """
    import sklearn.datasets  # here, because the import takes seconds

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
        path: A file with `image`, uint8 [N, H, W, C] or [N, H, W], and, if the images are labelled, `label`, integers [N].
            Other arrays in it are ignored. Channels are used as they are: four of them, for example, are not blended with
            white as RGBA.

    Returns:
        The source; [N, H, W] becomes [N, H, W, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an .npz file, or its arrays are not as above, such as images [N, 3, H, W].
    """
    arrays = _read_npz(pathlib.Path(path))
    if "image" not in arrays:
        raise ValueError(f"npz: expected an array `image`, received none in {path}")
    image, label = arrays["image"], arrays.get("label")
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or len(image) == 0:
        raise ValueError(f"npz: expected `image` as uint8 [N, H, W, C] or [N, H, W], N > 0, received {_spec(image)} in {path}")
    if _is_channels_first(image.shape):
        way_out = "save image.transpose(0, 2, 3, 1) instead"
        raise ValueError(f"npz: expected `image` with channels last, received {_spec(image)} in {path}; {way_out}")
    if label is not None and (label.dtype.kind not in "iu" or label.shape != (len(image),)):
        raise ValueError(f"npz: expected `label` as integers [{len(image)}], received {_spec(label)} in {path}")
    return Arrays(image if image.ndim == 4 else image[..., None], label)


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images are [N, C, H, W], as PyTorch's are: 1, 3 or 4 rows of more than 4 channels are hardly images."""
    return len(shape) == 4 and shape[1] in (1, 3, 4) and min(shape[2:]) > 4


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads `image` and `label`, if the file has them; never unpickles."""
    if not path.is_file():
        raise FileNotFoundError(f"npz: expected an .npz file, there is none at {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"npz: expected an .npz file, received a truncated one or another kind of file, in {path}")
    with path.open("rb") as file:
        try:
            arrays = np.load(file, allow_pickle=False)
            return {name: np.asarray(arrays[name]) for name in ("image", "label") if name in arrays}
        except Exception as error:  # NumPy and zipfile raise exceptions of all types for damaged files
            raise ValueError(
                f"npz: expected plain arrays, all images in one shape, received one that cannot be read in {path}: {error}"
            ) from error


def _spec(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def __getattr__(name: str) -> Any:
    """The old names of `files.folder` and `tfds.tfds`, until the next version."""
    if name not in ("folder", "tfds"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddpm_jax.data import files, tfds

    return files.folder if name == "folder" else tfds.tfds
