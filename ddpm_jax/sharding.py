"""One mesh axis over all devices; a single device is a mesh of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def make_mesh() -> Mesh:
    """A mesh of all devices along the axis "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def compiler_options() -> dict[str, str | bool]:
    """XLA's options for the programs that cost.

    On CPU: no fusions through YNNPACK, which make small UNets slower; and the barriers between a block and its recomputation
    stay until memory is planned, without which it would come too early to save any.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "cse_barrier_expander"}


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(mesh: Mesh, batch_size: int, num_parts: int = 1) -> None:
    """Raises ValueError where a global batch cannot be divided evenly into microbatches, and those among the devices."""
    if batch_size % (mesh.size * num_parts):
        parts = f" x {num_parts} (--train.accumulate)" if num_parts > 1 else ""
        raise ValueError(f"expected a multiple of {mesh.size} (devices){parts}, received {batch_size}")


def put_ids(mesh: Mesh, ids: Sequence[int]) -> jax.Array:
    """Brings example numbers to the devices, divided among them where they divide evenly; copied to each elsewhere."""
    sharding = replicated(mesh) if len(ids) % mesh.size else over_batch(mesh)
    return jax.device_put(np.asarray(ids, np.int32), sharding)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Brings this process's part of a global batch to its devices.

    Args:
        mesh: The mesh.
        batch: Arrays [B / processes, ...]; the part divides by this process's devices.

    Returns:
        Global arrays [B, ...], divided among all devices.
    """
    sharding = over_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def create(init: Callable[[], T], sharding: NamedSharding) -> T:
    """Calls init, compiled, its arrays born where they live: none is an alias of another that donation would delete."""
    compiled = jax.jit(init, out_shardings=sharding).lower().compile({"xla_backend_optimization_level": "0"})
    return compiled()  # it runs once, so that compiling is what counts: 2 s instead of 6 s for the digits


def abstract(init: Callable[[], T], sharding: NamedSharding) -> T:
    """The shapes, dtypes and shardings of what `create` would return, at no cost: what a checkpoint is loaded into."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), jax.eval_shape(init))
