"""One mesh axis over all devices; a single device is a mesh of one.

Batches are sharded along it. The state is replicated, or sharded as well (as in ZeRO, Rajbhandari et al. 2020): then each
device holds a shard of every large array, and the parameters are gathered while the network runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

MIN_SHARDED_SIZE = 4096
"""Minimum number of elements of a sharded array."""


def make_mesh() -> Mesh:
    """A mesh of all devices along the axis "data"; those of a process are adjacent, so that it reads one slice of a batch."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of an array with one axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def sharded(mesh: Mesh, tree: Any, axes: Sequence[tuple[str, int | None]] = ()) -> Any:
    """Shards each large array along the largest axis that the devices divide; the others are replicated.

    Args:
        mesh: The mesh.
        tree: Arrays, or their shapes.
        axes: Exceptions, of which the first match counts: a regular expression to find in the path of an array, such as
            "opt_state/1/0/mu/params/stem/kernel", and the axis to shard it along, or None to replicate it.

    Returns:
        A NamedSharding for each array.

    Raises:
        ValueError: an exception matches no array, is not a regular expression, or names an axis the devices do not divide.
    """
    used: set[str] = set()

    def of(path: Any, a: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        matches = [(pattern, axis) for pattern, axis in axes if re.search(pattern, name)]
        used.update(pattern for pattern, _ in matches[:1])
        axis = matches[0][1] if matches else largest_axis(a.shape, mesh.size)
        if axis is None:
            return replicated(mesh)
        if not 0 <= axis < len(a.shape) or a.shape[axis] % mesh.size:
            raise ValueError(f"expected an axis that {mesh.size} devices divide, received {axis} for {name} of {a.shape}")
        return over_batch(mesh, axis)

    try:
        shardings = jax.tree_util.tree_map_with_path(of, tree)
    except re.error as error:
        raise ValueError(f"expected regular expressions, received {error.pattern!r}: {error}") from None
    for pattern, _ in axes:
        if pattern not in used:
            raise ValueError(f"expected patterns that are the first to match some array, received {pattern!r}")
    return shardings


def largest_axis(shape: Sequence[int], num_devices: int) -> int | None:
    """The largest axis that num_devices divide; None if there is none, or if the array is too small to shard."""
    sizes = {axis: size for axis, size in enumerate(shape) if size % num_devices == 0}
    return max(sizes, key=lambda axis: sizes[axis]) if sizes and math.prod(shape) >= MIN_SHARDED_SIZE else None


def bytes_per_device(tree: Any) -> int:
    """The bytes that one device holds of a tree of arrays, or of shapes with shardings."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def gather(mesh: Mesh, tree: T) -> T:
    """Replicates arrays within `jit`, where they are used; does nothing for those that are replicated already."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def replicate(mesh: Mesh, tree: T) -> T:
    """Copies arrays to every device; all processes must call it together."""
    return jax.jit(_identity, out_shardings=replicated(mesh))(tree)


def _identity(tree: T) -> T:  # not a lambda, so that JAX's cache recognizes it
    return tree


def check_batch_size(mesh: Mesh, batch_size: int, num_parts: int = 1) -> None:
    """Raises ValueError if a global batch does not divide into microbatches, and these among the devices."""
    if batch_size % (mesh.size * num_parts):
        parts = f" x {num_parts} (--train.accumulate)" if num_parts > 1 else ""
        raise ValueError(f"expected a multiple of {mesh.size} (devices){parts}, received {batch_size}")


def put_ids(mesh: Mesh, ids: Sequence[int]) -> jax.Array:
    """Puts global example indices on the devices: sharded if they divide evenly, else replicated."""
    sharding = replicated(mesh) if len(ids) % mesh.size else over_batch(mesh)
    numbers = np.asarray(ids, np.int32)
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def put_number(mesh: Mesh, number: int) -> jax.Array:
    """Puts an integer on all devices."""
    return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(number, np.int32))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
    """Puts this process's part of one or more global batches on its devices.

    Args:
        mesh: The mesh.
        batch: Arrays [..., B / processes, ...]; B / processes is a multiple of this process's devices.
        axis: The axis of the examples.

    Returns:
        Global arrays [..., B, ...], sharded over all devices.
    """
    sharding = over_batch(mesh, axis)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def create(init: Callable[..., T], sharding: Any, *args: Any) -> T:
    """Calls init under `jit`: its results are created sharded, each in a buffer of its own, so that they can be donated."""
    compiled = jax.jit(init, out_shardings=sharding).lower(*args).compile({"xla_backend_optimization_level": "0"})
    return compiled(*args)  # it runs once, so that compile time dominates: 2 s instead of 6 s for the digits


def abstract(init: Callable[[], T], sharding: Any) -> T:
    """The shapes, dtypes and shardings of the result of `create`, without computing it: the target of a checkpoint load."""
    return placed(jax.eval_shape(init), sharding)


def placed(shapes: T, sharding: Any) -> T:
    """Adds shardings to shapes: one for all, or one for each."""
    shardings = jax.tree.broadcast(sharding, shapes)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)
