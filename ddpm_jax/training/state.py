"""What a run is made of, between two steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import keys
from ddpm_jax.networks import Network


class Skipped(NamedTuple):
    """How many steps changed nothing, since their loss or gradient was not finite.

    Attributes:
        total: All of them, int32 scalar.
        in_a_row: The last ones without another between, int32 scalar.
    """

    total: jax.Array
    in_a_row: jax.Array


class TrainState(NamedTuple):
    """Everything that changes in training; all randomness follows from the seed and the step.

    Attributes:
        step: How many steps were taken, int32 scalar; also the number of the next batch.
        params: The network's variables.
        opt_state: The optimizer's.
        ema: Moving averages of params, by name.
        skipped: The steps that changed nothing.
        history: The LossHistory of importance sampling, () without.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: dict[str, Any]
    skipped: Skipped
    history: Any = ()

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds, by name: everything that is not empty, and each average for itself."""
        averages = {f"ema_{name}": average for name, average in self.ema.items()}
        return {name: part for name, part in self._asdict().items() if name != "ema" and jax.tree.leaves(part)} | averages

    @classmethod
    def of(cls, parts: dict[str, Any]) -> TrainState:
        """The state that has these `parts`."""
        averages = {name.removeprefix("ema_"): part for name, part in parts.items() if name.startswith("ema_")}
        return cls(**{name: part for name, part in parts.items() if not name.startswith("ema_")}, ema=averages)


def init_params(key: jax.Array, network: Network, image_shape: Sequence[int]) -> Any:
    """The network's variables before training.

    Args:
        key: A typed key.
        network: The network.
        image_shape: (H, W, C).

    Raises:
        ValueError: images that the network cannot take.
    """
    return network.init(keys.stream(key, "init"), jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32))


def init_state(
    key: jax.Array,
    network: Network,
    optimizer: optax.GradientTransformation,
    image_shape: Sequence[int],
    averages: Iterable[str] = ("decay",),
    history: Any = (),
) -> TrainState:
    """The state before the first step.

    Args:
        key: A typed key.
        network: The network.
        optimizer: Its optimizer.
        image_shape: (H, W, C).
        averages: Their names.
        history: Of the losses, empty; () where times are not drawn by it.

    Raises:
        ValueError: images that the network cannot take.
    """
    return begin(init_params(key, network, image_shape), optimizer, averages, history)


def begin(
    params: Any, optimizer: optax.GradientTransformation, averages: Iterable[str] = ("decay",), history: Any = ()
) -> TrainState:
    """The state that training starts from with given parameters, its averages copies of them."""
    none = jnp.zeros((), jnp.int32)
    copies = {name: jax.tree.map(jnp.copy, params) for name in averages}
    return TrainState(none, params, optimizer.init(params), copies, Skipped(none, none), history)


def num_params(params: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(a.size for a in jax.tree.leaves(params))
