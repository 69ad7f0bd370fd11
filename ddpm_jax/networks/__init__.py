"""Networks in flax.linen; nothing else in the package knows flax."""

import flax.linen

from ddpm_jax.networks.layers import dropout, timestep_embedding
from ddpm_jax.networks.unet import UNet, with_label

Network = flax.linen.Module
"""Called as network(x_t [B, ...], t [B], labels=None, *, train=False, dropout_keys=None) -> [B, ...], by `init` and `apply`.

Training passes dropout_keys, typed keys [B], one per example, to every network; one without dropout ignores them. In another,
`h = networks.dropout(dropout_keys, "hidden", 0.1)(h)` drops features, or nothing if they are None.
"""

__all__ = ["Network", "UNet", "dropout", "timestep_embedding", "with_label"]
