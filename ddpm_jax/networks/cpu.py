"""Work-arounds for XLA on CPU, all in this file.

They change results only by rounding. On other platforms they do nothing, except for the barrier in `over_images`.

Their gain in a training step of the CIFAR-10 network at batch 8, float32, two cores; memory excludes the training state.
docs/benchmarks.md has the measurements.

| work-around | step time without it | memory without it |
|---|---|---|
| 3x3 convolutions by Winograd's method | 1.28 times, but half the compile time | 426 instead of 418 MiB |
| `compiler_options` | 1.29 times | 784 instead of 418 MiB |
| `barrier` | | 467 instead of 418 MiB |

`barrier`, `swish`, `over_images` and `mean_over_space`, with `GroupNorm` and `DoubleConv` in `layers`, took a step from 2.87 to
2.15 s of processor time before Winograd's method was added. At the end of the file is a work-around for GPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

T = TypeVar("T")
Parts = list[jax.Array]
Convolve = Callable[[jax.Array, jax.Array], jax.Array]
"""(x [B, H, W, C], kernel [3, 3, C, F]) -> [B, H, W, F], or twice the size."""
Options = tuple[tuple[str, str | bool], ...]


def on_cpu() -> bool:
    """Whether programs run on the CPU."""
    return jax.default_backend() == "cpu"


# Fusion: XLA recomputes an array in each of its uses, which is slow if these are sums or transpositions.


def barrier(x: T) -> T:
    """Makes XLA compute x, an array or a tree, once for all its uses, and its gradient too."""
    once: T = jax.lax.optimization_barrier(x) if on_cpu() else x
    return once


@jax.custom_jvp
def swish(x: jax.Array) -> jax.Array:
    """x sigmoid(x). A barrier is on its gradient, because the gradient of the norm before it uses it three times."""
    return x * nn.sigmoid(x)


@swish.defjvp
def _swish_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    sigmoid = nn.sigmoid(x)
    return x * sigmoid, barrier(dx) * (sigmoid * (1 + x * (1 - sigmoid)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def over_images(a: jax.Array, batch: int) -> jax.Array:
    """[C] -> [B, C]. Its gradient is summed per image first; XLA would merge this into one sum over batch and space."""
    return jnp.broadcast_to(a, (batch, *a.shape))


@over_images.defjvp
def _over_images_jvp(batch: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (a,), (da,) = primals, tangents
    return over_images(a, batch), jax.lax.optimization_barrier(jnp.broadcast_to(da, (batch, *a.shape)))


@jax.custom_jvp
def mean_over_space(x: jax.Array) -> jax.Array:
    """[B, N, C] -> [B, C], in 8 chunks that are added first: XLA is fast at adding arrays, slow at sums within one.

    The derivative is that of a plain mean; that of the chunks would slice the gradient into eight.
    """
    batch, num, channels = x.shape
    if on_cpu() and num % 8 == 0:
        chunks = x.reshape(batch, 8, num // 8, channels)
        x = barrier(functools.reduce(jnp.add, [chunks[:, i] for i in range(8)]))
    return x.sum(axis=1) / num


@mean_over_space.defjvp
def _mean_over_space_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return mean_over_space(*primals), tangents[0].mean(axis=1)


# 3x3 convolutions by fewer multiplications: F(2x2, 3x3) of Winograd 1980; Lavin & Gray 2016, arXiv 1509.09308.
#
# Along one axis, two neighbouring outputs of a kernel (k0, k1, k2) come from four inputs (d0, d1, d2, d3) by four products
# instead of six:
#
#     p0 = (d0 - d2) k0    p1 = (d1 + d2) (k0 + k1 + k2) / 2    p2 = (d2 - d1) (k0 - k1 + k2) / 2    p3 = (d1 - d3) k2
#     y0 = p0 + p1 + p2 = d0 k0 + d1 k1 + d2 k2
#     y1 = p1 - p2 - p3 = d1 k0 + d2 k1 + d3 k2
#
# On an image that was doubled before, (a, b, b, c) instead of (d0, ..., d3), by three:
#
#     p0 = (a - b) k0    p1 = b (k0 + k1 + k2)    p2 = (c - b) k2    y0 = p0 + p1    y1 = p1 + p2
#
# Along both axes, 2x2 pixels take 16 products, or 9, instead of 36; each is a product of large matrices.


def conv(x: jax.Array, kernel: jax.Array, *, otherwise: Convolve) -> jax.Array:
    """`winograd_conv` if that is faster, otherwise the plain form of the same convolution."""
    return _if_faster(winograd_conv, otherwise, x, kernel)


def double_conv(x: jax.Array, kernel: jax.Array, *, otherwise: Convolve) -> jax.Array:
    """`winograd_double_conv` if that is faster, otherwise the plain form of the same."""
    return _if_faster(winograd_double_conv, otherwise, x, kernel)


def _if_faster(winograd: Convolve, plain: Convolve, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """On CPU, in float32: from 128 channels on in the forward pass and the gradient, from 64 on in the forward pass alone."""
    (batch, height, width, _), (_, _, channels, features) = x.shape, kernel.shape
    even = height % 2 == 0 and width % 2 == 0
    if on_cpu() and x.dtype == jnp.float32 and even and batch * height * width >= 512:
        if channels >= 128 and features >= 128:
            return winograd(x, kernel)
        if channels >= 64 and features >= 32:
            return forward_only(winograd, plain)(x, kernel)
    return plain(x, kernel)


def winograd_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves, zeros around the image: [B, H, W, C], kernel [3, 3, C, F] -> [B, H, W, F]; H and W even."""
    return _convolve(_patch, _weigh, _join, x, kernel)


def winograd_double_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles by nearest neighbour, then convolves: [B, H, W, C], kernel [3, 3, C, F] -> [B, 2H, 2W, F]."""
    return _convolve(_patch_doubled, _weigh_doubled, _join_doubled, x, kernel)


def forward_only(winograd: Convolve, plain: Convolve) -> Convolve:
    """Winograd's method in the forward pass, the plain form in the derivatives, where it is faster if channels are few."""

    @jax.custom_jvp
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return winograd(x, kernel)

    @convolve.defjvp
    def jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return winograd(*primals), jax.jvp(plain, primals, tangents)[1]

    return convolve


@functools.partial(jax.checkpoint, static_argnums=(0, 1, 2))  # patches take 4 times the memory of x, and little time
def _convolve(
    patch: Callable[[jax.Array, int], Parts],
    weigh: Callable[[Sequence[jax.Array]], Parts],
    join: Callable[[Parts], Parts],
    x: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """Inputs to patches along both axes, kernel to weights, the products of matrices [places, C] by [C, F] to pixels."""
    rows = barrier(patch(x, 1))
    patches = barrier([[d.reshape(-1, x.shape[3]) for d in patch(row, 2)] for row in rows])
    weights = barrier([weigh(list(row)) for row in weigh(list(kernel))])
    products = barrier([[d @ k for d, k in zip(*row, strict=True)] for row in zip(patches, weights, strict=True)])
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


# Compiler options.


def compiler_options(*, gradient: bool = False) -> dict[str, str | bool]:
    """The options for `jax.jit` or `Lowered.compile` of expensive programs; on CPU those below that this XLA knows, else none.

    YNNPACK is a library that XLA calls for some operations, by default also for those at which it is slower: here it gets the
    sums of programs with a gradient, and the convolutions of others if several devices share the cores. Vectors have 512 bits
    if the processor has them. The barriers between a block and its recomputation (`remat`) stay until memory is planned;
    without them XLA recomputes too early to save any memory.

    Args:
        gradient: Whether the program computes a network's gradient.
    """
    if not on_cpu():
        return {}
    convolutions = "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION" if jax.local_device_count() > 1 else ""
    return known_options(
        xla_cpu_experimental_ynn_fusion_type="LIBRARY_FUSION_TYPE_REDUCE" if gradient else convolutions,
        xla_cpu_prefer_vector_width="512",
        xla_disable_hlo_passes="cse_barrier_expander",
    )


def known_options(**options: str | bool) -> dict[str, str | bool]:
    """Drops the options that this version of XLA does not know: an unknown option fails every compilation.

    To find out, each process compiles an empty program with all of them, and if that fails, with one after the other.
    """
    return dict(_known(tuple(options.items())))


@functools.cache
def _known(options: Options) -> Options:
    nothing = jax.jit(lambda: 0).lower()

    def accepted(options: Options) -> bool:
        try:
            nothing.compile(dict(options))
        except Exception:  # a JaxRuntimeError today: INVALID_ARGUMENT
            return False
        return True

    if accepted(options):
        return options
    kept: Options = ()
    for option in options:
        if accepted((*kept, option)):
            kept = (*kept, option)
    return kept


# One for GPUs.


def row_major(tree: T) -> T:
    """Makes XLA for GPUs keep arrays in the layout in which they are stored.

    A convolution's gradient has another layout, which would spread to the optimizer, so that its state would be transposed
    twice per step. On a single device only: sharded arrays would be gathered for it.
    """
    if jax.default_backend() != "gpu" or jax.device_count() > 1:
        return tree
    laid_out: T = jax.tree.map(lambda a: with_layout_constraint(a, Layout(tuple(range(a.ndim)))), tree)
    return laid_out
