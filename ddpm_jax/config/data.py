"""Where the images come from: one dataclass per kind of source."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ddpm_jax.config.kinds import Choice
from ddpm_jax.config.paths import LocalPath


@dataclasses.dataclass(frozen=True)
class Data(metaclass=Choice):
    """Where the images come from."""

    source: str | None
    """digits: scikit-learn's, bundled. npz, folder: your own, at --data.path. tfds: TensorFlow Datasets. None: unknown, for
    imported weights. `--data.source npz --help` lists the options of that source."""
    random_flip: bool = False
    """Mirror images left to right, each with probability 1/2."""


@dataclasses.dataclass(frozen=True)
class Digits(Data):
    """The 1,797 handwritten digits of scikit-learn, 8x8."""

    source: Literal["digits"] = "digits"
    split: str = "train"
    """train, test (every sixth) or all."""


@dataclasses.dataclass(frozen=True)
class Npz(Data):
    """An .npz file of images."""

    source: Literal["npz"] = "npz"
    path: LocalPath | None = None
    """The file: `image`, uint8 [N, H, W, C], and perhaps `label`, integers [N], and `classes`, their names."""


@dataclasses.dataclass(frozen=True)
class Folder(Data):
    """A folder of image files."""

    source: Literal["folder"] = "folder"
    path: LocalPath | None = None
    """The folder: PNG, JPEG and WebP files, at any depth; folders of files are classes."""
    image_size: int | None = None
    """Crop images to a square and resize them to this size."""
    max_pixels: int = 500_000_000
    """Leave out images with more pixels. Reading an image takes up to 16 bytes of memory per pixel."""


@dataclasses.dataclass(frozen=True)
class Tfds(Data):
    """A dataset of TensorFlow Datasets."""

    source: Literal["tfds"] = "tfds"
    name: str | None = None
    """Name of the dataset, such as cifar10."""
    split: str = "train"
    """Name of the split, such as train or train[:90%]."""
    data_dir: LocalPath | None = None
    """Where datasets are prepared; ~/tensorflow_datasets by default."""
    image_size: int | None = None
    """Crop images to a square and resize them to this size."""
    max_pixels: int = 500_000_000
    """Refuse images with more pixels. Reading an image takes up to 16 bytes of memory per pixel."""


@dataclasses.dataclass(frozen=True)
class Unknown(Data):
    """No data yet, for imported weights."""

    source: None = None
