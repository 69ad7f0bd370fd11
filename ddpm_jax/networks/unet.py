"""The UNet of Ho et al. 2020, appendix B: residual blocks with attention at low resolution, conditioned on the timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.networks import blocks, layers
from ddpm_jax.networks.cpu import barrier, swish

MIDDLES = ("attention", "attention_without_norm", "blocks", "none")


class UNet(nn.Module):
    """Predicts from a noisy image; the defaults are the paper's network for CIFAR-10, 35.7 million parameters.

    In the encoder, each level has `num_blocks` residual blocks and halves the image; in the decoder, each has one block more,
    and every block receives the encoder's skip connection. At initialisation the output is 0.

    Attributes:
        channels: Channels of the first level.
        multipliers: Channel multiplier per level. The image is halved between levels.
        num_blocks: Residual blocks per level of the encoder.
        attention_resolutions: Image sizes (the longer side) at which attention follows every residual block.
        attention_levels: If given, the levels with attention, from 0, regardless of the image size.
        num_heads: Attention heads.
        head_dim: If given, channels per head, instead of num_heads.
        middle: The bottleneck: "attention" (block, attention, block), "attention_without_norm" (the same, without the norm
            before the attention), "blocks" (two blocks) or "none".
        dropout: Dropout probability in the residual blocks.
        out_channels: Output channels; None: as many as the input has. A learned variance needs twice as many.
        num_classes: If given, the network is conditioned on a label, whose embedding is added to that of the time.
        num_groups: Groups of GroupNorm.
        norm_eps: Epsilon of GroupNorm.
        time_scale: Factor by which t is multiplied before it is embedded.
        freq_shift, cos_first: See `timestep_embedding`.
        time_scale_shift: Whether the time scales and shifts normalized features (section 3.1 of Dhariwal & Nichol 2021,
            arXiv 2105.05233) instead of being added to them.
        symmetric_padding: See `layers.downsample`.
        residual_downsampling: Levels of the encoder that end with a residual block that halves the image (also Dhariwal &
            Nichol), instead of a convolution.
        residual_upsampling: Levels of the decoder that end with a residual block that doubles it.
        dtype: Compute dtype, e.g. bfloat16; parameters, norms and softmax stay float32.
        remat: Gradient checkpointing: keep only the blocks' outputs and recompute their activations in the backward pass.

    >>> import jax, jax.numpy as jnp
    >>> from ddpm_jax import networks
    >>> network = networks.UNet(channels=32, multipliers=(1, 2), num_blocks=1)
    >>> x_t, t = jnp.zeros((4, 16, 16, 3)), jnp.array([0, 10, 100, 999])
    >>> params = jax.jit(network.init)(jax.random.key(0), x_t, t)
    >>> network.apply(params, x_t, t).shape
    (4, 16, 16, 3)
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
    time_scale: float = 1.0
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
            x_t: Noisy images [B, H, W, C]; H and W divisible by 2 ** (levels - 1).
            t: Timesteps [B], as the schedule counts them.
            labels: Classes [B], integers in 0..num_classes-1, or None if the network is unconditional. A traced label out
                of range gives NaN. `init` does not need them.
            condition: Images [B, H, W, any number] to condition on, such as the upsampled low-resolution or the greyscale
                image; concatenated to the channels of x_t, as in Saharia et al. 2021 (arXiv 2104.07636).
            train: Whether dropout is on; it then needs dropout_keys, or `rngs={"dropout": key}`.
            dropout_keys: Typed keys [B], one per example, whose masks do not depend on the rest of the batch.

        Returns:
            float32 [B, H, W, out_channels].

        Raises:
            TypeError: labels that are not integers.
            ValueError: images that the levels cannot halve, channels that the groups or heads do not divide, labels that are
                out of range, missing or unexpected, or a condition of another size.
        """
        # Labels are optional in `init`, and dropout keys with `rngs`.
        if self.num_classes is not None and self.is_initializing() and labels is None:
            labels = jnp.zeros(t.shape, jnp.int32)
        self._check(x_t, labels, condition)
        if not train:
            dropout_keys = None
        elif self.dropout > 0 and dropout_keys is None:
            dropout_keys = jax.random.split(self.make_rng("dropout"), len(x_t))

        # The embedding of time and label, for every block; the first convolution.
        embedding = self._embed(t, labels)
        h = x_t if condition is None else jnp.concatenate([x_t, condition], axis=-1)
        h = layers.Conv(self.channels, self.dtype, name="stem")(h.astype(self.dtype))

        # Encoder, bottleneck, decoder.
        h, skips = self._down(h, embedding, dropout_keys)
        h = self._middle(h, embedding, dropout_keys)
        h = self._up(h, skips, embedding, dropout_keys)

        # Norm, swish, conv.
        h = layers.GroupNorm(self.num_groups, self.norm_eps, name="head_norm")(h, swish)
        out_channels = x_t.shape[-1] if self.out_channels is None else self.out_channels
        return layers.Conv(out_channels, self.dtype, scale=0.0, name="head")(h).astype(jnp.float32)

    def _embed(self, t: jax.Array, labels: jax.Array | None) -> jax.Array:
        h = layers.timestep_embedding(self.time_scale * t, self.channels, self.freq_shift, self.cos_first)
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
                h = barrier(jnp.concatenate([h, skips.pop()], axis=-1))
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

    def _block(self, features: int, name: str, resample: Callable | None = None) -> blocks.ResidualBlock:
        kind = nn.remat(blocks.ResidualBlock) if self.remat else blocks.ResidualBlock
        return kind(
            features, self.dropout, self.num_groups, self.norm_eps, self.time_scale_shift, resample, self.dtype, name=name
        )

    def _attention(self, features: int, num_groups: int | None, name: str) -> blocks.Attention:
        if self.head_dim is not None and features % self.head_dim:
            raise ValueError(f"head_dim: expected a divisor of {features} channels, received {self.head_dim}")
        num_heads = self.num_heads if self.head_dim is None else features // self.head_dim
        kind = nn.remat(blocks.Attention) if self.remat else blocks.Attention
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
                raise ValueError(f"num_groups: expected a divisor of the channels of every level, received {self.num_groups} "
                                 f"for {multiplier * self.channels} channels")  # fmt: skip
        if self.middle not in MIDDLES:
            raise ValueError(f"middle: expected one of {MIDDLES}, received {self.middle!r}")
        if labels is not None and self.num_classes is None:
            raise ValueError("labels: expected None, this network is unconditional")
        if labels is None and self.num_classes is not None:
            raise ValueError(f"labels: expected one of {self.num_classes} classes for each image, received None")


def with_label(network: UNet, params: Any, label: int) -> tuple[UNet, Any]:
    """The unconditional network that equals a class-conditional one at a given label, whose embedding joins a bias.

    Args:
        network: A class-conditional network.
        params: Its variables.
        label: In 0..num_classes-1.

    Returns:
        The network, and its variables.

    Raises:
        ValueError: a label out of range, or an unconditional network.
    """
    if network.num_classes is None or not 0 <= label < network.num_classes:
        raise ValueError(f"label: expected one of {network.num_classes} classes, received {label}")
    rest = {name: part for name, part in params["params"].items() if name != "label"}
    last = rest["time2"]
    bias = last["bias"] + params["params"]["label"]["embedding"][label]
    return network.clone(num_classes=None), {"params": rest | {"time2": {**last, "bias": bias}}}
