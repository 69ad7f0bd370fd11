"""The layers of the UNet of Ho et al. 2020 (appendix B), images NHWC.

Parameters are float32; `dtype` is that of convolutions and matrix products. Norms and softmax are computed in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.networks import cpu
from ddpm_jax.networks.cpu import barrier, mean_over_space, over_images

Dtype = jnp.dtype | type


def initializer(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform with variance scale / mean(fan_in, fan_out); zeros for scale 0 (1e-10 in the authors' code)."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform") if scale > 0 else nn.initializers.zeros


def timestep_embedding(t: jax.Array, dim: int, freq_shift: float = 1.0, cos_first: bool = False) -> jax.Array:
    """Sinusoidal embedding of the timestep (section 3.5 of Vaswani et al. 2017, as DDPM's code orders it).

        [sin(t f_0), ..., sin(t f_{n-1}), cos(t f_0), ..., cos(t f_{n-1})],    f_i = 10000^(-i / (n - 1)),    n = dim / 2

    Args:
        t: [B], integers or floats, not scaled.
        dim: Even, at least 4.
        freq_shift: The 1 in n - 1 above; 0 in later code, such as that of Dhariwal & Nichol 2021.
        cos_first: Whether the cosines come first, as in that code.

    Returns:
        float32 [B, dim].

    Raises:
        ValueError: dim is odd or below 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim: expected an even number, at least 4, received {dim}")
    half = dim // 2
    frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angle = t.astype(jnp.float32)[:, None] * frequency[None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([cos, sin] if cos_first else [sin, cos], axis=1)


@dataclasses.dataclass(frozen=True)
class LazySum:
    """x + added, a number per channel that is not added yet: the `GroupNorm` that follows adds it at no cost.

    Attributes:
        x: [B, H, W, C].
        added: [B, C].
    """

    x: jax.Array
    added: jax.Array

    def __add__(self, added: jax.Array) -> LazySum:
        """Adds another number per channel, [B, C]."""
        return LazySum(self.x, self.added + added)


class Conv(nn.Module):
    """A convolution with a bias.

    Attributes:
        features: Output channels.
        dtype: Compute dtype.
        size: Height and width of the kernel.
        stride: Stride along both axes.
        padding: Padding of the image, as `jax.lax.conv_general_dilated` takes it.
        scale: Scale of the initial kernel's variance, as in `initializer`.
    """

    features: int
    dtype: Dtype
    size: int = 3
    stride: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    scale: float = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H / stride, W / stride, features]."""
        h, bias = self._parts(x)
        return h + bias[:, None, None].astype(self.dtype)

    def lazily(self, x: jax.Array) -> LazySum:
        """The same, with the bias not added yet."""
        h, bias = self._parts(x)
        return LazySum(barrier(h), bias)

    @nn.compact
    def _parts(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The convolution without the bias, and the bias per image, float32 [B, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", initializer(self.scale), shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return self.convolve(x.astype(self.dtype), kernel), over_images(bias, len(x))

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x [B, H, W, C], kernel [size, size, C, features] -> [B, H / stride, W / stride, features]."""
        keeps_size = self.stride == 1 and self.padding == "SAME"
        if keeps_size and self.size == 1:
            return x @ kernel[0, 0]
        if keeps_size and self.size == 3:
            return cpu.conv(x, kernel, otherwise=self._plain)
        return self._plain(x, kernel)

    def _plain(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


class DoubleConv(Conv):
    """Nearest-neighbour upsampling by 2, then a convolution, without building the upsampled image, whose pixels repeat.

    Along each axis, the kernel (k0, k1, k2) acts on the small image as (k0, k1 + k2) for even outputs and (k0 + k1, k2) for odd
    ones: four 2x2 kernels, 4/9 of the work.
    """

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x [B, H, W, C], kernel [3, 3, C, features] -> [B, 2H, 2W, features]."""
        return cpu.double_conv(x, kernel, otherwise=self._plain)

    def _plain(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape

        def even_odd(k: jax.Array, axis: int) -> list[jax.Array]:
            first, middle, last = jnp.split(k, 3, axis)
            return [jnp.concatenate([first, middle + last], axis), jnp.concatenate([first + middle, last], axis)]

        def part(i: int, j: int) -> jax.Array:
            padding, small = ((1 - i, i), (1 - j, j)), even_odd(even_odd(kernel, 0)[i], 1)[j]
            return jax.lax.conv_general_dilated(x, small, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

        rows = [jnp.stack([part(i, 0), part(i, 1)], axis=3) for i in range(2)]
        return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, self.features)


class GroupNorm(nn.Module):
    """Group normalization (Wu & He 2018) in float32, with a scale and a bias per channel, then elementwise functions.

        y = scale (x - mean) / sqrt(variance + eps) + bias,    mean and variance over each group and all positions

    Means and variances over space are computed first, per channel; everything from there to one gain and one shift per image
    and channel is small. So x is read twice and written once, and adding a number to a whole channel costs nothing.

    Attributes:
        num_groups: Number of groups, which divides the channels.
        eps: Added to the variance.
    """

    num_groups: int
    eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: jax.Array | LazySum,
        *then: Callable[[jax.Array], jax.Array],
        scale_shift: Sequence[jax.Array] | None = None,
    ) -> jax.Array:
        """Normalizes x, scales, shifts and applies `then`, which the backward pass recomputes.

        Args:
            x: [B, H, W, C].
            then: Elementwise functions of float32 [B, H, W, C], such as `swish`, applied in order.
            scale_shift: Each [B, C]: y becomes y (1 + scale) + shift before `then`.

        Returns:
            [B, H, W, C], in the dtype of x.
        """
        x, added = (x.x, x.added.astype(jnp.float32)) if isinstance(x, LazySum) else (x, 0.0)
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

        # Mean and variance per channel.
        flat = x.reshape(batch, height * width, channels).astype(jnp.float32)
        mean = mean_over_space(flat)
        variance = jnp.maximum(mean_over_space(flat * flat) - mean * mean, 0.0)

        # Mean and variance of x + added per group.
        group_mean = self._over_group(mean + added)
        group_variance = self._over_group(variance + jnp.square(mean + added - group_mean))

        # y = gain x + shift.
        gain = over_images(scale, batch) * jax.lax.rsqrt(group_variance + self.eps)
        shift = over_images(bias, batch) + (added - group_mean) * gain
        if scale_shift is not None:
            scales, shifts = (a.astype(jnp.float32) for a in scale_shift)
            gain, shift = gain * (1 + scales), shift * (1 + scales) + shifts

        @jax.checkpoint
        def apply(x: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
            y = x.astype(jnp.float32) * gain[:, None, None] + shift[:, None, None]
            return functools.reduce(lambda y, function: function(y), then, y).astype(x.dtype)

        return barrier(apply(x, gain, shift))

    def _over_group(self, of_channel: jax.Array) -> jax.Array:
        """Means over each group of channels, for each of its channels: [B, C] -> [B, C]."""
        batch, channels = of_channel.shape
        mean = of_channel.reshape(batch, self.num_groups, -1).mean(axis=2, keepdims=True)
        return jnp.broadcast_to(mean, (batch, self.num_groups, channels // self.num_groups)).reshape(batch, channels)


def dropout(keys: jax.Array | None, name: str, probability: float) -> Callable[[jax.Array], jax.Array]:
    """Dropout whose mask for example i depends on key i and the layer's name alone, not on the rest of the batch.

    The random numbers are counter-based, a hash of the position keyed per example, cheaper than threefry: `lowbias32` of
    https://nullprogram.com/blog/2018/07/31. Tests check the drop rate and that positions, examples, layers are uncorrelated.

    Args:
        keys: Typed keys [B], one per example; None: no dropout.
        name: A unique name for each layer.
        probability: Probability that a number becomes 0; the others are divided by 1 - probability.

    Returns:
        The function x [B, ...] -> x with numbers dropped, the same ones in each call.
    """
    if keys is None or probability == 0:
        return lambda x: x
    words = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, zlib.crc32(name.encode())), (2,)))(keys)

    def mix(a: jax.Array) -> jax.Array:
        a = (a ^ (a >> 16)) * jnp.uint32(0x7FEB352D)
        a = (a ^ (a >> 15)) * jnp.uint32(0x846CA68B)
        return a ^ (a >> 16)

    def drop(x: jax.Array) -> jax.Array:
        before, after = (words[:, i].reshape(-1, *[1] * (x.ndim - 1)) for i in range(2))
        place = jnp.arange(x[0].size, dtype=jnp.uint32).reshape(1, *x.shape[1:])
        kept = mix(mix(place ^ before) + after) >= jnp.uint32(round(probability * 2**32))
        return jnp.where(kept, x / (1 - probability), 0.0)

    return drop


def downsample(x: jax.Array, dtype: Dtype, symmetric: bool, name: str) -> jax.Array:
    """Halves height and width, [B, H, W, C] -> [B, H/2, W/2, C], by a convolution of stride 2; call inside a module.

    An even size needs one row and one column of padding: TensorFlow, and so DDPM, puts them after the image; PyTorch
    networks also pad before it ("symmetric"), which shifts the grid by a pixel.
    """
    padding = ((1, 1), (1, 1)) if symmetric else "SAME"
    return Conv(x.shape[-1], dtype, stride=2, padding=padding, name=name)(x)


def upsample(x: jax.Array, dtype: Dtype, name: str) -> jax.Array:
    """Doubles height and width, [B, H, W, C] -> [B, 2H, 2W, C], by a `DoubleConv`; call inside a module."""
    return barrier(DoubleConv(x.shape[-1], dtype, name=name)(x))


def halve(x: jax.Array) -> jax.Array:
    """Means over 2x2 pixels, [B, H, W, C] -> [B, H/2, W/2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def double(x: jax.Array) -> jax.Array:
    """Repeats every pixel as 2x2, [B, H, W, C] -> [B, 2H, 2W, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class LabelEmbedding(nn.Module):
    """A learned vector per class, added to the time embedding.

    Attributes:
        num_classes: Number of classes.
        features: E.
        dtype: Output dtype.
        embedding_init: Initializer of the vectors.
    """

    num_classes: int
    features: int
    dtype: Dtype
    embedding_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """Integers [B] in 0..num_classes-1 -> [B, E]; any other label gives NaN if traced, and raises if concrete."""
        if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
            raise TypeError(f"labels: expected integers, received {jnp.result_type(labels)}")
        table = self.param("embedding", self.embedding_init, (self.num_classes, self.features), jnp.float32)
        if not isinstance(labels, jax.core.Tracer) and not np.isin(labels, np.arange(self.num_classes)).all():
            raise ValueError(f"labels: expected 0..{self.num_classes - 1}, received {labels}")
        known = (labels >= 0) & (labels < self.num_classes)
        return jnp.where(known[:, None], table[jnp.where(known, labels, 0)], jnp.nan).astype(self.dtype)
