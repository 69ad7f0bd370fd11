"""The folder of a run: the config that it was begun with, and a lock while it is alive."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from ddpm_jax._version import __version__
from ddpm_jax.config import Config, changes, from_dict
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.devices import distributed
from ddpm_jax.devices.files import atomic_write
from ddpm_jax.runs.checkpoints import Checkpoints


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json, at once or not at all."""
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    atomic_write(workdir / "config.json", lambda file: file.write(text.encode()))


def check_changes(begun_with: Config, config: Config) -> list[str]:
    """Compares the config that a run was begun with and that to go on with.

    Returns:
        The differences that are allowed.

    Raises:
        UsageError: others.
    """
    allowed, refused = changes(begun_with, config)
    if refused:
        raise UsageError(f"--workdir: expected the config that the run was begun with, received {'; '.join(refused)}")
    return allowed


def _compare_with_written(workdir: pathlib.Path, config: Config) -> list[str]:
    written = workdir / "config.json"
    with as_usage_error("--workdir"):
        return check_changes(from_dict(json.loads(written.read_text())), config) if written.exists() else []


@contextlib.contextmanager
def claim(config: Config) -> Iterator[pathlib.Path]:
    """Makes a workdir this run's own while the context lasts.

    Args:
        config: The run's. Where the workdir holds a run already, it must be the same but for MAY_CHANGE.

    Yields:
        The workdir.

    Raises:
        UsageError: the workdir belongs to another config or to a run that is alive, or cannot be written.
    """
    workdir = pathlib.Path(config.workdir)
    _compare_with_written(workdir, config)
    with as_usage_error("--workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process ends, however
        except OSError:
            raise UsageError(f"--workdir: expected a workdir of no other run, {workdir} is in use") from None
        for change in _compare_with_written(workdir, config):  # again, now that nobody else can write it
            print(f"changed since the last start: {change}")
        yield workdir


def checkpoint_metadata(config: Config, image_shape: Sequence[int]) -> dict[str, Any]:
    """What a checkpoint says of its run, as JSON."""
    return {"config": dataclasses.asdict(config), "image_shape": list(image_shape), "version": __version__}


def restore(
    checkpoints: Checkpoints, config: Config, image_shape: Sequence[int], parts: dict[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Loads the newest whole checkpoint of a run, if it is the same run.

    Args:
        checkpoints: The run's.
        config: To go on with.
        image_shape: (H, W, C) of its data.
        parts: For each part its shapes, dtypes and shardings.

    Returns:
        The parts, None before the first checkpoint, of imported weights the parameters alone; and what was said beside them.

    Raises:
        UsageError: it was begun with another config or other images, or cannot be read.
    """
    with as_usage_error("--workdir"):
        latest = distributed.from_first_process(lambda: -1 if checkpoints.latest is None else checkpoints.latest)
        if latest < 0:
            return None, {}
        checkpoints.mark_damaged(after=latest)
        begun = checkpoints.metadata(latest)
        check_changes(from_dict(begun["config"]), config)
        if begun["image_shape"] != list(image_shape):
            raise UsageError(f"--data: expected images of {begun['image_shape']}, as before, received {tuple(image_shape)}")
        if begun.get("version", __version__) != __version__:
            print(f"changed since the last start: ddpm_jax {begun['version']} -> {__version__}")
        is_imported = begun["config"]["data"]["source"] is None  # how it is trained is open until it is
        return checkpoints.load(latest, {"params": parts["params"]} if is_imported else parts), begun
