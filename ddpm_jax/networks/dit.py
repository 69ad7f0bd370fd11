"""The diffusion transformer, DiT (Peebles & Xie 2022, arXiv 2212.09748)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.networks.context import Context
from ddpm_jax.networks.layers import LabelEmbedding, timestep_embedding
from ddpm_jax.networks.transformer import Attention, Dense, positions_2d, xavier

Dtype = jnp.dtype | type

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""Width, depth and number of heads of the paper's models (table 1)."""

FREQUENCIES = 256
"""Sines and cosines of the time embedding."""

XAVIER, NORMAL, ZEROS = xavier(), nn.initializers.normal(0.02), nn.initializers.zeros
"""The authors' initializers: of dense layers, of embeddings, and of what starts at zero."""


class DiT(nn.Module):
    """A transformer over patches of an image, whose norms are modulated by time and condition (adaLN-Zero).

    Attributes:
        width: Channels per token.
        depth: Number of blocks.
        num_heads: Attention heads, which divide the width.
        patch: Height and width of a patch.
        out_channels: Channels of the output; by default those of the input.
        num_classes: Number of classes, including that of the unconditional model; None for no labels.
        context_dim: D of the tokens of a Context, to which each block attends (Chen et al. 2023, PixArt, arXiv 2310.00426);
            None for none.
        pooled_dim: E of its pooled vector, added to the time embedding; None for none.
        num_times: Times given to the network: 2 for models of two times, t [B, 2].
        mlp_ratio: Hidden channels of the MLPs over the width.
        qk_norm: Whether queries and keys are normalized.
        time_scale: Times are multiplied by it before they are embedded; 1000 for times in [0, 1].
        freq_shift: Frequency shift of the time embedding; 0 in the authors' code.
        dtype: Dtype of matrix products; parameters, sums of residuals, norms and softmax are float32.
        remat: Gradient checkpointing: recompute the blocks in the backward pass.
    """

    width: int
    depth: int
    num_heads: int
    patch: int = 2
    out_channels: int | None = None
    num_classes: int | None = None
    context_dim: int | None = None
    pooled_dim: int | None = None
    num_times: int = 1
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    time_scale: float = 1.0
    freq_shift: float = 0.0
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        labels: jax.Array | None = None,
        context: Context | None = None,
        *,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts eps, or whatever it is trained for.

        Args:
            x_t: Noisy images [B, H, W, C]; patch divides H and W.
            t: Times [B], or [B, num_times].
            labels: Classes [B], integers in 0..num_classes-1, or None if the network is unconditional. `init` does not need
                them.
            context: A Context of B examples, if context_dim or pooled_dim is given.
            train, dropout_keys: Without effect: there is no dropout.

        Returns:
            float32 [B, H, W, out_channels].

        Raises:
            ValueError: sizes that do not fit, or a label or context that is missing or not expected.
        """
        if self.num_classes is not None and self.is_initializing() and labels is None:
            labels = jnp.zeros(len(x_t), jnp.int32)
        self._check(x_t, t, labels, context)

        # Patches as tokens, with their positions.
        (batch, height, width, channels), p = x_t.shape, self.patch
        rows, columns = height // p, width // p
        patches = x_t.reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3).reshape(batch, rows * columns, -1)
        h = self._dense(self.width, "patches")(patches) + positions_2d(rows, columns, self.width)[None]

        # The blocks, each modulated by silu(c).
        c = nn.silu(self._embed(t, labels, context))
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            attends = self.context_dim is not None
            h = block(self.num_heads, self.mlp_ratio, self.qk_norm, attends, self.dtype, name=f"block{i}")(h, c, context)

        # Tokens as patches of the output.
        out_channels = channels if self.out_channels is None else self.out_channels
        shift, scale = jnp.split(self._dense(2 * self.width, "head_modulation", ZEROS)(c), 2, axis=-1)
        h = self._dense(p * p * out_channels, "head", ZEROS)(modulate(layer_norm(h), shift, scale))
        h = h.reshape(batch, rows, columns, p, p, out_channels).swapaxes(2, 3)
        return h.reshape(batch, height, width, out_channels).astype(jnp.float32)

    def _embed(self, t: jax.Array, labels: jax.Array | None, context: Context | None) -> jax.Array:
        """c = time + class + pooled context, [B, width]."""
        c = jnp.zeros((len(t), self.width))
        for i, times in enumerate(jnp.reshape(t, (len(t), -1)).T):
            name = f"time{'' if i == 0 else f'_{i}_'}"
            waves = timestep_embedding(self.time_scale * times, FREQUENCIES, self.freq_shift, cos_first=True)
            h = nn.silu(self._dense(self.width, f"{name}1", NORMAL)(waves))
            c = c + self._dense(self.width, f"{name}2", NORMAL)(h)
        if labels is not None and self.num_classes is not None:
            c = c + LabelEmbedding(self.num_classes, self.width, self.dtype, NORMAL, name="label")(labels)
        if context is not None and context.pooled is not None and self.pooled_dim is not None:
            c = c + self._dense(self.width, "pooled")(context.pooled)
        return c

    def _dense(self, features: int, name: str, kernel_init: nn.initializers.Initializer = XAVIER) -> Dense:
        return Dense(features, self.dtype, kernel_init, name=name)

    def _check(self, x_t: jax.Array, t: jax.Array, labels: jax.Array | None, context: Context | None) -> None:
        if x_t.ndim != 4:
            raise ValueError(f"x_t: expected images [B, H, W, C], received shape {x_t.shape}")
        height, width = x_t.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch: expected a divisor of height and width, {height} x {width}, received {self.patch}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of the width {self.width}, received {self.num_heads}")
        times = (len(x_t),) if self.num_times == 1 else (len(x_t), self.num_times)
        if jnp.shape(t) != times:
            raise ValueError(f"t: expected shape {times}, received {jnp.shape(t)}")
        if labels is not None and self.num_classes is None:
            raise ValueError("labels: expected None, this network is unconditional")
        if labels is None and self.num_classes is not None:
            raise ValueError(f"labels: expected one of {self.num_classes} classes for each image, received None")
        if labels is not None and jnp.shape(labels) != (len(x_t),):
            raise ValueError(f"labels: expected shape {(len(x_t),)}, received {jnp.shape(labels)}")
        self._check_context(context, len(x_t))

    def _check_context(self, context: Context | None, batch: int) -> None:
        takes_none = self.context_dim is None and self.pooled_dim is None
        if context is None and not takes_none:
            raise ValueError("context: expected a Context, received None")
        if context is not None and takes_none:
            raise ValueError("context: expected None, this network has neither context_dim nor pooled_dim")
        if context is None:
            return
        if self.context_dim is not None:
            shape = jnp.shape(context.tokens)
            if len(shape) != 3 or (shape[0], shape[2]) != (batch, self.context_dim):
                raise ValueError(f"context: expected tokens ({batch}, L, {self.context_dim}), received {shape}")
            mask = context.mask
            if mask is not None and (jnp.shape(mask), jnp.result_type(mask)) != (shape[:2], jnp.bool_):
                received = f"{jnp.result_type(mask)} {jnp.shape(mask)}"
                raise ValueError(f"context: expected a mask of booleans {shape[:2]}, received {received}")
        if self.pooled_dim is not None:
            given = None if context.pooled is None else jnp.shape(context.pooled)
            if given != (batch, self.pooled_dim):
                raise ValueError(f"context: expected pooled {(batch, self.pooled_dim)}, received {given}")


class Block(nn.Module):
    """Attention and an MLP on modulated norms, each behind a gate that starts at 0, so that the block starts as the identity.

        shift, scale, gate (attention), shift, scale, gate (MLP) = W silu(c)

    Attributes:
        num_heads, mlp_ratio, qk_norm, dtype: As for DiT.
        attends: Whether x attends to a Context in between, without a norm; its output layer starts at 0 (as in PixArt).
    """

    num_heads: int
    mlp_ratio: float
    qk_norm: bool
    attends: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array, context: Context | None) -> jax.Array:
        """x [B, N, width], silu(c) [B, width] -> [B, N, width]."""
        width = x.shape[-1]
        modulation = Dense(6 * width, self.dtype, ZEROS, name="modulation")(c)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

        # x + gate attention(modulated norm(x)).
        attention = Attention(self.num_heads, self.dtype, self.qk_norm, name="attention")
        x = x + gate_a[:, None] * attention(modulate(layer_norm(x), shift_a, scale_a))
        if self.attends and context is not None:
            cross = Attention(self.num_heads, self.dtype, self.qk_norm, ZEROS, name="cross_attention")
            x = x + cross(x, context.tokens, context.mask)

        # x + gate MLP(modulated norm(x)).
        h = Dense(round(self.mlp_ratio * width), self.dtype, name="mlp1")(modulate(layer_norm(x), shift_m, scale_m))
        return x + gate_m[:, None] * Dense(width, self.dtype, name="mlp2")(nn.gelu(h, approximate=True))


def layer_norm(x: jax.Array) -> jax.Array:
    """Layer normalization in float32, without parameters."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x (1 + scale) + shift, with shift and scale [B, C] for x [B, N, C]."""
    return x * (1 + scale[:, None]) + shift[:, None]
