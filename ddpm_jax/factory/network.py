"""Config -> the network, and the network with its parameters and labels as a Denoise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import guidance, networks
from ddpm_jax.config import Config
from ddpm_jax.config import network as config_network
from ddpm_jax.config.cli import UsageError
from ddpm_jax.denoiser import Denoise, make_denoise
from ddpm_jax.schedules import HasLevels


def make_network(config: Config, image_shape: Sequence[int]) -> networks.Network:
    """The network for images of (H, W, C).

    It has 2 C output channels if it learns the variance, and one label more than there are classes: the unconditional one.
    """
    channels = 2 * image_shape[-1] if config.diffusion.variance.startswith("learned") else None
    match config.network:
        case config_network.UNet() as network:
            fields = {field: value for field, value in vars(network).items() if field != "kind"}
            fields["dtype"] = jnp.dtype(network.dtype)
            fields["num_classes"] = None if network.num_classes is None else network.num_classes + 1
            time_scale = 1000.0 if config.diffusion.schedule.startswith("continuous") else 1.0
            return networks.UNet(**fields, out_channels=channels, time_scale=time_scale, remat=config.train.remat)
    raise UsageError(f"--network.kind: expected unet, received {config.network.kind}")


def bind(
    config: Config,
    network: networks.Network,
    schedule: HasLevels,
    params: Any,
    clip: bool,
    labels: jax.Array | None = None,
    scale: float = 1.0,
) -> Denoise:
    """The network with its parameters and labels as a Denoise.

    Args:
        config: The run's, with the network's prediction parameterization.
        network, schedule, params: The model.
        clip: Whether x0 is clipped to [-1, 1].
        labels: Integers [B], or one for all; negative ones are unconditional, and None makes all so. Ignored by an
            unconditional network.
        scale: Classifier-free guidance scale.
    """
    none = config.network.num_classes

    def predict(x_t: jax.Array, t: jax.Array, labels: jax.Array | None) -> Any:
        return network.apply(params, x_t, t) if labels is None else network.apply(params, x_t, t, labels)

    if none is None:
        labels = unconditional = None
    else:
        labels = None if labels is None else jnp.where(labels < 0, none, labels)
        unconditional = jnp.int32(none)
    bound = guidance.conditional(predict, labels, unconditional, scale)
    return make_denoise(schedule, bound, config.diffusion.prediction, clip, config.diffusion.variance)
