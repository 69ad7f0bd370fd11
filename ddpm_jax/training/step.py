"""One step of training: Algorithm 1 of Ho et al. 2020."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import ema, images, keys, timesteps
from ddpm_jax.clipping import norm
from ddpm_jax.losses import LossOf
from ddpm_jax.networks import Network, UNet
from ddpm_jax.networks.xla import row_major, settle
from ddpm_jax.timesteps import DrawTimes
from ddpm_jax.training.state import Skipped, TrainState

QUARTERS = 4
"""The times are divided into as many parts, the loss of each of which is a metric of its own."""

Batch = dict[str, jax.Array]
T = TypeVar("T")
TrainStep = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    key: jax.Array,
    network: Network,
    loss: LossOf,
    draw_times: DrawTimes,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    averages: Mapping[str, ema.Share],
    num_times: int,
    *,
    accumulate: int = 1,
    num_classes: int | None = None,
    label_dropout: float = 0.0,
    random_flip: bool = False,
    gather: Callable[[Any], Any] = lambda params: params,
) -> TrainStep:
    """Makes the training step; the caller compiles it, with the state donated.

    What is random (noise level, noise, flip, dropout, labels withheld) follows from (key, step, place in the global batch)
    alone, so it is the same on any number of devices and in any number of microbatches. A step whose loss or gradient is not
    finite changes nothing but the step and the count of those skipped.

    Args:
        key: A typed key, the run's seed.
        network: Called as network(x_t [B, H, W, C], t [B], train=True), and with labels [B] after t where there are classes.
        loss: (key, predict, x0, ids, t) -> losses [B].
        draw_times: (key, history, ids) -> t and the weights of their losses, each [B].
        optimizer: What turns gradients into updates.
        learning_rate: Of the optimizer, by the number of updates before; for the metrics.
        averages: How far each average of the state moves.
        num_times: T; for the metrics.
        accumulate: Microbatches whose gradients are averaged before the optimizer sees them; divides B.
        num_classes: Of the batches' `label`, which is also the label that stands for none; None to train without labels.
        label_dropout: The share of examples whose label is withheld, for classifier-free guidance (Ho & Salimans 2022).
        random_flip: Whether images are mirrored at random.
        gather: Brings parameters together that are divided among devices.

    Returns:
        (state, batch with `image` uint8 [B, H, W, C] and, where there are classes, `label` [B]) -> (state, metrics): scalars
        `loss`, `grad_norm`, before clipping, `param_norm`, `learning_rate`, `is_finite`, `skipped`, in all, and
        `skipped_in_a_row`; and by quarters of the times [4] `quarter_losses`, the sums of the losses, and `quarter_counts`,
        of how many.
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

        def loss_of(params: Any, examples: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            x0, labels, ids, dropout_keys, t, weights = examples

            def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
                return predict_in_training(network, gather(params), x_t, t, dropout_keys, labels)

            losses = loss(key_of("loss"), predict, x0, ids, t)
            return jnp.mean(weights * losses), losses

        examples = (x0, labels, ids, dropout_keys, t, weights)
        mean, losses, gradient = _mean_gradient(loss_of, state.params, examples, accumulate)
        gradient = row_major(gradient)
        grad_norm = norm(gradient)
        is_finite = jnp.isfinite(mean) & jnp.isfinite(grad_norm)
        num_updates = state.step - state.skipped.total
        params, opt_state, moved = _updated(optimizer, averages, state, gradient, num_updates, is_finite)
        history = state.history
        if isinstance(history, timesteps.LossHistory):
            history = _where(is_finite, timesteps.remember(history, t, losses), history)
        skipped = Skipped(state.skipped.total + ~is_finite, jnp.where(is_finite, 0, state.skipped.in_a_row + 1))
        state = TrainState(state.step + 1, params, opt_state, moved, skipped, history)
        metrics = {
            "loss": mean,
            "grad_norm": grad_norm,
            "param_norm": norm(params),
            "learning_rate": jnp.asarray(learning_rate(num_updates)),
            "is_finite": is_finite,
            "skipped": skipped.total,
            "skipped_in_a_row": skipped.in_a_row,
        }
        return state, metrics | _by_quarters(t, losses, num_times)

    return train_step


def several(train_step: TrainStep) -> TrainStep:
    """Makes one program of a step and the steps after it, which the host then starts once for all.

    Args:
        train_step: From `make_train_step`.

    Returns:
        (state, (batches [K, B, ...], how many of them to take)) -> (state, metrics [K, ...], zero where none was taken). The
        number is not part of the program, so that the same program runs whatever steps a run is broken off at. For K = 1, a
        step, there is no loop.
    """
    once: TrainStep = jax.jit(train_step, inline=True)  # so that it is traced once

    def steps(state: TrainState, ahead: tuple[Batch, jax.Array]) -> tuple[TrainState, Any]:
        batches, num = ahead
        (most,), first = {len(a) for a in batches.values()}, {name: a[0] for name, a in batches.items()}
        if most == 1:
            state, metrics = once(state, first)
            return state, jax.tree.map(lambda a: a[None], metrics)

        def step(i: Any, before: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, rows = before
            state, metrics = once(state, {name: a[i] for name, a in batches.items()})
            return state, jax.tree.map(lambda row, a: row.at[i].set(a), rows, metrics)

        _, metrics = jax.eval_shape(once, state, first)
        rows = jax.tree.map(lambda a: jnp.zeros((most, *a.shape), a.dtype), metrics)
        return jax.lax.fori_loop(0, num, step, (state, rows))

    return steps


def withhold(example_keys: jax.Array, labels: jax.Array, share: float, none: int) -> jax.Array:
    """Labels [B], of which negative ones and a random share become the one that stands for none; example i's by key i."""
    withheld = keys.draw(jax.random.bernoulli, example_keys, share)
    return jnp.where(withheld | (labels < 0), none, labels)


def _mean_gradient(
    loss_of: Callable[..., tuple[jax.Array, jax.Array]], params: Any, examples: tuple[Any, ...], num_parts: int
) -> tuple[jax.Array, jax.Array, Any]:
    """The loss of a batch, the losses of its examples [B], and the gradient, by num_parts microbatches one after another.

    A microbatch is every num_parts-th example: each device then has its share of it already.
    """
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
    if num_parts == 1:
        (mean, losses), gradient = gradient_of(params, examples)
        return mean, losses, gradient

    def add(total: Any, part: tuple[Any, ...]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        x0 = part[0] + 0 * jax.tree.leaves(total)[0].ravel()[0]  # so that XLA finishes one part before it begins another
        of_part, gradient = gradient_of(params, (x0, *part[1:]))
        return jax.tree.map(jnp.add, total, gradient), of_part

    parts = jax.tree.map(lambda a: a.reshape(-1, num_parts, *a.shape[1:]).swapaxes(0, 1), examples)
    unroll = jax.default_backend() == "cpu"  # where the gradient of a convolution is 20 times slower within a loop
    total, (means, losses) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts, unroll=unroll)
    return jnp.mean(means), losses.T.reshape(-1), jax.tree.map(lambda a: a / num_parts, total)


def _updated(
    optimizer: optax.GradientTransformation,
    averages: Mapping[str, ema.Share],
    state: TrainState,
    gradient: Any,
    num_updates: jax.Array,
    is_finite: jax.Array,
) -> tuple[Any, Any, dict[str, Any]]:
    """The parameters, the optimizer's state and the averages after an update; those before it where not all is finite.

    Each is written upon what was before, once nothing else reads that: or XLA on CPU copies the whole state at every step.
    """
    updates, _ = optimizer.update(gradient, state.opt_state, state.params)
    updates, gradient, state = settle((updates, gradient, state))
    _, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = settle(_where(is_finite, optax.apply_updates(state.params, updates), state.params))
    moved = {name: ema.update(state.ema[name], params, num_updates, share) for name, share in averages.items()}
    return params, _where(is_finite, opt_state, state.opt_state), _where(is_finite, moved, state.ema)


def _where(condition: jax.Array, new: T, old: T) -> T:
    """One tree of arrays or the other."""
    chosen: T = jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
    return chosen


def _by_quarters(t: jax.Array, losses: jax.Array, num_times: int) -> dict[str, jax.Array]:
    """The sums of losses [B] over the quarters of the times, and their numbers, each [4]."""
    quarter = t * QUARTERS // num_times
    sums, counts = (jnp.zeros(QUARTERS).at[quarter].add(each) for each in (losses, jnp.ones_like(losses)))
    return {"quarter_losses": sums, "quarter_counts": counts}


def predict_in_training(
    network: Network, params: Any, x_t: jax.Array, t: jax.Array, dropout_keys: jax.Array, labels: jax.Array | None = None
) -> jax.Array:
    """Runs the network with dropout, each example's mask from its own key.

    A UNet sees to that itself. Others are mapped over single examples, which is what makes their masks independent of the
    batch; convolutions and products see the whole batch all the same, since mapping them over examples is what batching means.
    """
    inputs = (x_t, t) if labels is None else (x_t, t, labels)
    if isinstance(network, UNet):
        output: Any = network.apply(params, *inputs, train=True, dropout_keys=dropout_keys)
        return output

    def of_one(key: jax.Array, *inputs: jax.Array) -> jax.Array:
        return network.apply(params, *(a[None] for a in inputs), train=True, rngs={"dropout": key})[0]

    return jax.vmap(of_one)(dropout_keys, *inputs)
