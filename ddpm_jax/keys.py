"""Random numbers that depend on their purpose, never on how the work is divided.

Every draw comes from (seed, stream name, step, example): a named stream, then `fold_in(step)`, then
`fold_in(example id)`. So the rest of the batch, its size, devices and processes change nothing, and no random state is saved.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments

RBG = ("rbg", "unsafe_rbg")


def stream(key: jax.Array, name: str) -> jax.Array:
    """Derives the key of a named stream, independent of all others.

    Args:
        key: A typed key.
        name: What the stream is for, e.g. "dropout".

    Returns:
        A typed key, of threefry (see `batchable`).

    Raises:
        TypeError: As `batchable`.
    """
    return jax.random.fold_in(batchable(key), zlib.crc32(name.encode()))


def per_example(key: jax.Array, ids: ArrayLike) -> jax.Array:
    """Derives one key per example.

    Args:
        key: A typed key.
        ids: Global example indices, integers [B].

    Returns:
        Keys [B]; the i-th depends on (key, ids[i]) alone.

    Raises:
        TypeError: ids are not integers, or as `batchable`.
        ValueError: ids have more or fewer than one dimension.
    """
    key, ids = batchable(key), jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids: expected integers [B], received {arguments.described(ids)}")
    if ids.ndim != 1:
        raise ValueError(f"ids: expected integers [B], received shape {ids.shape}")
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


def batchable(key: jax.Array) -> jax.Array:
    """A key of which each example's draws depend on its own key alone, also under `vmap`.

    JAX's threefry2x32 has this property. Its rbg and unsafe_rbg do not: under `vmap` all numbers come from the first key. Such
    a key becomes a threefry key, which depends on all of its bits.

    Args:
        key: A typed key.

    Returns:
        The key itself, or a threefry key.

    Raises:
        TypeError: no typed key, several of them, or a key of another implementation.
    """
    arguments.check_key(key)
    impl = str(jax.random.key_impl(key))
    if impl == "threefry2x32":
        return key
    if impl not in RBG:
        raise TypeError(f"key: expected one of threefry2x32, {' or '.join(RBG)}, received one of {impl}")
    words = jax.random.key_data(key)
    key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, words[2]), words[3])


def fold(keys: jax.Array, number: ArrayLike) -> jax.Array:
    """Folds an integer, such as a time or a step, into each of keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def global_ids(ids: ArrayLike | None, batch_size: int) -> ArrayLike:
    """The global example indices: ids if given, otherwise 0..batch_size-1; ValueError if ids has another shape than [B]."""
    if ids is None:
        return jnp.arange(batch_size)
    if np.shape(ids) != (batch_size,):
        raise ValueError(f"ids: expected shape {(batch_size,)}, received {np.shape(ids)}")
    return ids


def draw(sampler: Callable[..., jax.Array], keys: jax.Array, *args, **kwargs) -> jax.Array:
    """Draws from `sampler(key, *args, **kwargs)` once for each of keys [B]; returns [B, ...]."""
    return jax.vmap(lambda key: sampler(key, *args, **kwargs))(keys)
