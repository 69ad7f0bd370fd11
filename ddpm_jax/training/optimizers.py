"""The norm of a tree of arrays, and clipping by it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def norm(tree: Any) -> jax.Array:
    """The square root of the sum of all squares of a tree of arrays, a float32 scalar.

    Arrays of one shape are added up before the sum: a network has hundreds of arrays of few shapes, and a sum of its own for
    each would take longer to begin than to compute.
    """
    squares: dict[tuple[int, ...], list[jax.Array]] = {}
    for a in jax.tree.leaves(tree):
        squares.setdefault(a.shape, []).append(jnp.square(a.astype(jnp.float32)))
    return jnp.sqrt(jnp.float32(sum(jnp.sum(sum(of_shape)) for of_shape in squares.values())))


def clip(limit: float) -> optax.GradientTransformation:
    """Scales gradients whose norm is above the limit down to it (Pascanu et al. 2013, arXiv 1211.5063); inf for no limit."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        share = jnp.minimum(1, limit / norm(updates))
        return jax.tree.map(lambda a: (a * share).astype(a.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
