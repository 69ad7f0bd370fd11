"""Data sets of TensorFlow Datasets as sources."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.data.decoding import MAX_PIXELS_OF_DATA, decode
from ddpm_jax.data.files import check_image_size
from ddpm_jax.data.sources import Source


def tfds(
    name: str,
    split: str = "train",
    data_dir: str | PathLike[str] | None = None,
    image_size: int | None = None,
    max_pixels: int | None = MAX_PIXELS_OF_DATA,
) -> Source:
    """A data set of TensorFlow Datasets, prepared in the ArrayRecord format; TensorFlow is not needed to read it.

    Args:
        name: The name of the data set, such as "cifar10", "lsun/church_outdoor" or "cifar10:3.0.2". Without a version, the
            newest prepared one is used.
        split: A split or a part of one, such as "train" or "train[:90%]".
        data_dir: The folder of prepared data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
        image_size: Height and width of the items, to which the central square is resized. None keeps the images' size, which
            must then be the same for all.
        max_pixels: Images with more pixels are refused when they are read; None for no limit.

    Returns:
        The source, with the features `image` and, if it is a class label, `label`.

    Raises:
        FileNotFoundError: the data set is not prepared, or is in another format; the message has the command to prepare it.
        ValueError: an unknown name, configuration or split; a data set without 8-bit images; images of various shapes and no
            image_size.
    """
    import tensorflow_datasets  # here, because the import takes a second

    builder = tensorflow_datasets.builder_from_directory(_newest_version(name, data_dir))
    if tensorflow_datasets.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise FileNotFoundError(
            f"tfds: {name} is prepared in {builder.data_dir}, but not as ArrayRecord; to move it away and prepare it again:"
            f" mv {shlex.quote(builder.data_dir)} {shlex.quote(builder.data_dir + '.old')} &&"
            f" {_prepare_command(name, data_dir)}"
        )
    features = dict(builder.info.features)
    _check_features(name, features, image_size)
    encoded = tensorflow_datasets.decode.SkipDecoding()  # TFDS would decode with OpenCV or Pillow, whichever is installed
    try:
        records = builder.as_data_source(split, decoders={"image": encoded}, file_format="array_record")
    except ValueError as error:
        names = ", ".join(builder.info.splits)
        raise ValueError(f"tfds: expected a split of {name}, such as {names}, received {split!r}") from error
    label, num_classes, classes = features.get("label"), None, None
    if isinstance(label, tensorflow_datasets.features.ClassLabel) and label.num_classes is not None:
        num_classes, classes = label.num_classes, label.names
    Image.init()  # as in `files.folder`
    channels = 1 if features["image"].shape[-1] == 1 else 3
    return TfdsRecords(records, image_size, channels, num_classes, f"{name} {split}", classes, max_pixels)


def _newest_version(name: str, data_dir: str | PathLike[str] | None) -> PathLike[str]:
    """The folder of a prepared data set, found by its name alone, since its builder may need TensorFlow."""
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
    """The error for a missing data set: its name or configuration is unknown, or it is not prepared."""
    import tensorflow_datasets

    dataset, _, config = name.partition(":")[0].partition("/")
    try:
        configs = tensorflow_datasets.builder_cls(dataset).builder_configs
    except tensorflow_datasets.core.DatasetNotFoundError:
        return ValueError(f"tfds: {name!r} is neither prepared in {root} nor known to TensorFlow Datasets")
    if (configs or config) and config not in configs:
        names = ", ".join(f"{dataset}/{known}" for known in configs) if configs else dataset
        return ValueError(f"tfds: expected one of {names}, received {name!r}")
    command = _prepare_command(name, data_dir)
    return FileNotFoundError(f"tfds: {name} is not prepared in {root}; to prepare it: {command}")


def _prepare_command(name: str, data_dir: str | PathLike[str] | None) -> str:
    """The shell command that prepares a data set; not `tfds build`, which needs apache-beam."""
    place = "" if data_dir is None else f", data_dir={json.dumps(os.fspath(data_dir))}"
    builder = f'tfds.builder({json.dumps(name)}, file_format="array_record"{place})'
    code = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'pip install -e ".[prepare]" && python -c {shlex.quote(code)}'


def _check_features(name: str, features: dict[str, Any], image_size: int | None) -> None:
    """Raises ValueError if a data set has no 8-bit images, or images of various shapes that are not resized."""
    import tensorflow_datasets

    image = features.get("image")
    if not isinstance(image, tensorflow_datasets.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(f"tfds: expected a feature `image` of 8-bit images, {name} has {', '.join(features)}")
    if image_size is not None:
        check_image_size("tfds", image_size)
    elif None in image.shape:
        raise ValueError(f"tfds: expected an image_size for {name}, whose images differ in shape, received None")


class TfdsRecords(Source):
    """A source of TFDS records whose images are decoded on access.

    Args:
        records: Examples with `image`, an encoded image, as bytes.
        image_size: Height and width of the items, >= 1; None for images that all have one shape.
        channels: 1 or 3.
        num_classes: The number of classes of the examples' `label`; None for items without labels.
        name: The name of the data set, for error messages.
        classes: The names of the classes, by label, or None.
        max_pixels: Images with more pixels are refused; None for no limit.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        image_size: int | None,
        channels: int,
        num_classes: int | None,
        name: str = "tfds",
        classes: Sequence[str] | None = None,
        max_pixels: int | None = MAX_PIXELS_OF_DATA,
    ):
        self._records = records
        self._image_size = image_size
        self._channels = channels
        self._name = name
        self._max_pixels = max_pixels
        self.num_classes, self.classes = num_classes, None if classes is None else tuple(classes)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[index]
        name = f"{self._name}: record {index}"
        item = {"image": decode(io.BytesIO(record["image"]), name, self._channels, self._image_size, self._max_pixels)}
        if self.num_classes is not None:
            item["label"] = np.asarray(record["label"], np.int32)
        return item
