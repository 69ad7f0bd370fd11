"""Networks in flax.linen; nothing else in the package knows flax."""

import flax.linen

from ddpm_jax.networks.layers import timestep_embedding
from ddpm_jax.networks.unet import UNet, with_label

Network = flax.linen.Module
"""Called as network(x_t [B, ...], t [B], labels=None, *, train=False) -> [B, ...], by `init` and `apply`."""

__all__ = ["Network", "UNet", "timestep_embedding", "with_label"]
