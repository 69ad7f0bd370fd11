"""The loop: batches in; metrics, checkpoints and pictures out."""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import distributed, sharding
from ddpm_jax.cli import Ended
from ddpm_jax.preemption import Preemption
from ddpm_jax.training import footprint
from ddpm_jax.training.record import Record
from ddpm_jax.training.saver import Saver
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Batch, TrainStep
from ddpm_jax.writers import Terminal


def train(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[dict[str, np.ndarray]],
    mesh: Mesh,
    num_steps: int,
    *,
    record: Record,
    saver: Saver,
    snapshot: Callable[[int, TrainState], None],
    draw: Callable[[TrainState], None],
    draw_every: int,
    preemption: Preemption,
) -> TrainState:
    """Trains until num_steps, and saves and draws the last state; does nothing where that is reached already.

    The metrics of a step are taken when the next one is on its way, so that the device never waits for it.

    Args:
        state: Where to start; its buffers are donated.
        train_step: From `make_train_step`, not compiled.
        batches: Batches from number `state.step` on.
        mesh: The devices.
        num_steps: The step to stop at.
        record: Takes the metrics.
        saver: Saves states: when they are due, and the last.
        snapshot: Keeps what it needs of the state after each step.
        draw: Keeps a picture of what a state draws.
        draw_every: In steps.
        preemption: Asked after each step whether to save and to end.

    Returns:
        The last state.

    Raises:
        FloatingPointError: the loss or the gradient was not finite in too many steps in a row.
        Ended: a signal came, a batch could not be read, or the last state could not be saved; all else is saved first.
    """
    start = int(state.step)
    if start >= num_steps:
        return state
    batch, no_data = _read(batches, start)
    if no_data is not None:
        raise no_data
    compiled = compile_step(train_step, state, sharding.put_batch(mesh, batch), mesh, record.terminal.say)
    record.begin()
    late = None
    for step in range(start + 1, num_steps + 1):
        state, metrics = compiled(state, sharding.put_batch(mesh, batch))
        if late is not None:
            record.take(step - 1, late)
        late = metrics
        snapshot(step, state)
        if step < num_steps:
            with record.waiting_for_data():
                batch, no_data = _read(batches, step)
        ending = step == num_steps or preemption.reached(step) or no_data is not None
        drawing, saving = step % draw_every == 0 or step == num_steps, ending or saver.is_due(step)
        if drawing or saving:
            record.take(step, metrics)
            late = None
            with record.out_of_time():
                if drawing:  # first: a run killed between the two would not come back to draw
                    _draw(draw, state, record.terminal)
                if saving:
                    saver.save(state)
        if ending:
            break
    saved = saver.finish(state)
    how = f"step {step} is {'saved' if saved else 'NOT SAVED'}; the same command again goes on"
    if no_data is not None:
        raise Ended(f"{no_data}; {how}", no_data.code)
    if step < num_steps and preemption.number is not None:
        raise Ended(f"ended by {signal.Signals(preemption.number).name}; {how}", 128 + preemption.number)
    if not saved:
        raise Ended(how, 1)
    return state


def _draw(draw: Callable[[TrainState], None], state: TrainState, terminal: Terminal) -> None:
    """Draws; a picture that the disk has no room for is no reason to end."""
    try:
        draw(state)
    except OSError as error:
        terminal.say(f"CANNOT DRAW step {int(state.step)}: {error}")


def _read(batches: Iterator[dict[str, np.ndarray]], step: int) -> tuple[dict[str, np.ndarray], Ended | None]:
    """The next batch, or why there is none; which one process of several cannot tell the others in time, and it fails."""
    try:
        return next(batches), None
    except (Exception, SystemExit) as error:  # whatever a source raises, or ends its thread with
        if jax.process_count() > 1:
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {}, Ended(f"cannot read the batch of step {step + 1}: {why}", 1)


def compile_step(
    train_step: TrainStep, state: TrainState, batch: Batch, mesh: Mesh, say: Callable[[str], None] = lambda line: None
) -> TrainStep:
    """Compiles the step, the state donated and where it was, the batch divided among the devices.

    Args:
        train_step: From `make_train_step`.
        state: A state, on the mesh.
        batch: A batch, on the mesh.
        mesh: The devices.
        say: Told how long it took, and what a step costs.
    """
    began = time.perf_counter()
    placed = jax.tree.map(lambda a: a.sharding, state)
    jitted = jax.jit(
        train_step, donate_argnums=0,
        in_shardings=(placed, sharding.over_batch(mesh)), out_shardings=(placed, sharding.replicated(mesh)),
    )  # fmt: skip
    lowered = jitted.lower(state, batch)
    compiled = lowered.compile(sharding.compiler_options(gradient=True))
    _give_back_memory()
    say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    say(footprint.describe(state, lowered, compiled))
    distributed.wait("compiled")
    return compiled


def _give_back_memory() -> None:
    """Gives the system what the compiler has left free, up to gigabytes that glibc would keep."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
        trim(0)
