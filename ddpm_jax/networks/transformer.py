"""The layers of transformers: dense layers, attention with several heads, and fixed positions.

Parameters are float32; `dtype` is that of products. Norms and softmax are computed in float32.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Dtype = jnp.dtype | type


def xavier(num: int = 1) -> nn.initializers.Initializer:
    """Xavier's uniform initializer for each of `num` matrices of one size, as if they were one product side by side."""

    def init(key: jax.Array, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> jax.Array:
        bound = (6 / (shape[0] + num * shape[1])) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """x W + b as one product of matrices, whatever the axes before the last.

    XLA multiplies [B, N, d] by [d, e] on CPU at half the speed of [B N, d].

    Attributes:
        features: e.
        dtype: Compute dtype.
        kernel_init: Initializer of W; b starts at 0.
    """

    features: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = xavier()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., e]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        return (flat @ kernel.astype(self.dtype) + bias.astype(self.dtype)[None]).reshape(*x.shape[:-1], self.features)


class Attention(nn.Module):
    """Attention with several heads (Vaswani et al. 2017), of x to itself or to other tokens.

        W_o softmax(q k^T / sqrt(d)) v,    q = W_q x,    k, v = W_k y, W_v y,    d channels per head

    Attributes:
        num_heads: Number of heads, which divides the channels.
        dtype: Compute dtype.
        qk_norm: Whether q and k are divided by their root mean square per head, and scaled (as in SD3.5).
        output_init: Initializer of W_o. In the authors' code W_q, W_k and W_v, or W_k and W_v if y is given, are one matrix,
            and they are initialized as such.
    """

    num_heads: int
    dtype: Dtype
    qk_norm: bool = False
    output_init: nn.initializers.Initializer = xavier()

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
        """Attends to y [B, M, D], by default to x itself.

        Args:
            x: [B, N, C].
            y: The tokens to attend to.
            mask: Booleans [B, M], False for tokens to leave out.

        Returns:
            [B, N, C].
        """
        channels = x.shape[-1]
        num_q, num_kv, y = (3, 3, x) if y is None else (1, 2, y)
        if channels % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of {channels} channels, received {self.num_heads}")

        def heads(name: str, of: jax.Array, num: int) -> jax.Array:
            return Dense(channels, self.dtype, xavier(num), name=name)(of).reshape(*of.shape[:2], self.num_heads, -1)

        q, k, v = heads("query", x, num_q), heads("key", y, num_kv), heads("value", y, num_kv)
        if self.qk_norm:
            norm = functools.partial(nn.RMSNorm, 1e-6, dtype=jnp.float32)
            q, k = norm(name="query_norm")(q).astype(self.dtype), norm(name="key_norm")(k).astype(self.dtype)
        h = attend(q, k, v, mask)
        return Dense(channels, self.dtype, self.output_init, name="output")(h.reshape(x.shape))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v per head, with the softmax in float32.

    Args:
        q: [B, N, h, d].
        k, v: [B, M, h, d].
        mask: Booleans [B, M], False for tokens to leave out; an example without any gets zeros.

    Returns:
        [B, N, h, d].
    """
    if jax.default_backend() != "cpu":
        wide = None if mask is None else mask[:, None, None, :]
        h = jax.nn.dot_product_attention(q, k, v, mask=wide)
    else:  # plain products in [B, h, N, d], 2.8 times as fast there
        q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
        logits = (q @ k.swapaxes(2, 3)).astype(jnp.float32) * q.shape[-1] ** -0.5
        if mask is not None:
            logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        h = (nn.softmax(logits, axis=-1).astype(v.dtype) @ v).swapaxes(1, 2)
    return h if mask is None else jnp.where(mask.any(axis=1)[:, None, None, None], h, 0)


def positions_2d(height: int, width: int, channels: int) -> np.ndarray:
    """Fixed sine-cosine positions of a grid, as DiT and MAE have them: half of the channels for the column, half for the row.

    Each half is [sin(p f_0), ..., cos(p f_0), ...] with f_i = 10000^(-i / n), n = channels / 4.

    Args:
        height, width: Of the grid.
        channels: A multiple of 4.

    Returns:
        float32 [height * width, channels], row by row.

    Raises:
        ValueError: channels is no multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"width: expected a multiple of 4, for two-dimensional positions, received {channels}")
    frequency = 10000.0 ** (-np.arange(channels // 4) / (channels // 4))

    def embedding(place: np.ndarray) -> np.ndarray:
        angle = place.reshape(-1, 1) * frequency
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.concatenate([embedding(columns), embedding(rows)], axis=1).astype(np.float32)
