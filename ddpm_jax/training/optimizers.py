"""Global norm and gradient clipping."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def norm(tree: Any) -> jax.Array:
    """The global L2 norm of a tree of arrays, a float32 scalar.

    The squares of arrays of one shape are added before they are reduced: a network has hundreds of arrays in a few shapes, and
    a reduction for each would cost more in launches than in arithmetic.
    """
    squares: dict[tuple[int, ...], list[jax.Array]] = {}
    for a in jax.tree.leaves(tree):
        squares.setdefault(a.shape, []).append(jnp.square(a.astype(jnp.float32)))
    return jnp.sqrt(jnp.float32(sum(jnp.sum(sum(of_shape)) for of_shape in squares.values())))


def clip(limit: float) -> optax.GradientTransformation:
    """Clips gradients by their global norm (Pascanu et al. 2013, arXiv 1211.5063); inf for no limit."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        scale = jnp.minimum(1, limit / norm(updates))
        return jax.tree.map(lambda a: (a * scale).astype(a.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
