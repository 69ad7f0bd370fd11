"""Random numbers that depend on what they are for, never on how the work is divided.

Every draw comes from (seed, stream name, step, example): a named stream, then `fold_in(step)`, then
`fold_in(example id)`. So batch mates, batch sizes, devices and processes change nothing, and nothing random needs saving.
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
    """Derives one key an example.

    Args:
        key: A typed key.
        ids: Integers [B], the examples' global numbers.

    Returns:
        Keys [B]; the i-th depends on (key, ids[i]) alone.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(ids))


def draw(sampler: Callable[..., jax.Array], keys: jax.Array, *args, **kwargs) -> jax.Array:
    """Draws from `sampler(key, *args, **kwargs)` once for each of keys [B]; returns [B, ...]."""
    return jax.vmap(lambda key: sampler(key, *args, **kwargs))(keys)
