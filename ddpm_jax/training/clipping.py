"""The norm of a tree of arrays, and clipping by it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax


def norm(tree: Any) -> jax.Array:
    """The square root of the sum of all squares of a tree of arrays, a float32 scalar.

    Arrays of one shape are added up before the sum: a network has hundreds of arrays of few shapes, and a sum of its own for
    each would take longer to begin than to compute.
    """
    by_shape: dict[tuple[int, ...], list[jax.Array]] = {}
    for a in jax.tree.leaves(tree):
        by_shape.setdefault(a.shape, []).append(jnp.square(a))
    return jnp.sqrt(sum(jnp.sum(functools.reduce(jnp.add, squares)) for squares in by_shape.values()))


def clip(limit: float) -> optax.GradientTransformation:
    """Scales gradients whose norm is above the limit down to it (Pascanu et al. 2013, arXiv 1211.5063)."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        share = limit / jnp.maximum(norm(updates), limit)
        return jax.tree.map(lambda a: a * share, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
