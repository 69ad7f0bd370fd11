"""The interface of image sources, scikit-learn's digits, and .npz files. See also `files` (folders) and `tfds`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol

import numpy as np

from ddpm_jax.data import npz_files


class Source(Protocol):
    """Images by index, the same each time; safe to read from several threads.

    Every item has `image`, uint8 [H, W, C], and, if the images are labelled, `label`, an int32 scalar array below
    num_classes, or negative for an unlabelled image. All items have the same keys and shapes.

    A class that inherits from this one needs `__len__`, `__getitem__` and `num_classes`; `take` and `classes` have defaults.

    Attributes:
        num_classes: The number of classes; None for images without labels.
        classes: The names of the classes, by label; None if they have none.
    """

    num_classes: int | None
    classes: tuple[str, ...] | None = None

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
        classes: The names of the classes, by label, or None.
    """

    def __init__(self, image: np.ndarray, label: np.ndarray | None = None, classes: Sequence[str] | None = None):
        self._arrays = {"image": image}
        self.num_classes = None
        if label is not None:
            self._arrays["label"] = label.astype(np.int32)
            self.num_classes = int(label.max()) + 1
        if classes is not None:
            self.classes, self.num_classes = tuple(classes), len(classes)

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
    return Arrays(image[chosen], data.target[chosen], [str(digit) for digit in range(10)])


def npz(path: str | PathLike[str]) -> Source:
    """The arrays of an .npz file, held in memory.

    Args:
        path: A file with `image`, uint8 [N, H, W, C] or [N, H, W], and, if the images are labelled, `label`, integers [N],
            and perhaps `classes`, the names of the classes by label. Other arrays in it are ignored. Channels are used as
            they are: four of them, for example, are not blended with white as RGBA.

    Returns:
        The source; [N, H, W] becomes [N, H, W, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an .npz file, or its arrays are not as above, such as images [N, 3, H, W].
    """
    arrays = npz_files.read(path, ("image", "label", "classes"), functools.partial(_check_npz, path))
    image, label, names = arrays["image"], arrays.get("label"), arrays.get("classes")
    classes = None if names is None else names.tolist()
    if classes is not None and (label is None or label.max() >= len(classes) or len(set(classes)) < len(classes)):
        labels = "a `label`" if label is None else f"different names for `label` up to {label.max()}"
        raise ValueError(f"npz: expected `classes` with {labels}, received {len(classes)} names in {path}")
    return Arrays(image if image.ndim == 4 else image[..., None], label, classes)


def _check_npz(path: str | PathLike[str], headers: dict[str, npz_files.Header]) -> None:
    """Raises ValueError unless the arrays of an .npz file, of which only the headers are read yet, are as `npz` expects."""
    if "image" not in headers:
        raise ValueError(f"npz: expected an array `image`, received none in {path}")
    image, label, classes = headers["image"], headers.get("label"), headers.get("classes")
    if image.dtype != np.uint8 or len(image.shape) not in (3, 4) or min(image.shape) < 1:
        raise ValueError(f"npz: expected `image` as uint8 [N, H, W, C] or [N, H, W], N > 0, received {image} in {path}")
    if _is_channels_first(image.shape):
        way_out = "save image.transpose(0, 2, 3, 1) instead"
        raise ValueError(f"npz: expected `image` with channels last, received {image} in {path}; {way_out}")
    if label is not None and (label.dtype.kind not in "iu" or label.shape != image.shape[:1]):
        raise ValueError(f"npz: expected `label` as integers [{image.shape[0]}], received {label} in {path}")
    if classes is not None and (classes.dtype.kind != "U" or len(classes.shape) != 1):
        raise ValueError(f"npz: expected `classes` as strings [K], received {classes} in {path}")


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images are [N, C, H, W], as PyTorch's are: 1 to 4 rows of more than 4 channels are hardly images."""
    return len(shape) == 4 and shape[1] in (1, 2, 3, 4) and min(shape[2:]) > 4


def __getattr__(name: str) -> Any:
    """The old names of `files.folder` and `tfds.tfds`, until the next version."""
    if name not in ("folder", "tfds"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddpm_jax.data import files, tfds

    return files.folder if name == "folder" else tfds.tfds
