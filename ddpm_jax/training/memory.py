"""Memory and FLOPs of a training step, reported before the first."""

from __future__ import annotations

import os

import jax

from ddpm_jax.devices import sharding
from ddpm_jax.training.state import TrainState


def check_fits(num_bytes: int, what: str) -> None:
    """Raises ValueError if something is larger than the memory of a device; called before that memory is asked for."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if num_bytes > limit:
        raise ValueError(f"expected {what} of at most {_bytes(limit)}, the memory of a device, received {_bytes(num_bytes)}")


def describe(state: TrainState, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> str:
    """One line: the state on each device, the temporary memory of a step, and its FLOPs on all devices together.

    Args:
        state: The state, or its shapes with shardings.
        lowered: The step before compilation; loop bodies are counted once.
        compiled: The compiled step.
    """
    trees = {"parameters": state.params, "optimizer": state.opt_state, "averages": state.ema}
    sizes = ", ".join(f"{name} {_bytes(sharding.bytes_per_device(tree))}" for name, tree in trees.items())
    memory, cost = compiled.memory_analysis(), lowered.cost_analysis()
    temporary = "" if memory is None else f"; during a step {_bytes(memory.temp_size_in_bytes)} more"
    flops = None if cost is None else cost.get("flops")
    operations = "" if flops is None else f"; {flops:.3g} floating-point operations per step"
    return f"each device holds {sizes}{temporary}{operations}"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
