"""The network: one dataclass per architecture."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ddpm_jax.config.kinds import Choice


@dataclasses.dataclass(frozen=True)
class Network(metaclass=Choice):
    """The network."""

    kind: str
    """Architecture: unet or dit. Each has its own options; add `--help` after its name to list them."""
    num_classes: int | None = None
    """Number of classes; None for an unconditional model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, norms and softmax are float32."""


@dataclasses.dataclass(frozen=True)
class UNet(Network):
    """The UNet of Ho et al. 2020."""

    kind: Literal["unet"] = "unet"
    dropout: float = 0.1
    """Dropout probability."""
    channels: int = 128
    """Channels at the first resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channel multiplier per resolution; the image is halved from one to the next."""
    num_blocks: int = 2
    """Residual blocks per resolution."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Resolutions with self-attention."""
    num_heads: int = 1
    """Attention heads."""
    num_groups: int = 32
    """Groups of GroupNorm."""
    attention_levels: tuple[int, ...] | None = None
    """Instead of attention_resolutions: indices of the resolutions with self-attention, 0 the finest."""
    head_dim: int | None = None
    """Instead of num_heads: channels per attention head."""
    middle: Literal["attention", "attention_without_norm", "blocks", "none"] = "attention"
    """The bottleneck."""
    norm_eps: float = 1e-6
    """GroupNorm epsilon."""
    freq_shift: float = 1.0
    """Frequency shift of the time embedding: 1 in DDPM, 0 in later code."""
    cos_first: bool = False
    """Cosines before sines in the time embedding."""
    time_scale_shift: bool = False
    """The time embedding scales and shifts features instead of being added to them (AdaGN)."""
    symmetric_padding: bool = False
    """Downsampling pads both sides, as PyTorch's networks do."""
    residual_downsampling: tuple[int, ...] = ()
    """Resolutions that downsample with a residual block (BigGAN-style)."""
    residual_upsampling: tuple[int, ...] = ()
    """Resolutions that upsample with a residual block."""


@dataclasses.dataclass(frozen=True)
class DiT(Network):
    """The diffusion transformer (Peebles & Xie 2022)."""

    kind: Literal["dit"] = "dit"
    width: int = 384
    """Channels per token. Published widths, depths and heads: S 384, 12, 6; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 6
    """Attention heads."""
    patch: int = 2
    """Height and width of a patch, one token each."""
    qk_norm: bool = False
    """Normalize queries and keys, for stable training of large models in bfloat16."""
