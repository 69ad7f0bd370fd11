"""The UNet of Ho et al. 2020, appendix B: residual blocks with attention at low resolution, told the time step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.networks import layers
from ddpm_jax.networks.xla import settle

MIDDLES = ("attention", "attention_without_norm", "blocks", "none")


class UNet(nn.Module):
    """Predicts from a noised image; the defaults are the paper's network for CIFAR-10, 35.7 million parameters.

    Going down, each level has `num_blocks` residual blocks and halves the image; going up, each has one block more, and
    every block reads what the way down left at its size. At initialisation the output is 0.

    Attributes:
        channels: Of the first level.
        multipliers: Channels of each level, as multiples of the first's. The image is halved between levels.
        num_blocks: Residual blocks a level, on the way down.
        attention_resolutions: Image sizes (the longer side) at which attention follows every residual block.
        attention_levels: Where given, the levels at which it does so, 0 the first, whatever the size of the image.
        num_heads: Attention heads.
        head_dim: Where given, the channels of a head, in place of their number.
        middle: What lies between the two ways: "attention" (block, attention, block), "attention_without_norm" (likewise,
            its input not normalised), "blocks" (two blocks) or "none".
        dropout: Dropout probability in the residual blocks.
        out_channels: Those of the input where None; twice as many for a learned variance.
        num_classes: Where given, the network is told a label, embedded and added to the time.
        num_groups: Of GroupNorm.
        norm_eps: Of GroupNorm.
        freq_shift, cos_first: Of `timestep_embedding`.
        time_scale_shift: Whether the time scales and shifts normalised features (section 4 of Dhariwal & Nichol 2021,
            arXiv 2105.05233), and is not added to them.
        symmetric_padding: Of `layers.downsample`.
        residual_downsampling: Levels that are left, on the way down, by a residual block that halves the image (likewise
            Dhariwal & Nichol), not by a convolution.
        residual_upsampling: Levels that are left by one that doubles it, on the way up.
        dtype: Of the computation, e.g. bfloat16; parameters, norms and softmax stay float32.
        remat: Whether the gradient computes what is inside of a block again, so that only blocks' outputs are kept for it.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    attention_levels: Sequence[int] | None = None
    num_heads: int = 1
    head_dim: int | None = None
    middle: str = "attention"
    dropout: float = 0.1
    out_channels: int | None = None
    num_classes: int | None = None
    num_groups: int = 32
    norm_eps: float = 1e-6
    freq_shift: float = 1.0
    cos_first: bool = False
    time_scale_shift: bool = False
    symmetric_padding: bool = False
    residual_downsampling: Sequence[int] = ()
    residual_upsampling: Sequence[int] = ()
    dtype: layers.Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        labels: jax.Array | None = None,
        condition: jax.Array | None = None,
        *,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the network.

        Args:
            x_t: Noised images [B, H, W, C]; H and W divisible by 2 ** (levels - 1).
            t: Time steps [B], as the schedule counts them.
            labels: Classes [B], integers in 0..num_classes-1, where there are classes, else None. A traced label out of
                range gives NaN. `init` may do without.
            condition: What is known of the images [B, H, W, any number], such as a small version enlarged, or the grey
                picture; it joins the channels of x_t, as in Saharia et al. 2021 (arXiv 2104.07636).
            train: Whether dropout is on; it then needs `rngs={"dropout": key}`, or dropout_keys.
            dropout_keys: Keys [B], one for each example's masks, whatever else is in the batch.

        Returns:
            float32 [B, H, W, out_channels].

        Raises:
            TypeError: labels that are not integers.
            ValueError: images that the levels cannot halve, channels that the groups or heads do not divide, labels out of
                range, or given or missing where they should not be, a condition of another size.
        """
        if self.num_classes is not None and self.is_initializing() and labels is None:
            labels = jnp.zeros(t.shape, jnp.int32)
        self._check(x_t, labels, condition)
        if train and self.dropout > 0 and dropout_keys is None:
            dropout_keys = jax.random.split(self.make_rng("dropout"), len(x_t))
        embedding = self._embed(t, labels)
        h = x_t if condition is None else jnp.concatenate([x_t, condition], axis=-1)
        h = layers.conv(self.channels, self.dtype, name="stem")(h.astype(self.dtype))
        h, skips = self._down(h, embedding, dropout_keys)
        h = self._middle(h, embedding, dropout_keys)
        h = self._up(h, skips, embedding, dropout_keys)
        h = settle(layers.GroupNorm(self.num_groups, self.norm_eps, name="head_norm")(h, layers.swish))
        out_channels = x_t.shape[-1] if self.out_channels is None else self.out_channels
        return layers.conv(out_channels, self.dtype, scale=0.0, name="head")(h).astype(jnp.float32)

    def _embed(self, t: jax.Array, labels: jax.Array | None) -> jax.Array:
        h = layers.timestep_embedding(t, self.channels, self.freq_shift, self.cos_first)
        h = nn.Dense(4 * self.channels, kernel_init=layers.initializer(), dtype=self.dtype, name="time1")(h)
        h = nn.Dense(4 * self.channels, kernel_init=layers.initializer(), dtype=self.dtype, name="time2")(nn.swish(h))
        if self.num_classes is None:
            return h
        return h + layers.LabelEmbedding(self.num_classes, 4 * self.channels, self.dtype, name="label")(jnp.asarray(labels))

    def _down(self, h: jax.Array, embedding: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, list[jax.Array]]:
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = self._downsample(h, level, embedding, keys)
                skips.append(h)
            for i in range(self.num_blocks):
                h = self._block(multiplier * self.channels, f"down{level}_{i}")(h, embedding, keys)
                h = self._attend(h, level, f"down{level}_{i}_attention")
                skips.append(h)
        return h, skips

    def _middle(self, h: jax.Array, embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        if self.middle == "none":
            return h
        h = self._block(h.shape[-1], "middle1")(h, embedding, keys)
        if self.middle != "blocks":
            num_groups = None if self.middle == "attention_without_norm" else self.num_groups
            h = self._attention(h.shape[-1], num_groups, "middle_attention")(h)
        return self._block(h.shape[-1], "middle2")(h, embedding, keys)

    def _up(self, h: jax.Array, skips: list[jax.Array], embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.num_blocks + 1):
                h = settle(jnp.concatenate([h, skips.pop()], axis=-1))
                h = self._block(multiplier * self.channels, f"up{level}_{i}")(h, embedding, keys)
                h = self._attend(h, level, f"up{level}_{i}_attention")
            if level > 0:
                h = self._upsample(h, level, embedding, keys)
        return h

    def _downsample(self, h: jax.Array, level: int, embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        if level - 1 in self.residual_downsampling:
            return self._block(h.shape[-1], f"downsample{level}", layers.halve)(h, embedding, keys)
        return layers.downsample(h, self.dtype, self.symmetric_padding, f"downsample{level}")

    def _upsample(self, h: jax.Array, level: int, embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        if level in self.residual_upsampling:
            return self._block(h.shape[-1], f"upsample{level}", layers.double)(h, embedding, keys)
        return layers.upsample(h, self.dtype, f"upsample{level}")

    def _attend(self, h: jax.Array, level: int, name: str) -> jax.Array:
        if self.attention_levels is None:
            attends = max(h.shape[1:3]) in self.attention_resolutions
        else:
            attends = level in self.attention_levels
        return self._attention(h.shape[-1], self.num_groups, name)(h) if attends else h

    def _block(self, features: int, name: str, resample: Callable | None = None) -> layers.ResidualBlock:
        kind = nn.remat(layers.ResidualBlock) if self.remat else layers.ResidualBlock
        return kind(
            features, self.dropout, self.num_groups, self.norm_eps, self.time_scale_shift, resample, self.dtype, name=name
        )

    def _attention(self, features: int, num_groups: int | None, name: str) -> layers.Attention:
        if self.head_dim is not None and features % self.head_dim:
            raise ValueError(f"head_dim: expected a divisor of {features} channels, received {self.head_dim}")
        num_heads = self.num_heads if self.head_dim is None else features // self.head_dim
        kind = nn.remat(layers.Attention) if self.remat else layers.Attention
        return kind(num_heads, num_groups, self.norm_eps, self.dtype, name=name)

    def _check(self, x_t: jax.Array, labels: jax.Array | None, condition: jax.Array | None) -> None:
        if x_t.ndim != 4:
            raise ValueError(f"x_t: expected images [B, H, W, C], received shape {x_t.shape}")
        if condition is not None and condition.shape[:-1] != x_t.shape[:-1]:
            raise ValueError(f"condition: expected shape {(*x_t.shape[:-1], 'any')}, received {condition.shape}")
        factor = 2 ** (len(self.multipliers) - 1)
        if x_t.shape[1] % factor or x_t.shape[2] % factor:
            raise ValueError(f"multipliers: {len(self.multipliers)} levels expected height and width divisible by {factor}, "
                             f"received {x_t.shape[1]} x {x_t.shape[2]}")  # fmt: skip
        for multiplier in self.multipliers:
            if multiplier * self.channels % self.num_groups:
                raise ValueError(f"channels: expected every level's to be divisible by the {self.num_groups} groups of its "
                                 f"norms, received {multiplier * self.channels}")  # fmt: skip
        if self.middle not in MIDDLES:
            raise ValueError(f"middle: expected one of {MIDDLES}, received {self.middle!r}")
        if labels is not None and self.num_classes is None:
            raise ValueError("labels: expected None, this network knows no classes")
        if labels is None and self.num_classes is not None:
            raise ValueError(f"labels: expected one of {self.num_classes} classes for each image, received None")


def with_label(network: UNet, params: Any, label: int) -> tuple[UNet, Any]:
    """The network without classes that does what this one does when it is told a label, which joins a bias.

    Args:
        network: A network with classes.
        params: Its variables.
        label: In 0..num_classes-1.

    Returns:
        The network, and its variables.

    Raises:
        ValueError: a label out of range, or a network without classes.
    """
    if network.num_classes is None or not 0 <= label < network.num_classes:
        raise ValueError(f"label: expected one of {network.num_classes} classes, received {label}")
    rest = {name: part for name, part in params["params"].items() if name != "label"}
    last = rest["time2"]
    bias = last["bias"] + params["params"]["label"]["embedding"][label]
    return network.clone(num_classes=None), {"params": rest | {"time2": {**last, "bias": bias}}}
