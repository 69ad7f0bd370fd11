"""Global norm, gradient clipping, and AdamW."""

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


def adamw(
    learning_rate: optax.ScalarOrSchedule, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay of the kernels (Loshchilov & Hutter 2017, arXiv 1711.05101).

        params <- params - learning_rate (adam + weight_decay params)

    Biases, scales of norms, and embeddings do not decay. The state is that of Adam, whatever the decay, so that a run may be
    resumed with another.
    """
    if weight_decay == 0:
        return optax.adam(learning_rate, *betas)
    adam, decay = optax.scale_by_adam(*betas), optax.add_decayed_weights(weight_decay, _kernels)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(updates, state, params)
        return decay.update(updates, decay.init(params), params)[0], state

    return optax.chain(optax.GradientTransformation(adam.init, update), optax.scale_by_learning_rate(learning_rate))


def _kernels(params: Any) -> Any:
    """Which arrays of a tree are matrices or convolutions: those named "kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), params)
