"""A trained model, from nothing but its workdir."""

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
from ddpm_jax.devices import sharding
from ddpm_jax.factory.diffusion import make_schedule
from ddpm_jax.factory.network import make_network
from ddpm_jax.factory.optimizer import make_averages, power_name
from ddpm_jax.objectives.diffusion import init_params
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.schedules import HasLevels
from ddpm_jax.training import snapshots


class LoadedRun(NamedTuple):
    """What a checkpoint of a run holds, and what its config names.

    Attributes:
        config: The config that it was saved with.
        step: How many steps it was trained.
        image_shape: (H, W, C).
        network: The network.
        schedule: The noise schedule.
        params: The parameters, on every device of the mesh.
        mesh: All devices.
        average: Which parameters they are.
    """

    config: Config
    step: int
    image_shape: tuple[int, int, int]
    network: networks.Network
    schedule: HasLevels
    params: Any
    mesh: Mesh
    average: str


def load(workdir: str | os.PathLike[str], average: str | None = None, checkpoint: int | str | None = None) -> LoadedRun:
    """Loads a checkpoint.

    Args:
        workdir: Where the model was trained, or is being trained.
        average: Which moving average of the parameters, by name; the run's first by default. "raw": the parameters as they
            are. A number: that of this width, put together from snapshots.
        checkpoint: Its step, or "best" for that of the smallest mean training loss; the newest by default.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, or it has no such average.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"expected a folder that train.py has saved checkpoints in, received {workdir}")
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest if checkpoint is None else checkpoints.find(checkpoint)
        if step is None:
            raise ValueError(f"expected a checkpoint in {folder}, there is none yet")
        run = checkpoints.metadata(step)
        config, image_shape = from_dict(run["config"]), tuple(run["image_shape"])
        network = make_network(config, image_shape)
        mesh = sharding.make_mesh()
        init = functools.partial(init_params, jax.random.key(0), network, image_shape)
        abstract = sharding.abstract(init, sharding.replicated(mesh))
        width = _number(average)
        if width is None:
            part = part_of(average, list(make_averages(config.ema, config.train.batch_size)))
            params, average = checkpoints.load(step, {part: abstract})[part], part
        else:
            widths = {power_name(width): width for width in config.ema.power}
            params, average = snapshots.reconstruct(checkpoints, step, workdir, widths, width, abstract)
    return LoadedRun(config, step, image_shape, network, make_schedule(config.diffusion), params, mesh, average)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def part_of(average: str | None, names: Sequence[str]) -> str:
    """The part of a checkpoint that holds an average, of those that a run has. Raises ValueError where it has none such."""
    if average == "raw":
        return "params"
    if average is not None and average not in names:
        raise ValueError(f"ema: expected {', '.join(names)}, raw or a width, received {average}")
    return f"ema_{names[0] if average is None else average}"
