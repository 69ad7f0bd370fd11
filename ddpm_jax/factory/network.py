"""Config -> the network, and the network with its parameters and labels as a Denoise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import guidance, networks, preconditioning
from ddpm_jax.config import Config
from ddpm_jax.config import network as config_network
from ddpm_jax.config.cli import UsageError
from ddpm_jax.denoiser import Denoise, clipped, make_denoise
from ddpm_jax.schedules import HasLevels


def make_network(config: Config, image_shape: Sequence[int]) -> networks.Network:
    """The network for images of (H, W, C).

    It has 2 C output channels if it learns the variance, and one label more than there are classes: the unconditional one.
    """
    network, diffusion = config.network, config.diffusion
    fields = {field: value for field, value in vars(network).items() if field != "kind"} | {
        "dtype": jnp.dtype(network.dtype),
        "num_classes": None if network.num_classes is None else network.num_classes + 1,
        "out_channels": 2 * image_shape[-1] if diffusion.variance.startswith("learned") else None,
        "time_scale": 1000.0 if diffusion.is_continuous or diffusion.prediction == "edm" else 1.0,
        "remat": config.train.remat,
    }
    match network:
        case config_network.UNet():
            return networks.UNet(**fields)
        case config_network.DiT():
            return networks.DiT(**fields)
    raise UsageError(f"--network.kind: expected unet or dit, received {network.kind}")


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
    bound, diffusion = guidance.conditional(predict, labels, unconditional, scale), config.diffusion
    if diffusion.prediction == "edm":
        denoise = preconditioning.edm(bound, diffusion.sigma_data)
        return clipped(denoise) if clip else denoise
    return make_denoise(schedule, bound, diffusion.prediction, clip, diffusion.variance)
