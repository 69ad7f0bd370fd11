"""Convolutions with 3x3 kernels in fewer multiplications (Winograd 1980; Lavin & Gray 2016, arXiv 1509.09308, F(2x2, 3x3)).

Along one axis, two neighbouring outputs of a kernel (k0, k1, k2) come of four inputs (d0, d1, d2, d3) by four products in place
of six:

    p0 = (d0 - d2) k0    p1 = (d1 + d2) (k0 + k1 + k2) / 2    p2 = (d2 - d1) (k0 - k1 + k2) / 2    p3 = (d1 - d3) k2
    y0 = p0 + p1 + p2 = d0 k0 + d1 k1 + d2 k2
    y1 = p1 - p2 - p3 = d1 k0 + d2 k1 + d3 k2

On an image that was doubled before, (a, b, b, c) in place of (d0, ..., d3), three:

    p0 = (a - b) k0    p1 = b (k0 + k1 + k2)    p2 = (c - b) k2    y0 = p0 + p1    y1 = p1 + p2

Along both axes 2x2 pixels take 16 products, or 9, where the plain form has 36; each is one of large matrices. Rounding is as in
the plain form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ddpm_jax.networks.xla import settle

Parts = list[jax.Array]
Convolve = Callable[[jax.Array, jax.Array], jax.Array]


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves, zeros around the image: [B, H, W, C], kernel [3, 3, C, F] -> [B, H, W, F]; H and W even."""
    return _convolve(_patch, _weigh, _join, x, kernel)


def double_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles by nearest neighbour, then convolves: [B, H, W, C], kernel [3, 3, C, F] -> [B, 2H, 2W, F]."""
    return _convolve(_patch_doubled, _weigh_doubled, _join_doubled, x, kernel)


def forward_only(quick: Convolve, plain: Convolve) -> Convolve:
    """One of these forward, the plain form of the same in the derivatives, where few channels make that the faster one."""

    @jax.custom_jvp
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return quick(x, kernel)

    @convolve.defjvp
    def jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return quick(*primals), jax.jvp(plain, primals, tangents)[1]

    return convolve


@functools.partial(jax.checkpoint, static_argnums=(0, 1, 2))  # patches take 4 times x's memory, and little time
def _convolve(
    patch: Callable[[jax.Array, int], Parts],
    weigh: Callable[[Sequence[jax.Array]], Parts],
    join: Callable[[Parts], Parts],
    x: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """Inputs to patches along both axes, kernel to weights, the products of matrices [places, C] by [C, F] to pixels."""
    rows = settle(patch(x, 1))
    patches = settle([[d.reshape(-1, x.shape[3]) for d in patch(row, 2)] for row in rows])
    weights = settle([weigh(list(row)) for row in weigh(list(kernel))])
    products = settle([[d @ k for d, k in zip(*row, strict=True)] for row in zip(patches, weights, strict=True)])
    columns = [join(list(column)) for column in zip(*products, strict=True)]
    pixels = [join(list(row)) for row in zip(*columns, strict=True)]
    batch, height = rows[0].shape[:2]
    pixels = [[pixel.reshape(batch, height, -1, kernel.shape[3]) for pixel in row] for row in pixels]
    return jnp.stack([jnp.stack(row, 3) for row in pixels], 2).reshape(batch, 2 * height, -1, kernel.shape[3])


def _patch(x: jax.Array, axis: int) -> Parts:
    shape = x.shape
    pairs = x.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
    d1, d2 = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
    return [_shift(d2, 1, axis) - d2, d1 + d2, d2 - d1, d1 - _shift(d1, -1, axis)]


def _weigh(k: Sequence[jax.Array]) -> Parts:
    return [k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]]


def _join(p: Parts) -> Parts:
    return [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]


def _patch_doubled(x: jax.Array, axis: int) -> Parts:
    return [_shift(x, 1, axis) - x, x, _shift(x, -1, axis) - x]


def _weigh_doubled(k: Sequence[jax.Array]) -> Parts:
    return [k[0], k[0] + k[1] + k[2], k[2]]


def _join_doubled(p: Parts) -> Parts:
    return [p[0] + p[1], p[1] + p[2]]


def _shift(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves by one to the end (1) or the beginning (-1) of an axis; zeros come in."""
    num = x.shape[axis]
    stays = jax.lax.slice_in_dim(x, max(0, -by), num - max(0, by), axis=axis)
    return jnp.pad(stays, [(max(0, by), max(0, -by)) if i == axis else (0, 0) for i in range(x.ndim)])
