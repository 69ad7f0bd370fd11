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

    Everything random (noise level, noise, flip, dropout, dropped labels) follows from (key, step, global example index).

    Args:
        network: Called as network(x_t [B, H, W, C], t [B], train=True, dropout_keys=keys [B]), with labels [B] after t if
            there are classes.
        image_shape: (H, W, C).
        loss: (key, predict, x0, ids, t) -> losses [B].
        draw_times: (key, memory, ids) -> t and the weights of their losses, each [B].
        num_times: T, or 1 in continuous time; for the metrics.
        preview: As for Objective.
        memory: The LossHistory of importance sampling, empty; () without.
        num_classes: The number of classes of the batches' `label`, which is also the label of the unconditional model; None
            to train without labels.
        label_dropout: Probability that an example's label is dropped, for classifier-free guidance (Ho & Salimans 2022).
        random_flip: Whether images are mirrored at random.

    Returns:
        The Objective, for batches of `image`, uint8 [B, H, W, C], and `label` [B] if there are classes. Its metrics are the
        losses by quartiles of the times.
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

        # The network, and its loss at random times.
        dropout_keys = keys.per_example(key_of("dropout"), ids)

        def predict(x_t: jax.Array, t: jax.Array) -> Any:
            return network.apply(params, x_t, t, *inputs, train=True, dropout_keys=dropout_keys)

        t, weights = draw_times(key_of("loss"), memory, ids)
        found = loss(key_of("loss"), predict, x0, ids, t)
        return found, weights, _by_quartile(t, found, num_times), (t, found) if has_memory else ()

    def remember(memory: Any, noted: Any) -> Any:
        return timesteps.remember(memory, *noted) if has_memory else memory

    has_memory = bool(jax.tree.leaves(memory))
    return Objective(init, losses, preview, remember, memory=memory)


def init_params(key: jax.Array, network: Network, image_shape: Sequence[int]) -> Any:
    """The network's parameters before training.

    Args:
        key: A typed key.
        network: The network.
        image_shape: (H, W, C).

    Raises:
        ValueError: images that the network cannot take.
    """
    return network.init(keys.stream(key, "init"), jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32))


def drop_labels(example_keys: jax.Array, labels: jax.Array, probability: float, none: int) -> jax.Array:
    """Replaces negative labels, and each other one with the given probability, by the label of the unconditional model.

    Args:
        example_keys: Typed keys [B]; label i is dropped or kept by key i.
        labels: Integers [B].
        probability: In [0, 1].
        none: The label of the unconditional model.

    Returns:
        Integers [B].
    """
    dropped = keys.draw(jax.random.bernoulli, example_keys, probability)
    return jnp.where(dropped | (labels < 0), none, labels)


def _by_quartile(t: jax.Array, losses: jax.Array, num_times: float) -> Metrics:
    """The sums of losses [B] over the quartiles of the times, and how many there were."""
    bins = jnp.minimum(t * QUARTILES / num_times, QUARTILES - 1).astype(jnp.int32)
    return {f"loss_q{i}": (jnp.sum(losses, where=bins == i), jnp.sum(bins == i)) for i in range(QUARTILES)}
