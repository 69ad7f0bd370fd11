"""The UNet of Ho et al. 2020, appendix B: residual blocks with attention at low resolution, told the time step."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.networks import layers


class UNet(nn.Module):
    """Predicts from a noised image; the defaults are the paper's network for CIFAR-10, 35.7 million parameters.

    Going down, each level has `num_blocks` residual blocks and halves the image; going up, each has one block more, and
    every block reads what the way down left at its size. At initialisation the output is 0.

    Attributes:
        channels: Of the first level.
        multipliers: Channels of each level, as multiples of the first's. The image is halved between levels.
        num_blocks: Residual blocks a level, on the way down.
        attention_resolutions: Image sizes (the longer side) at which attention follows every residual block. The lowest
            resolution always has one attention in the middle.
        num_heads: Attention heads.
        dropout: Dropout probability in the residual blocks.
        out_channels: Those of the input where None; twice as many for a learned variance.
        num_groups: Of GroupNorm.
        dtype: Of the computation, e.g. bfloat16; parameters, norms and softmax stay float32.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    num_heads: int = 1
    dropout: float = 0.1
    out_channels: int | None = None
    num_groups: int = 32
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, labels: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Runs the network.

        Args:
            x_t: Noised images [B, H, W, C]; H and W divisible by 2 ** (levels - 1).
            t: Time steps [B], as the schedule counts them.
            labels: None; this network knows no classes.
            train: Whether dropout is on; it then needs `rngs={"dropout": key}`.

        Returns:
            float32 [B, H, W, out_channels].

        Raises:
            ValueError: images that the levels cannot halve, channels that the groups or heads do not divide, labels.
        """
        self._check(x_t, labels)
        embedding = self._embed_time(t)
        h = layers.conv(self.channels, self.dtype, name="stem")(x_t.astype(self.dtype))
        h, skips = self._down(h, embedding, train)
        h = self._block(h.shape[-1], "middle1")(h, embedding, train)
        h = self._attention("middle_attention")(h)
        h = self._block(h.shape[-1], "middle2")(h, embedding, train)
        h = self._up(h, skips, embedding, train)
        h = nn.swish(layers.GroupNorm(self.num_groups, name="head_norm")(h)).astype(self.dtype)
        out_channels = x_t.shape[-1] if self.out_channels is None else self.out_channels
        return layers.conv(out_channels, self.dtype, scale=0.0, name="head")(h).astype(jnp.float32)

    def _embed_time(self, t: jax.Array) -> jax.Array:
        h = layers.timestep_embedding(t, self.channels)
        h = nn.Dense(4 * self.channels, kernel_init=layers.initializer(), dtype=self.dtype, name="time1")(h)
        return nn.Dense(4 * self.channels, kernel_init=layers.initializer(), dtype=self.dtype, name="time2")(nn.swish(h))

    def _down(self, h: jax.Array, embedding: jax.Array, train: bool) -> tuple[jax.Array, list[jax.Array]]:
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = layers.downsample(h, self.dtype, name=f"downsample{level}")
                skips.append(h)
            for i in range(self.num_blocks):
                h = self._block(multiplier * self.channels, f"down{level}_{i}")(h, embedding, train)
                h = self._attend(h, f"down{level}_{i}_attention")
                skips.append(h)
        return h, skips

    def _up(self, h: jax.Array, skips: list[jax.Array], embedding: jax.Array, train: bool) -> jax.Array:
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(multiplier * self.channels, f"up{level}_{i}")(h, embedding, train)
                h = self._attend(h, f"up{level}_{i}_attention")
            if level > 0:
                h = layers.upsample(h, self.dtype, name=f"upsample{level}")
        return h

    def _attend(self, h: jax.Array, name: str) -> jax.Array:
        return self._attention(name)(h) if max(h.shape[1:3]) in self.attention_resolutions else h

    def _block(self, features: int, name: str) -> layers.ResidualBlock:
        return layers.ResidualBlock(features, self.dropout, self.num_groups, self.dtype, name=name)

    def _attention(self, name: str) -> layers.Attention:
        return layers.Attention(self.num_heads, self.num_groups, self.dtype, name=name)

    def _check(self, x_t: jax.Array, labels: jax.Array | None) -> None:
        if x_t.ndim != 4:
            raise ValueError(f"x_t: expected images [B, H, W, C], received shape {x_t.shape}")
        factor = 2 ** (len(self.multipliers) - 1)
        if x_t.shape[1] % factor or x_t.shape[2] % factor:
            raise ValueError(f"multipliers: {len(self.multipliers)} levels expected height and width divisible by {factor}, "
                             f"received {x_t.shape[1]} x {x_t.shape[2]}")  # fmt: skip
        for multiplier in self.multipliers:
            if multiplier * self.channels % self.num_groups:
                raise ValueError(f"channels: expected every level's to be divisible by the {self.num_groups} groups of its "
                                 f"norms, received {multiplier * self.channels}")  # fmt: skip
        if labels is not None:
            raise ValueError("labels: expected None, this network knows no classes")
