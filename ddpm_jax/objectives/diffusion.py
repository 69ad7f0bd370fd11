"""A diffusion model of images as an Objective: Algorithm 1 of Ho et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import keys
from ddpm_jax.data import images
from ddpm_jax.losses import LossOf, timesteps
from ddpm_jax.losses.timesteps import DrawTimes
from ddpm_jax.networks import Network
from ddpm_jax.training.objective import Batch, Metrics, Objective, Preview

QUARTILES = 4
"""Number of timestep bins with a loss metric each: `loss_q0` has the least noise."""


def diffusion(
    network: Network,
    image_shape: Sequence[int],
    loss: LossOf,
    draw_times: DrawTimes,
    num_times: float,
    preview: Preview,
    *,
    memory: Any = (),
    num_classes: int | None = None,
    label_dropout: float = 0.0,
    random_flip: bool = False,
) -> Objective:
    """Makes the Objective.

    All randomness (time, noise, flip, dropout, dropped labels) follows from (key, step, global example index).

    Args:
        network: Called as network(x_t [B, H, W, C], t [B], train=True, dropout_keys=keys [B]), with labels [B] after t if
            there are classes.
        image_shape: (H, W, C).
        loss: (key, predict, x0, ids, t) -> losses [B].
        draw_times: (key, memory, ids) -> t and the weights of their losses, each [B].
        num_times: T, or 1 in continuous time; for the metrics.
        preview: Same as for Objective.
        memory: An empty LossHistory for importance sampling, else ().
        num_classes: Number of classes of the batches' `label`, also used as the label of the unconditional model; None to
            train without labels.
        label_dropout: Label dropout probability, for classifier-free guidance (Ho & Salimans 2022).
        random_flip: Whether to flip images horizontally at random.

    Returns:
        The Objective, for batches of `image`, uint8 [B, H, W, C], and `label` [B] if there are classes. Its metrics are the
        losses by timestep quartile.
    """

    def init(key: jax.Array) -> Any:
        return init_params(key, network, image_shape)

    def losses(
        params: Any, key: jax.Array, step: jax.Array, batch: Batch, ids: jax.Array, frozen: Any, memory: Any
    ) -> tuple[jax.Array, jax.Array, Metrics, Any]:
        def key_of(name: str) -> jax.Array:
            return jax.random.fold_in(keys.stream(key, name), step)

        # The data, x0 and its label.
        x0 = images.to_float(batch["image"])
        if random_flip:
            x0 = images.random_flip(keys.per_example(key_of("flip"), ids), x0)
        inputs: tuple[jax.Array, ...] = ()
        if num_classes is not None:
            inputs = (drop_labels(keys.per_example(key_of("label"), ids), batch["label"], label_dropout, num_classes),)

        # The network's loss at random times.
        dropout_keys = keys.per_example(key_of("dropout"), ids)

        def predict(x_t: jax.Array, t: jax.Array) -> Any:
            return network.apply(params, x_t, t, *inputs, train=True, dropout_keys=dropout_keys)

        t, weights = draw_times(key_of("loss"), memory, ids)
        values = loss(key_of("loss"), predict, x0, ids, t)
        return values, weights, _by_quartile(t, values, num_times), (t, values) if has_memory else ()

    def remember(memory: Any, observed: Any) -> Any:
        return timesteps.remember(memory, *observed) if has_memory else memory

    has_memory = bool(jax.tree.leaves(memory))
    return Objective(init, losses, preview, remember, memory=memory)


def init_params(key: jax.Array, network: Network, image_shape: Sequence[int]) -> Any:
    """The initial parameters of a network.

    Args:
        key: A typed key.
        network: The network.
        image_shape: (H, W, C).

    Raises:
        ValueError: the network does not support images of this shape.
    """
    return network.init(keys.stream(key, "init"), jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32))


def drop_labels(example_keys: jax.Array, labels: jax.Array, probability: float, none: int) -> jax.Array:
    """Replaces negative labels, and every other label with a given probability, by the label of the unconditional model.

    Args:
        example_keys: Typed keys [B], one per example.
        labels: Integers [B].
        probability: In [0, 1].
        none: The label of the unconditional model.

    Returns:
        Integers [B].
    """
    dropped = keys.draw(jax.random.bernoulli, example_keys, probability)
    return jnp.where(dropped | (labels < 0), none, labels)


def _by_quartile(t: jax.Array, losses: jax.Array, num_times: float) -> Metrics:
    """The sum and the number of the losses [B] in each timestep quartile."""
    bins = jnp.minimum(t * QUARTILES / num_times, QUARTILES - 1).astype(jnp.int32)
    return {f"loss_q{i}": (jnp.sum(losses, where=bins == i), jnp.sum(bins == i)) for i in range(QUARTILES)}
