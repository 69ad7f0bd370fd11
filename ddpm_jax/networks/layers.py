"""The parts of the UNet of Ho et al. 2020 (appendix B), images NHWC.

Parameters are float32; `dtype` is that of convolutions and products. Norms and softmax are computed in float32.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = jnp.dtype | type


def initializer(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform with variance scale / mean(fan_in, fan_out); zeros for scale 0, where the authors' code has scale 1e-10."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform") if scale > 0 else nn.initializers.zeros


def timestep_embedding(t: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal embedding of the time step (section 3.5 of Vaswani et al. 2017, as DDPM's code orders it).

        [sin(t f_0), ..., sin(t f_{n-1}), cos(t f_0), ..., cos(t f_{n-1})],    f_i = 10000^(-i / (n - 1)),    n = dim / 2

    Args:
        t: [B], integers or floats, not scaled.
        dim: Even, at least 4.

    Returns:
        float32 [B, dim].

    Raises:
        ValueError: dim is odd or below 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim: expected an even number, at least 4, received {dim}")
    half = dim // 2
    frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
    angle = t.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def conv(features: int, dtype: Dtype, *, size: int = 3, stride: int = 1, scale: float = 1.0, name: str | None = None):
    """A convolution with TensorFlow's SAME padding: for size 3 and stride 2 on even sizes, 0 before and 1 after."""
    return nn.Conv(features, (size, size), (stride, stride), "SAME", kernel_init=initializer(scale), dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) in float32, epsilon 1e-6, with a scale and a bias for each channel.

    Sums over space come first, channel by channel, and sums over the group's channels follow on what is left of the data:
    so the data are read twice and written once, in the order in which they lie in memory.

    Attributes:
        num_groups: Divides the channels.
    """

    num_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, C] -> float32 [B, H, W, C]."""
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32).reshape(batch, height * width, channels)

        def over_group(channel_mean):
            mean = channel_mean.reshape(batch, self.num_groups, -1).mean(axis=2, keepdims=True)
            return jnp.broadcast_to(mean, (batch, self.num_groups, channels // self.num_groups)).reshape(batch, channels)

        mean = over_group(x.mean(axis=1))
        variance = jnp.maximum(over_group((x * x).mean(axis=1)) - mean * mean, 0.0)
        gain = jax.lax.rsqrt(variance + 1e-6) * scale[None]
        y = x * gain[:, None] + (bias[None] - mean * gain)[:, None]
        return y.reshape(batch, height, width, channels)


class ResidualBlock(nn.Module):
    """norm, swish, conv; add the time; norm, swish, dropout, conv; add the input.

    Attributes:
        features: Output channels; where the input has another number, a 1x1 convolution adapts it.
        dropout: Probability that a feature is dropped in training.
        num_groups: Of the norms.
        dtype: Of the computation.
    """

    features: int
    dropout: float
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        """X [B, H, W, C], embedding [B, E] -> [B, H, W, features]."""
        h = nn.swish(GroupNorm(self.num_groups, name="norm1")(x)).astype(self.dtype)
        h = conv(self.features, self.dtype, name="conv1")(h)
        time = nn.Dense(self.features, kernel_init=initializer(), dtype=self.dtype, name="time")(nn.swish(embedding))
        h = h + time[:, None, None, :]
        h = nn.swish(GroupNorm(self.num_groups, name="norm2")(h)).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.features, self.dtype, scale=0.0, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, self.dtype, size=1, name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over all positions of the image (Wang et al. 2018), added to its input.

    Attributes:
        num_heads: Divides the channels.
        num_groups: Of the norm.
        dtype: Of the computation.
    """

    num_heads: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        if channels % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of {channels} channels, received {self.num_heads}")
        h = GroupNorm(self.num_groups, name="norm")(x).astype(self.dtype).reshape(batch, height * width, channels)

        def project(name):
            h_projected = nn.Dense(channels, kernel_init=initializer(), dtype=self.dtype, name=name)(h)
            return h_projected.reshape(batch, height * width, self.num_heads, channels // self.num_heads)

        q, k, v = project("query"), project("key"), project("value")
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = nn.softmax(logits, axis=-1).astype(self.dtype)
        h = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(batch, height, width, channels)
        return x + nn.Dense(channels, kernel_init=initializer(0.0), dtype=self.dtype, name="output")(h)


def downsample(x: jax.Array, dtype: Dtype, name: str) -> jax.Array:
    """Halves height and width, [B, H, W, C] -> [B, H/2, W/2, C], by a convolution of stride 2; call inside a module."""
    return conv(x.shape[-1], dtype, stride=2, name=name)(x)


def upsample(x: jax.Array, dtype: Dtype, name: str) -> jax.Array:
    """Doubles height and width, [B, H, W, C] -> [B, 2H, 2W, C]: nearest neighbour, then a convolution; likewise."""
    return conv(x.shape[-1], dtype, name=name)(x.repeat(2, axis=1).repeat(2, axis=2))
