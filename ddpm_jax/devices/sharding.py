"""One mesh axis over all devices; a single device is a mesh of one.

Batches are divided along it. The state is copied to every device, or divided too (as in ZeRO, Rajbhandari et al. 2020): each
device then keeps its share of every large array, and parameters are brought together while the network runs.
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
"""Numbers from which on an array is divided."""


def make_mesh() -> Mesh:
    """A mesh of all devices along the axis "data", those of a process side by side, so that it reads one stretch of a batch."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """An axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def sharded(mesh: Mesh, tree: Any, axes: Sequence[tuple[str, int | None]] = ()) -> Any:
    """Each large array divided among the devices, along its largest axis that they divide; a copy of the others on each.

    Args:
        mesh: The mesh.
        tree: Arrays, or their shapes.
        axes: Exceptions, the first that fits being the one: a regular expression to find in an array's path, such as
            "opt_state/1/0/mu/params/stem/kernel", and the axis to divide it along, None for a copy.

    Returns:
        A NamedSharding for each array.

    Raises:
        ValueError: an exception that is found nowhere, no regular expression, or an axis that the devices do not divide.
    """
    found: set[str] = set()

    def of(path: Any, a: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        asked = [(pattern, axis) for pattern, axis in axes if re.search(pattern, name)]
        found.update(pattern for pattern, _ in asked[:1])
        axis = asked[0][1] if asked else largest_axis(a.shape, mesh.size)
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
        if pattern not in found:
            raise ValueError(f"expected what is found in the path of an array first, received {pattern!r}")
    return shardings


def largest_axis(shape: Sequence[int], num_devices: int) -> int | None:
    """The largest axis that so many devices divide, of what is large enough to divide; None where there is none."""
    sizes = {axis: size for axis, size in enumerate(shape) if size % num_devices == 0}
    return max(sizes, key=lambda axis: sizes[axis]) if sizes and math.prod(shape) >= MIN_SHARDED_SIZE else None


def bytes_per_device(tree: Any) -> int:
    """What one device holds of arrays, or will of shapes with shardings."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def gather(mesh: Mesh, tree: T) -> T:
    """A copy of all arrays on every device; under `jit` where they are used, and nothing where they have one already."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def replicate(mesh: Mesh, tree: T) -> T:
    """Arrays with a copy on every device, from wherever they live; on all processes at once."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: T) -> T:  # by a name, so that JAX knows it again
    return tree


def check_batch_size(mesh: Mesh, batch_size: int, num_parts: int = 1) -> None:
    """Raises ValueError where a global batch cannot be divided evenly into microbatches, and those among the devices."""
    if batch_size % (mesh.size * num_parts):
        parts = f" x {num_parts} (--train.accumulate)" if num_parts > 1 else ""
        raise ValueError(f"expected a multiple of {mesh.size} (devices){parts}, received {batch_size}")


def put_ids(mesh: Mesh, ids: Sequence[int]) -> jax.Array:
    """Brings example numbers to the devices, divided among them where they divide evenly; copied to each elsewhere."""
    sharding = replicated(mesh) if len(ids) % mesh.size else over_batch(mesh)
    numbers = np.asarray(ids, np.int32)
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def put_number(mesh: Mesh, number: int) -> jax.Array:
    """Brings an integer to all devices."""
    return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(number, np.int32))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
    """Brings this process's part of a global batch, or of several, to its devices.

    Args:
        mesh: The mesh.
        batch: Arrays [..., B / processes, ...]; the part divides by this process's devices.
        axis: That of the examples.

    Returns:
        Global arrays [..., B, ...], divided among all devices.
    """
    sharding = over_batch(mesh, axis)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def create(init: Callable[..., T], sharding: Any, *args: Any) -> T:
    """Calls init, compiled, its arrays born where they live: none is an alias of another that donation would delete."""
    compiled = jax.jit(init, out_shardings=sharding).lower(*args).compile({"xla_backend_optimization_level": "0"})
    return compiled(*args)  # it runs once, so that compiling is what counts: 2 s instead of 6 s for the digits


def abstract(init: Callable[[], T], sharding: Any) -> T:
    """The shapes, dtypes and shardings of what `create` would return, at no cost: what a checkpoint is loaded into."""
    return placed(jax.eval_shape(init), sharding)


def placed(shapes: T, sharding: Any) -> T:
    """Shapes with shardings, one for all or one each."""
    shardings = jax.tree.broadcast(sharding, shapes)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)
