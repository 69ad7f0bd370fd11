"""Random numbers that depend on their purpose, never on how the work is divided.

Every draw comes from (seed, stream name, step, example): a named stream, then `fold_in(step)`, then
`fold_in(example id)`. So the rest of the batch, its size, devices and processes change nothing, and no random state is saved.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def stream(key: jax.Array, name: str) -> jax.Array:
    """Derives the key of a named stream, independent of all others.

    Args:
        key: A typed key.
        name: What the stream is for, e.g. "dropout".

    Returns:
        A typed key.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_example(key: jax.Array, ids: ArrayLike) -> jax.Array:
    """Derives one key per example.

    Args:
        key: A typed key.
        ids: Global example indices, integers [B].

    Returns:
        Keys [B]; the i-th depends on (key, ids[i]) alone.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(ids))


def fold(keys: jax.Array, number: ArrayLike) -> jax.Array:
    """Folds an integer, such as a time or a step, into each of keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def global_ids(ids: ArrayLike | None, batch_size: int) -> ArrayLike:
    """The global example indices: ids if given, otherwise 0..batch_size-1."""
    return jnp.arange(batch_size) if ids is None else ids


def draw(sampler: Callable[..., jax.Array], keys: jax.Array, *args, **kwargs) -> jax.Array:
    """Draws from `sampler(key, *args, **kwargs)` once for each of keys [B]; returns [B, ...]."""
    return jax.vmap(lambda key: sampler(key, *args, **kwargs))(keys)
