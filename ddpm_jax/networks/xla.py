"""What XLA's compiler for CPUs has to be told; other backends do well by themselves."""

from __future__ import annotations

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp

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


@jax.custom_jvp
def mean_over_space(x: jax.Array) -> jax.Array:
    """[B, N, C] -> [B, C]. Eighths are added first: XLA on CPU is fast at sums of arrays, and slow at sums within one.

    The derivative is that of a plain mean; the eighths' own would take every eighth of the gradient for itself.
    """
    batch, num, channels = x.shape
    if num % 8 == 0:
        eighths = x.reshape(batch, 8, num // 8, channels)
        x = settle(functools.reduce(jnp.add, [eighths[:, i] for i in range(8)]))
    return x.sum(axis=1) / num


@mean_over_space.defjvp
def _mean_over_space_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return mean_over_space(*primals), tangents[0].mean(axis=1)
