"""The training state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.training.objective import Objective


class Skipped(NamedTuple):
    """Counts of skipped steps, whose loss or gradient was not finite.

    Attributes:
        total: All skipped steps, int32 scalar.
        in_a_row: Consecutive skipped steps up to now, int32 scalar.
    """

    total: jax.Array
    in_a_row: jax.Array


class TrainState(NamedTuple):
    """Everything that training changes; all randomness follows from the seed and the step.

    Attributes:
        step: Number of steps taken, int32 scalar; also the number of the next batch.
        params: The parameters.
        opt_state: The state of the optimizer.
        ema: Moving averages of params, by name.
        skipped: Counts of skipped steps.
        history: The memory of the Objective, such as the loss history of importance sampling; () if it has none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: dict[str, Any]
    skipped: Skipped
    history: Any = ()

    def parts(self) -> dict[str, Any]:
        """The parts of a checkpoint by name: every field that is not empty, and each average separately."""
        averages = {f"ema_{name}": average for name, average in self.ema.items()}
        return {name: part for name, part in self._asdict().items() if name != "ema" and jax.tree.leaves(part)} | averages

    @classmethod
    def from_parts(cls, parts: dict[str, Any]) -> TrainState:
        """The inverse of `parts`."""
        averages = {name.removeprefix("ema_"): part for name, part in parts.items() if name.startswith("ema_")}
        return cls(**{name: part for name, part in parts.items() if not name.startswith("ema_")}, ema=averages)


def init_state(
    key: jax.Array, objective: Objective, optimizer: optax.GradientTransformation, averages: Iterable[str] = ("decay",)
) -> TrainState:
    """The state before the first step.

    Args:
        key: A typed key.
        objective: The objective to minimise.
        optimizer: Its optimizer.
        averages: The names of the moving averages of the parameters.
    """
    return state_from_params(objective.init(key), optimizer, averages, objective.memory)


def state_from_params(
    params: Any, optimizer: optax.GradientTransformation, averages: Iterable[str] = ("decay",), history: Any = ()
) -> TrainState:
    """The state before the first step, with given parameters; the averages are copies of them."""
    step, total, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # separate buffers, for donation
    copies = {name: jax.tree.map(jnp.copy, params) for name in averages}
    return TrainState(step, params, optimizer.init(params), copies, Skipped(total, in_a_row), history)


def num_params(params: Any) -> int:
    """The number of parameters."""
    return sum(a.size for a in jax.tree.leaves(params))
