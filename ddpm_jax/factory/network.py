"""Config -> the network, and the network with its parameters and labels as a Denoise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import guidance, networks
from ddpm_jax.config import Config
from ddpm_jax.denoiser import Denoise, make_denoise
from ddpm_jax.schedules import HasLevels


def make_network(config: Config, image_shape: Sequence[int]) -> networks.Network:
    """The network for images of (H, W, C).

    It has 2 C output channels where it learns a variance, and a label more than there are classes, which stands for none.
    """
    network, learned = config.network, config.diffusion.variance.startswith("learned")
    return networks.UNet(
        out_channels=2 * image_shape[-1] if learned else None,
        num_classes=None if network.num_classes is None else network.num_classes + 1,  # the last stands for none of them
        channels=network.channels,
        multipliers=network.multipliers,
        num_blocks=network.num_blocks,
        attention_resolutions=network.attention_resolutions,
        num_heads=network.num_heads,
        num_groups=network.num_groups,
        dropout=network.dropout,
        dtype=jnp.dtype(network.dtype),
        attention_levels=network.attention_levels,
        head_dim=network.head_dim,
        middle=network.middle,
        norm_eps=network.norm_eps,
        time_scale=1000.0 if config.diffusion.schedule.startswith("continuous") else 1.0,
        freq_shift=network.freq_shift,
        cos_first=network.cos_first,
        time_scale_shift=network.time_scale_shift,
        symmetric_padding=network.symmetric_padding,
        residual_downsampling=network.residual_downsampling,
        residual_upsampling=network.residual_upsampling,
        remat=config.train.remat,
    )


def bind(
    config: Config,
    network: networks.Network,
    schedule: HasLevels,
    params: Any,
    clip: bool,
    labels: jax.Array | None = None,
    scale: float = 1.0,
) -> Denoise:
    """The network with its parameters and labels, as samplers and the likelihood take it.

    Args:
        config: Says what the network was trained to predict.
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
