"""The two blocks of the UNet of Ho et al. 2020 (appendix B), images NHWC: a residual block and self-attention."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.networks.cpu import barrier, swish
from ddpm_jax.networks.layers import Conv, Dtype, GroupNorm, dropout, initializer


class ResidualBlock(nn.Module):
    """Norm, swish, conv; add the time embedding; norm, swish, dropout, conv; add the input.

    Attributes:
        features: Output channels; if the input has another number, a 1x1 convolution adapts it.
        dropout: Probability that a feature is dropped in training.
        num_groups: Groups of the norms.
        norm_eps: Epsilon of the norms.
        time_scale_shift: Whether the time scales and shifts the output of the second norm instead of being added before it.
        resample: `halve` or `double`, applied to the input and before the first convolution; None keeps the size.
        dtype: Compute dtype.
    """

    features: int
    dropout: float
    num_groups: int
    norm_eps: float
    time_scale_shift: bool
    resample: Callable[[jax.Array], jax.Array] | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None, dropout_keys: jax.Array | None) -> jax.Array:
        """x [B, H, W, C], embedding [B, E] or None, keys [B] or None -> [B, H, W, features], or resampled."""
        norm = functools.partial(GroupNorm, self.num_groups, self.norm_eps)
        conv = functools.partial(Conv, self.features, self.dtype)
        drop = dropout(dropout_keys, "/".join(self.path), self.dropout)

        # Norm, swish, conv.
        h = norm(name="norm1")(x, swish)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        z = conv(name="conv1").lazily(h)

        # Add the time embedding, or scale and shift by it after the norm (section 3.1 of Dhariwal & Nichol 2021).
        scale_shift = None
        if embedding is not None:
            width = (2 if self.time_scale_shift else 1) * self.features
            time = nn.Dense(width, kernel_init=initializer(), dtype=self.dtype, name="time")(nn.swish(embedding))
            z, scale_shift = (z, jnp.split(time, 2, axis=-1)) if self.time_scale_shift else (z + time, None)

        # Norm, swish, dropout, conv.
        h = norm(name="norm2")(z, swish, drop, scale_shift=scale_shift)
        h = conv(scale=0.0, name="conv2")(h)

        # Add the input.
        if x.shape[-1] != self.features:
            x = conv(size=1, name="shortcut")(x)
        return barrier(x + h)


class Attention(nn.Module):
    """Self-attention over all positions of the image (Wang et al. 2018), added to its input.

        x + W_o softmax(q k^T / sqrt(d)) v,    q, k, v = W_q h, W_k h, W_v h,    h = norm(x),    d channels per head

    Attributes:
        num_heads: Number of heads, which divides the channels.
        num_groups: Groups of the norm; None for no norm.
        norm_eps: Epsilon of the norm.
        dtype: Compute dtype.
    """

    num_heads: int
    num_groups: int | None
    norm_eps: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        if channels % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of {channels} channels, received {self.num_heads}")
        dense = functools.partial(nn.Dense, channels, dtype=self.dtype)

        # Norm; the positions become one axis.
        h = barrier(x) if self.num_groups is None else GroupNorm(self.num_groups, self.norm_eps, name="norm")(x)
        h = h.reshape(batch, height * width, channels)

        # Queries, keys and values, by head.
        heads = (batch, height * width, self.num_heads, channels // self.num_heads)
        q, k, v = (dense(kernel_init=initializer(), name=name)(h).reshape(heads) for name in ("query", "key", "value"))

        # softmax(q k^T / sqrt(d)) v, with the softmax in float32.
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = nn.softmax(logits, axis=-1).astype(self.dtype)
        h = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(batch, height, width, channels)

        # Output projection; add the input.
        return barrier(x + dense(kernel_init=initializer(0.0), name="output")(h))
