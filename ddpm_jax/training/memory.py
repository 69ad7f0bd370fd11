"""Memory and FLOPs of a training step, reported before the first."""

from __future__ import annotations

import jax

from ddpm_jax.devices import sharding
from ddpm_jax.training.state import TrainState


def describe(state: TrainState, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> str:
    """One line: what each device holds between steps and needs during one, and the operations of a step on all of them.

    Args:
        state: The state, or its shapes with shardings.
        lowered: The step, before it is compiled; loops count once.
        compiled: The step.
    """
    held = {"parameters": state.params, "optimizer": state.opt_state, "averages": state.ema}
    shares = ", ".join(f"{name} {_bytes(sharding.bytes_per_device(tree))}" for name, tree in held.items())
    memory, cost = compiled.memory_analysis(), lowered.cost_analysis()
    needed = "" if memory is None else f"; during a step {_bytes(memory.temp_size_in_bytes)} more"
    flops = (cost or {}).get("flops")
    operations = "" if flops is None else f"; {flops:.3g} floating-point operations a step"
    return f"each device holds {shares}{needed}{operations}"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
