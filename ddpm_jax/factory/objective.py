"""Config -> the Objective that train.py trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ddpm_jax import objectives
from ddpm_jax.config import Config
from ddpm_jax.devices import sharding
from ddpm_jax.factory.diffusion import make_loss, make_schedule, make_times
from ddpm_jax.factory.network import make_network
from ddpm_jax.factory.sampler import make_generator
from ddpm_jax.training.objective import Objective


def make_objective(config: Config, image_shape: Sequence[int]) -> Objective:
    """The objective: a diffusion model of images of (H, W, C).

    Raises:
        UsageError: options that are incompatible.
    """
    schedule = make_schedule(config.diffusion)
    network = make_network(config, image_shape)
    loss = make_loss(config.loss, config.diffusion, schedule)
    memory, draw_times = make_times(config.loss, config.diffusion, schedule, config.train.batch_size)
    generate = make_generator(config, network, schedule, image_shape)

    def preview(params: Any, key: jax.Array, frozen: Any) -> jax.Array:
        return generate(key, params, sharding.put_ids(sharding.make_mesh(), range(config.sample.num)))

    num_times = 1.0 if schedule.num_steps is None else schedule.num_steps
    return objectives.diffusion(
        network, image_shape, loss, draw_times, num_times, preview, memory=memory,
        num_classes=config.network.num_classes, label_dropout=config.train.label_dropout, random_flip=config.data.random_flip,
    )  # fmt: skip
