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
        case kinds.Folder(path=path, image_size=image_size, max_pixels=max_pixels):
            size = given(image_size, "--data.image_size", "the size to resize images to")
            with as_usage_error("--data.path"):
                return CachedSource(files.folder(given(path, "--data.path", "a folder of images"), size, max_pixels))
        case kinds.Tfds(split=split, data_dir=data_dir, image_size=image_size, max_pixels=max_pixels):
            name = given(data.name, "--data.name", "a dataset such as cifar10")
            with as_usage_error("--data.name"):
                return CachedSource(tfds.tfds(name, split, data_dir, image_size, max_pixels))
    raise UsageError(f"--data.source: expected digits, npz, folder or tfds, received {data.source}")


def check_labels(network: Network, source: sources.Source) -> None:
    """Raises UsageError if the network is conditioned on classes that the data don't have, or lacks some of them."""
    known, there = network.num_classes, source.num_classes
    if known is not None and there is None:
        raise UsageError(f"--network.num_classes: expected None for data without labels, received {known}")
    if known is not None and there is not None and there > known:
        raise UsageError(f"--network.num_classes: expected {there}, as the data have, received {known}")


def describe_classes(network: Network, source: sources.Source) -> str | None:
    """The classes of the data in a line for the user, and whether the network is conditioned on them; None without labels."""
    if source.num_classes is None:
        return None
    found = "1 class" if source.num_classes == 1 else f"{source.num_classes} classes"
    if names := getattr(source, "classes", None):
        found += f": {', '.join(names) if len(names) <= 12 else ', '.join([*names[:10], '...', names[-1]])}"
    if network.num_classes is None:
        found += f"; not used unless --network.num_classes {source.num_classes} is given"
    return found


def given(value: T | None, option: str, what: str) -> T:
    """Returns the value of an option, or raises UsageError if it is missing."""
    if value is None:
        raise UsageError(f"{option}: expected {what}, received nothing")
    return value
