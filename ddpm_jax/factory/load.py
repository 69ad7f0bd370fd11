"""A workdir -> its trained model."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ddpm_jax import networks
from ddpm_jax.config import Config, from_dict
from ddpm_jax.config.cli import UsageError, as_usage_error, take_option
from ddpm_jax.config.paths import local
from ddpm_jax.devices import sharding
from ddpm_jax.factory.diffusion import make_schedule
from ddpm_jax.factory.network import make_network
from ddpm_jax.factory.optimizer import make_averages, power_name
from ddpm_jax.objectives.diffusion import init_params
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.schedules import HasLevels
from ddpm_jax.training import snapshots


class LoadedRun(NamedTuple):
    """A checkpoint of a run, with the objects that its config names.

    Attributes:
        config: The config that it was saved with.
        step: Number of steps trained.
        image_shape: (H, W, C).
        network: The network.
        schedule: The noise schedule.
        params: The parameters, on every device of the mesh.
        mesh: All devices.
        average: Which EMA they are, or the raw parameters.
        classes: The names of the classes it was trained on, by label; None if they have none.
    """

    config: Config
    step: int
    image_shape: tuple[int, int, int]
    network: networks.Network
    schedule: HasLevels
    params: Any
    mesh: Mesh
    average: str
    classes: tuple[str, ...] | None = None


class SavedRun(NamedTuple):
    """A checkpoint before its arrays are read.

    Attributes:
        config: The config that it was saved with.
        step: Number of steps trained.
        image_shape: (H, W, C).
        classes: The names of the classes it was trained on, by label; None if they have none.
    """

    config: Config
    step: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...] | None = None


class CheckpointError(ValueError):
    """The checkpoint asked for is missing or damaged."""


class AverageError(ValueError):
    """The EMA asked for is not in the checkpoint, or cannot be reconstructed."""


def find(workdir: str | os.PathLike[str], checkpoint: int | str | None = None) -> SavedRun:
    """Finds a checkpoint of a run, with the config that it was saved with.

    Args:
        workdir: Where the model was trained, or is being trained.
        checkpoint: Its step, or "best" for that with the smallest mean training loss; the newest by default.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ValueError: the workdir has no checkpoints, or they cannot be read.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"expected a folder that train.py has saved checkpoints in, received {workdir}")
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest if checkpoint is None else _asked_for(checkpoints, checkpoint)
        if step is None:
            raise ValueError(f"expected a checkpoint in {folder}, there is none yet")
        run = checkpoints.metadata(step)
    classes = run.get("classes")
    return SavedRun(from_dict(run["config"]), step, tuple(run["image_shape"]), None if classes is None else tuple(classes))


def _asked_for(checkpoints: Checkpoints, checkpoint: int | str) -> int:
    try:
        return checkpoints.find(checkpoint)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def find_named(argv: Sequence[str], workdir: str) -> SavedRun | None:
    """The checkpoint that a command line names by --workdir and --checkpoint, so that its config gives the other defaults.

    Args:
        argv: The command line, without the program's name.
        workdir: If it names none.

    Returns:
        The checkpoint; None if there is none and help is asked for.

    Raises:
        UsageError: there is no such checkpoint, or it cannot be read.
    """
    chosen, checkpoint = take_option(argv, "--workdir")[0], take_option(argv, "--checkpoint")[0]
    try:
        with as_usage_error("--workdir"):
            workdir = workdir if chosen is None else local(chosen)
            newest = find(workdir)
        if checkpoint in (None, "None"):
            return newest
        with as_usage_error("--checkpoint"):
            return find(workdir, int(checkpoint) if checkpoint.isdecimal() else checkpoint)
    except UsageError:
        if {"-h", "--help"} & set(argv):
            return None
        raise


def load(workdir: str | os.PathLike[str], average: str | None = None, checkpoint: int | str | None = None) -> LoadedRun:
    """Loads a checkpoint.

    Args:
        workdir, checkpoint: As for `find`.
        average: Which EMA of the parameters, by name; the run's first by default. "raw": the parameters themselves. A
            number: the EMA of that width, reconstructed from snapshots.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        AverageError: there is no such average.
        ValueError: the workdir has no checkpoints, or they cannot be read.
    """
    config, step, image_shape, classes = find(workdir, checkpoint)
    network = make_network(config, image_shape)
    mesh = sharding.make_mesh()
    init = functools.partial(init_params, jax.random.key(0), network, image_shape)
    abstract = sharding.abstract(init, sharding.replicated(mesh))
    width = _number(average)
    with Checkpoints(pathlib.Path(workdir) / "checkpoints") as checkpoints:
        if width is None:
            part = part_of(average, list(make_averages(config.ema, config.train.batch_size)))
            params, average = checkpoints.load(step, {part: abstract})[part], part
        else:
            widths = {power_name(width): width for width in config.ema.power}
            try:
                params, average = snapshots.reconstruct(checkpoints, step, workdir, widths, width, abstract)
            except ValueError as error:
                raise AverageError(str(error)) from error
    return LoadedRun(config, step, image_shape, network, make_schedule(config.diffusion), params, mesh, average, classes)


def load_named(
    workdir: str,
    average: str | None,
    checkpoint: int | str | None,
    options: tuple[str, str, str] = ("--workdir", "--ema", "--checkpoint"),
) -> LoadedRun:
    """Loads the checkpoint that a command line names.

    Args:
        workdir, average, checkpoint: As for `load`.
        options: The options that gave them, for error messages.

    Raises:
        UsageError: an error of `load`, with the option that it is due to.
    """
    with as_usage_error(options[0]):
        try:
            return load(workdir, average, checkpoint)
        except AverageError as error:
            raise UsageError(f"{options[1]}: {error}") from error
        except CheckpointError as error:
            raise UsageError(f"{options[2]}: {error}") from error


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def part_of(average: str | None, names: Sequence[str]) -> str:
    """The part of a checkpoint that holds an EMA, one of the run's names. Raises AverageError if there is none."""
    if average == "raw":
        return "params"
    if average is not None and average not in names:
        raise AverageError(f"ema: expected {', '.join(names)}, raw or a width, received {average}")
    return f"ema_{names[0] if average is None else average}"
