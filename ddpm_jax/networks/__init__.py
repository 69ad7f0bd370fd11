"""Networks in flax.linen, which the rest of the package does not import."""

import flax.linen

from ddpm_jax.networks import dit
from ddpm_jax.networks.autoencoder import AutoencoderKL
from ddpm_jax.networks.context import Context
from ddpm_jax.networks.dit import DiT
from ddpm_jax.networks.layers import dropout, timestep_embedding
from ddpm_jax.networks.unet import UNet, with_label

Network = flax.linen.Module
"""Called as network(x_t [B, ...], t [B], labels=None, *, train=False, dropout_keys=None) -> [B, ...], by `init` and `apply`.

`dropout_keys` is part of the protocol: training passes typed keys [B], one per example, to every network. A network without
dropout ignores them; others call `h = networks.dropout(dropout_keys, "hidden", 0.1)(h)`, the identity for None.
"""

__all__ = ["AutoencoderKL", "Context", "DiT", "Network", "UNet", "dit", "dropout", "timestep_embedding", "with_label"]
