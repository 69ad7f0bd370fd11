"""State copies that survive buffer donation, so that a checkpoint can be written during training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.devices import distributed, sharding

Tree = Any


def make_copy(tree: Tree) -> Callable[[Tree], Tree]:
    """Returns an asynchronous copy function for trees of this structure; each device copies its shard of each array.

    The copies stay on the devices if there is room. Otherwise they go to pinned host memory, and later programs wait for the
    transfer: 27 ms for 572 MB on an H200.

    Args:
        tree: Arrays with the shapes, dtypes and shardings of those to be copied. Call this after the first training step,
            because the devices' peak memory, which decides whether there is room, must include the step's temporaries.

    Returns:
        (tree) -> its copy. It raises JAX's or XLA's own error if memory runs out.
    """
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_copy_sharding(a)), tree)
    shardings = jax.tree.map(lambda a: a.sharding, shapes)
    if not _has_room(sharding.bytes_per_device(shapes)):
        shardings = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), shardings)
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)  # without jnp.copy, the same arrays


def _copy_sharding(a: jax.Array) -> jax.sharding.Sharding:
    """The sharding of an array's copy: a large replicated array is sharded."""
    own = a.sharding
    if not isinstance(own, NamedSharding) or not own.is_fully_replicated:
        return own
    axis = sharding.largest_axis(a.shape, own.mesh.size)
    return own if axis is None else own.update(spec=PartitionSpec(*[None] * axis, "data"))


def _has_room(num_bytes: int) -> bool:
    """Whether two such copies fit beside the devices' peak memory; process 0 decides for all, since they copy together.

    Two, because a checkpoint's and a snapshot's may exist at the same time, and because free memory is fragmented.
    """
    if jax.default_backend() == "cpu":
        return True
    return bool(distributed.from_first_process(lambda: 2 * num_bytes <= min(map(_free_bytes, jax.local_devices()))))


def _free_bytes(device: jax.Device) -> float:
    """Bytes beyond a device's peak use so far; 0 if it reports no statistics."""
    stats = device.memory_stats() or {}
    return max(0, stats.get("bytes_limit", 0) - stats.get("peak_bytes_in_use", math.inf))
