"""The loop: batches in; metrics, checkpoints and pictures out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import sharding
from ddpm_jax.training import footprint
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Batch, TrainStep
from ddpm_jax.writers import Terminal, Writer


def train(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[dict[str, np.ndarray]],
    mesh: Mesh,
    num_steps: int,
    *,
    save: Callable[[TrainState], None],
    draw: Callable[[TrainState], None],
    terminal: Terminal,
    writers: Sequence[Writer],
    save_every: int,
    draw_every: int,
    log_every: int,
) -> TrainState:
    """Trains until num_steps, and saves and draws the last state; does nothing where that is reached already.

    Args:
        state: Where to start; its buffers are donated.
        train_step: From `make_train_step`, not compiled.
        batches: Batches from number `state.step` on.
        mesh: The devices.
        num_steps: The step to stop at.
        save: Keeps a state.
        draw: Keeps a picture of what a state draws.
        terminal: Shows progress.
        writers: Take the metrics every log_every steps and before every save and picture: the means of `loss` and
            `grad_norm` since the last time, and `images_per_second`, which leaves out compiling, saving and drawing.
        save_every, draw_every, log_every: In steps.

    Returns:
        The last state.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; that state is not saved.
    """
    start = int(state.step)
    if start >= num_steps:
        return state
    batch = next(batches)
    compiled = _compile(train_step, state, sharding.put_batch(mesh, batch), mesh, terminal)
    began, pending = time.perf_counter(), []
    for step in range(start + 1, num_steps + 1):
        state, metrics = compiled(state, sharding.put_batch(mesh, batch))
        pending.append(metrics)
        terminal.advance()
        batch = next(batches)
        saving, drawing, logging = (step % n == 0 or step == num_steps for n in (save_every, draw_every, log_every))
        if not (saving or drawing or logging):
            continue
        figures = _mean(step, pending)  # waits for the device
        num_images = len(pending) * len(batch["image"]) * jax.process_count()
        figures["images_per_second"] = num_images / (time.perf_counter() - began)
        for writer in (terminal, *writers):
            writer.write(step, figures)
        if saving:
            save(state)
        if drawing:
            draw(state)
        began, pending = time.perf_counter(), []
    return state


def _compile(train_step: TrainStep, state: TrainState, batch: Batch, mesh: Mesh, terminal: Terminal) -> TrainStep:
    """Compiles the step, the state donated and where it was, the batch divided among the devices."""
    began = time.perf_counter()
    placed = jax.tree.map(lambda a: a.sharding, state)
    jitted = jax.jit(
        train_step, donate_argnums=0,
        in_shardings=(placed, sharding.over_batch(mesh)), out_shardings=(placed, sharding.replicated(mesh)),
    )  # fmt: skip
    lowered = jitted.lower(state, batch)
    compiled = lowered.compile(sharding.compiler_options())
    terminal.say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    terminal.say(footprint.describe(state, lowered, compiled))
    return compiled


def _mean(step: int, pending: Sequence[dict[str, jax.Array]]) -> dict[str, float]:
    """The means of the metrics of the steps that ended with `step`."""
    metrics = jax.device_get(list(pending))
    finite = [bool(m["is_finite"]) for m in metrics]
    if not all(finite):
        first = step - len(metrics) + 1 + finite.index(False)
        raise FloatingPointError(f"loss or gradient is not finite at step {first}; the state is that of the last checkpoint")
    return {name: float(np.mean([m[name] for m in metrics])) for name in ("loss", "grad_norm")}
