"""A trained model, from nothing but its workdir."""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ddpm_jax import factory, networks, sharding
from ddpm_jax.checkpoint import Checkpoints
from ddpm_jax.config import Config, from_dict
from ddpm_jax.schedules import Schedule
from ddpm_jax.training.state import init_params


class Trained(NamedTuple):
    """What the last checkpoint of a run holds, and what its config names.

    Attributes:
        config: The config that it was saved with.
        step: How many steps it was trained.
        image_shape: (H, W, C).
        network: The network.
        schedule: The noise schedule.
        params: The parameters, on every device of the mesh.
        mesh: All devices.
    """

    config: Config
    step: int
    image_shape: tuple[int, int, int]
    network: networks.Network
    schedule: Schedule
    params: Any
    mesh: Mesh


def load(workdir: str | os.PathLike[str], weights: str = "ema") -> Trained:
    """Loads the newest checkpoint.

    Args:
        workdir: Where the model was trained, or is being trained.
        weights: "ema", the moving average, or "raw", the parameters as they are.

    Raises:
        ValueError: there is no checkpoint, or it cannot be read.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"expected a folder that train.py has saved checkpoints in, received {workdir}")
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest
        if step is None:
            raise ValueError(f"expected a checkpoint in {folder}, there is none yet")
        run = checkpoints.metadata(step)
        config, image_shape = from_dict(run["config"]), tuple(run["image_shape"])
        network = factory.make_network(config, image_shape)
        mesh = sharding.make_mesh()
        init = functools.partial(init_params, jax.random.key(0), network, image_shape)
        abstract = sharding.abstract(init, sharding.replicated(mesh))
        part = "params" if weights == "raw" else "ema"
        params = checkpoints.load(step, {part: abstract})[part]
    return Trained(config, step, image_shape, network, factory.make_schedule(config.diffusion), params, mesh)
