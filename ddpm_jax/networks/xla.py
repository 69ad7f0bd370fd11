"""What XLA's compilers have to be told, most of it that for CPUs."""

from __future__ import annotations

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

T = TypeVar("T")


def on_cpu() -> bool:
    """Whether programs run on the CPU."""
    return jax.default_backend() == "cpu"


def settle(x: T) -> T:
    """Has XLA compute x, an array or a tree, once and for all its uses, and what comes back to it likewise.

    On CPU it would otherwise compute x anew in each of its uses, some of which are sums and transpositions, where that is slow.
    """
    settled: T = jax.lax.optimization_barrier(x) if on_cpu() else x
    return settled


def row_major(tree: T) -> T:
    """Has XLA for GPUs lay arrays out as they are stored, before others follow them.

    A convolution's gradient comes in another order, which would spread over all that an optimizer does, and have its state
    transposed at every step, there and back. On one device alone: arrays that are divided would be brought together for it.
    """
    if jax.default_backend() != "gpu" or jax.device_count() > 1:
        return tree
    laid_out: T = jax.tree.map(lambda a: with_layout_constraint(a, Layout(tuple(range(a.ndim)))), tree)
    return laid_out


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def over_images(a: jax.Array, batch: int) -> jax.Array:
    """[C] -> [B, C]; a gradient is summed for each image first, which XLA would do anew in one sum over all."""
    return jnp.broadcast_to(a, (batch, *a.shape))


@over_images.defjvp
def _over_images_jvp(batch: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (a,), (da,) = primals, tangents
    return over_images(a, batch), jax.lax.optimization_barrier(jnp.broadcast_to(da, (batch, *a.shape)))


@jax.custom_jvp
def mean_over_space(x: jax.Array) -> jax.Array:
    """[B, N, C] -> [B, C]. On CPU eighths are added first: XLA there is fast at sums of arrays, and slow at sums within one.

    The derivative is that of a plain mean; the eighths' own would take every eighth of the gradient for itself.
    """
    batch, num, channels = x.shape
    if on_cpu() and num % 8 == 0:
        eighths = x.reshape(batch, 8, num // 8, channels)
        x = settle(functools.reduce(jnp.add, [eighths[:, i] for i in range(8)]))
    return x.sum(axis=1) / num


@mean_over_space.defjvp
def _mean_over_space_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return mean_over_space(*primals), tangents[0].mean(axis=1)
