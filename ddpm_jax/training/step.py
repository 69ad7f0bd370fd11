"""One step of training: Algorithm 1 of Ho et al. 2020."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import ema, images, keys, timesteps
from ddpm_jax.losses import LossOf
from ddpm_jax.networks import Network
from ddpm_jax.timesteps import DrawTimes
from ddpm_jax.training.state import TrainState

Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    key: jax.Array,
    network: Network,
    loss: LossOf,
    draw_times: DrawTimes,
    optimizer: optax.GradientTransformation,
    averages: Mapping[str, ema.Share],
    *,
    num_classes: int | None = None,
    label_dropout: float = 0.0,
    random_flip: bool = False,
) -> TrainStep:
    """Makes the training step; the caller compiles it, with the state donated.

    What is random (noise level, noise, flip, dropout, labels withheld) follows from (key, step, place in the global batch)
    alone, so it is the same on any number of devices.

    Args:
        key: A typed key, the run's seed.
        network: Called as network(x_t [B, H, W, C], t [B], train=True), and with labels [B] after t where there are classes.
        loss: (key, predict, x0, ids, t) -> losses [B].
        draw_times: (key, history, ids) -> t and the weights of their losses, each [B].
        optimizer: What turns gradients into updates.
        averages: How far each average of the state moves.
        num_classes: Of the batches' `label`, which is also the label that stands for none; None to train without labels.
        label_dropout: The share of examples whose label is withheld, for classifier-free guidance (Ho & Salimans 2022).
        random_flip: Whether images are mirrored at random.

    Returns:
        (state, batch with `image` uint8 [B, H, W, C] and, where there are classes, `label` [B]) -> (state, metrics: scalars
        `loss`, `grad_norm`, `is_finite`).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        def key_of(name: str) -> jax.Array:
            return jax.random.fold_in(keys.stream(key, name), state.step)

        x0 = images.to_float(batch["image"])
        ids = jnp.arange(len(x0))
        if random_flip:
            x0 = images.random_flip(keys.per_example(key_of("flip"), ids), x0)
        labels = None
        if num_classes is not None:
            labels = withhold(keys.per_example(key_of("label"), ids), batch["label"], label_dropout, num_classes)
        dropout_keys = keys.per_example(key_of("dropout"), ids)
        t, weights = draw_times(key_of("loss"), state.history, ids)

        def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
            def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
                return predict_in_training(network, params, x_t, t, dropout_keys, labels)

            losses = loss(key_of("loss"), predict, x0, ids, t)
            return jnp.mean(weights * losses), losses

        (mean, losses), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = {name: ema.update(state.ema[name], params, state.step, share) for name, share in averages.items()}
        grad_norm = optax.tree.norm(gradient)
        metrics = {"loss": mean, "grad_norm": grad_norm, "is_finite": jnp.isfinite(mean) & jnp.isfinite(grad_norm)}
        history = state.history
        if isinstance(history, timesteps.LossHistory):
            history = timesteps.remember(history, t, losses)
        return TrainState(state.step + 1, params, opt_state, moved, history), metrics

    return train_step


def withhold(example_keys: jax.Array, labels: jax.Array, share: float, none: int) -> jax.Array:
    """Labels [B], of which negative ones and a random share become the one that stands for none; example i's by key i."""
    withheld = keys.draw(jax.random.bernoulli, example_keys, share)
    return jnp.where(withheld | (labels < 0), none, labels)


def predict_in_training(
    network: Network, params: Any, x_t: jax.Array, t: jax.Array, dropout_keys: jax.Array, labels: jax.Array | None = None
) -> jax.Array:
    """Runs the network with dropout, each example's mask from its own key.

    The network is mapped over single examples, which is what makes its masks independent of the batch; convolutions and
    products see the whole batch all the same, since mapping them over examples is what batching means.
    """

    def of_one(key: jax.Array, *inputs: jax.Array) -> jax.Array:
        return network.apply(params, *(a[None] for a in inputs), train=True, rngs={"dropout": key})[0]

    return jax.vmap(of_one)(dropout_keys, x_t, t, *(() if labels is None else (labels,)))
