"""Config -> the data source."""

from __future__ import annotations

from typing import TypeVar

from ddpm_jax.config import Data, Network
from ddpm_jax.config import data as kinds
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.data import files, sources, tfds
from ddpm_jax.data.cache import CachedSource

T = TypeVar("T")


def make_source(data: Data) -> sources.Source:
    """The images. Raises UsageError if they are missing or not as expected."""
    match data:
        case kinds.Digits(split=split):
            with as_usage_error("--data.split"):
                return sources.digits(split)
        case kinds.Npz(path=path):
            with as_usage_error("--data.path"):
                return sources.npz(given(path, "--data.path", "an .npz file"))
        case kinds.Folder(path=path, image_size=image_size):
            size = given(image_size, "--data.image_size", "the size to resize images to")
            with as_usage_error("--data.path"):
                return CachedSource(files.folder(given(path, "--data.path", "a folder of images"), size))
        case kinds.Tfds(split=split, data_dir=data_dir, image_size=image_size):
            name = given(data.name, "--data.name", "a dataset such as cifar10")
            with as_usage_error("--data.name"):
                return CachedSource(tfds.tfds(name, split, data_dir, image_size))
    raise UsageError(f"--data.source: expected digits, npz, folder or tfds, received {data.source}")


def check_labels(network: Network, source: sources.Source) -> None:
    """Raises UsageError if the network is conditioned on classes that the data don't have, or lacks some of them."""
    known, there = network.num_classes, source.num_classes
    if known is not None and there is None:
        raise UsageError(f"--network.num_classes: expected None for data without labels, received {known}")
    if known is not None and there is not None and there > known:
        raise UsageError(f"--network.num_classes: expected {there}, as the data have, received {known}")


def given(value: T | None, option: str, what: str) -> T:
    """Returns the value of an option, or raises UsageError if it is missing."""
    if value is None:
        raise UsageError(f"{option}: expected {what}, received nothing")
    return value
