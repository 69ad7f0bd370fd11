"""One training step: the gradient of an Objective and the update of the training state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.devices.compiler import row_major
from ddpm_jax.training import ema
from ddpm_jax.training.objective import Batch, Objective
from ddpm_jax.training.optimizers import norm
from ddpm_jax.training.state import Skipped, TrainState

T = TypeVar("T")
TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, Any]]]
"""(state, batch, frozen) -> (state, metrics)."""


def make_train_step(
    key: jax.Array,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    averages: Mapping[str, ema.Rate],
    *,
    accumulate: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
) -> TrainStep:
    """Makes the training step; the caller compiles it, with the state donated.

    A step whose loss or gradient is not finite is skipped: it changes only the counts of steps and of skipped steps.

    Args:
        key: A typed key, from the seed of the run.
        objective: The objective to minimise.
        optimizer: Turns gradients into updates.
        learning_rate: The optimizer's schedule, by the number of earlier updates; used for the metrics.
        averages: The schedule of 1 - decay of each moving average of the parameters.
        accumulate: Gradient-accumulation steps: n microbatches per batch, each of every n-th example; divides B.
        gather: Gathers sharded parameters on each device.

    Returns:
        (state, batch [B, ...], frozen) -> (state, metrics): scalars `loss`, `grad_norm` (before clipping), `param_norm`,
        `learning_rate`, `is_finite`, `skipped` (in total) and `skipped_in_a_row`; and under `objective` the metrics of the
        Objective, as sums and counts.
    """

    def train_step(state: TrainState, batch: Batch, frozen: Any) -> tuple[TrainState, dict[str, Any]]:
        def mean_loss(params: Any, batch: Batch, ids: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
            losses, weights, metrics, observed = objective.losses(
                gather(params), key, state.step, batch, ids, frozen, state.history
            )
            return jnp.mean(weights * losses), (metrics, observed)

        # The gradient, and whether the step counts.
        loss, metrics, observed, gradient = _gradient(mean_loss, state.params, batch, accumulate)
        gradient = row_major(gradient)
        grad_norm = norm(gradient)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        num_updates = state.step - state.skipped.total

        # Update the parameters, then their averages.
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = _where(is_finite, optax.apply_updates(state.params, updates), state.params)
        moved = {name: ema.update(state.ema[name], params, num_updates, rate) for name, rate in averages.items()}

        # Skip the step if anything is not finite.
        opt_state, moved = _where(is_finite, (opt_state, moved), (state.opt_state, state.ema))
        memory = _where(is_finite, objective.remember(state.history, observed), state.history)
        skipped = Skipped(state.skipped.total + ~is_finite, jnp.where(is_finite, 0, state.skipped.in_a_row + 1))
        return TrainState(state.step + 1, params, opt_state, moved, skipped, memory), {
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": norm(params),
            "learning_rate": jnp.asarray(learning_rate(num_updates)),
            "is_finite": is_finite,
            "skipped": skipped.total,
            "skipped_in_a_row": skipped.in_a_row,
            "objective": metrics,
        }

    return train_step


def multi_step(train_step: TrainStep) -> TrainStep:
    """Makes one program of up to K steps, for a single dispatch by the host.

    Args:
        train_step: From `make_train_step`.

    Returns:
        (state, (batches [K, B, ...], number of them to use), frozen) -> (state, metrics [K, ...], zero for steps not taken).
        The number is an argument, so that one program serves a run resumed at any step. If K = 1 there is no loop.
    """
    once: TrainStep = jax.jit(train_step, inline=True)  # so that it is traced once

    def steps(state: TrainState, ahead: tuple[Batch, jax.Array], frozen: Any) -> tuple[TrainState, Any]:
        batches, num = ahead
        (most,), first = {len(a) for a in batches.values()}, {name: a[0] for name, a in batches.items()}
        if most == 1:
            state, metrics = once(state, first, frozen)
            return state, jax.tree.map(lambda a: a[None], metrics)

        def step(i: Any, before: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, rows = before
            state, metrics = once(state, {name: a[i] for name, a in batches.items()}, frozen)
            return state, jax.tree.map(lambda row, a: row.at[i].set(a), rows, metrics)

        _, metrics = jax.eval_shape(once, state, first, frozen)
        rows = jax.tree.map(lambda a: jnp.zeros((most, *a.shape), a.dtype), metrics)
        return jax.lax.fori_loop(0, num, step, (state, rows))

    return steps


def _gradient(
    mean_loss: Callable[..., tuple[jax.Array, tuple[Any, Any]]], params: Any, batch: Batch, num_parts: int
) -> tuple[jax.Array, Any, Any, Any]:
    """The loss, metrics, observations and gradient of a batch, accumulated over num_parts microbatches.

    A microbatch is every num_parts-th example, so that each device already holds its part of it.
    """
    gradient_of = jax.value_and_grad(mean_loss, has_aux=True)
    ids = jnp.arange(len(jax.tree.leaves(batch)[0]))
    if num_parts == 1:
        (loss, (metrics, observed)), gradient = gradient_of(params, batch, ids)
        return loss, metrics, observed, gradient

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
        total, part = jax.lax.optimization_barrier((total, part))  # so that XLA computes one part at a time
        (loss, (metrics, observed)), gradient = gradient_of(params, *part)
        return jax.tree.map(jnp.add, total, gradient), (loss, metrics, observed)

    parts = jax.tree.map(lambda a: a.reshape(-1, num_parts, *a.shape[1:]).swapaxes(0, 1), (batch, ids))
    unroll = jax.default_backend() == "cpu"  # on which the gradient of a convolution is 20 times slower inside a loop
    total, (losses, metrics, observed) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts, unroll=unroll)
    metrics = jax.tree.map(lambda a: a.sum(axis=0), metrics)
    observed = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), observed)  # in the order of the batch
    return jnp.mean(losses), metrics, observed, jax.tree.map(lambda a: a / num_parts, total)


def _where(condition: jax.Array, new: T, old: T) -> T:
    """`jnp.where` for trees of arrays, with a scalar condition."""
    chosen: T = jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
    return chosen
