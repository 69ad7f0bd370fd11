"""The folder of a run: its config, and a lock while the run is alive."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax._version import __version__
from ddpm_jax.config import Config, changes, from_dict, read_json
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.devices import distributed, sharding
from ddpm_jax.devices.files import atomic_write
from ddpm_jax.runs.checkpoints import Checkpoints


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json atomically."""
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    atomic_write(workdir / "config.json", lambda file: file.write(text.encode()))


def check_changes(before: Config, config: Config) -> list[str]:
    """Compares the config of a run with the one to resume it with.

    Args:
        before: The config the run was started with.
        config: The config to resume it with.

    Returns:
        The differences, all of them allowed.

    Raises:
        UsageError: a difference is not allowed.
    """
    allowed, refused = changes(before, config)
    if refused:
        raise UsageError(f"--workdir: expected the config the run was started with, received {'; '.join(refused)}; "
                         "without --config and these options it resumes, another --workdir begins a new run")  # fmt: skip
    return allowed


def _compare_with_written(workdir: pathlib.Path, config: Config) -> list[str]:
    written = workdir / "config.json"
    with as_usage_error("--workdir"):  # a folder that cannot be looked into
        return check_changes(read_json(written), config) if written.exists() else []


@contextlib.contextmanager
def claim(config: Config) -> Iterator[pathlib.Path]:
    """Locks a workdir for this run within the context.

    Args:
        config: The config of the run. If the workdir already holds a run, only the options in MAY_CHANGE may differ.

    Yields:
        The workdir.

    Raises:
        UsageError: the workdir belongs to another config, is in use by another run, or cannot be written.
    """
    workdir = pathlib.Path(config.workdir)
    _compare_with_written(workdir, config)
    with as_usage_error("--workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system however the process ends
        except OSError:
            raise UsageError(f"--workdir: expected a workdir of no other run, {workdir} is in use") from None
        for change in _compare_with_written(workdir, config):  # again, now that no other run can write it
            print(f"changed since the last start: {change}")
        yield workdir


def checkpoint_metadata(config: Config, image_shape: Sequence[int], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """The JSON stored beside a checkpoint: the config, the images' shape, the names of the classes, and the version."""
    names = None if classes is None else list(classes)
    return {"config": dataclasses.asdict(config), "image_shape": list(image_shape), "classes": names, "version": __version__}


def restore(
    checkpoints: Checkpoints,
    config: Config,
    image_shape: Sequence[int],
    parts: dict[str, Any],
    classes: Sequence[str] | None = None,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Loads the newest intact checkpoint of a run.

    Args:
        checkpoints: The checkpoints of the run.
        config: The config to resume with.
        image_shape: (H, W, C) of the data.
        parts: The shapes, dtypes and shardings of each part.
        classes: The names of the classes of the data, by label, or None.

    Returns:
        The parts (None before the first checkpoint; only the parameters if they were imported) and the JSON beside them.

    Raises:
        UsageError: the checkpoint is of another config, or of other images or classes, or cannot be read.
    """
    with as_usage_error("--workdir"):
        latest = distributed.from_first_process(lambda: -1 if checkpoints.latest is None else checkpoints.latest)
        if latest < 0:
            return None, {}
        checkpoints.mark_damaged(after=latest)
        metadata = checkpoints.metadata(latest)
        check_changes(from_dict(metadata["config"]), config)
        if metadata["image_shape"] != list(image_shape):
            raise UsageError(f"--data: expected images of {metadata['image_shape']}, as before, received {tuple(image_shape)}")
        known = metadata.get("classes")  # None in older checkpoints
        if config.network.num_classes is not None and known is not None and known != (classes and list(classes)):
            received = f"the classes {', '.join(classes)}" if classes else "classes without names"
            raise UsageError(f"--data: expected the classes {', '.join(known)}, as before, received {received}")
        if metadata.get("version", __version__) != __version__:
            print(f"changed since the last start: ddpm_jax {metadata['version']} -> {__version__}")
        if metadata["config"]["data"]["source"] is None:  # imported weights have no optimizer state yet
            return checkpoints.load(latest, {"params": parts["params"]}), metadata
        new = {name for name in parts if name.startswith("ema_")} - checkpoints.parts(latest)
        loaded = checkpoints.load(latest, {name: part for name, part in parts.items() if name not in new})
        for name in sorted(new):
            print(f"the new EMA {name.removeprefix('ema_')} starts at the parameters of step {latest}")
            layout = jax.tree.map(lambda a: a.sharding, parts[name])
            loaded[name] = sharding.create(functools.partial(jax.tree.map, jnp.copy), layout, loaded["params"])
        return loaded, metadata
