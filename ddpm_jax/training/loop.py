"""The loop: batches in; metrics, checkpoints and pictures out."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import distributed, sharding
from ddpm_jax.cli import Ended
from ddpm_jax.preemption import Preemption
from ddpm_jax.training import footprint
from ddpm_jax.training.record import Record
from ddpm_jax.training.saver import Saver
from ddpm_jax.training.snapshots import Snapshots
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import TrainStep, several
from ddpm_jax.writers import Terminal

HostBatch = dict[str, np.ndarray]

PATIENCE = 2.0
"""Seconds of steps at a call: a signal is answered after the call under way and the one that waits behind it."""


def train(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[HostBatch],
    mesh: Mesh,
    num_steps: int,
    *,
    record: Record,
    saver: Saver,
    snapshots: Snapshots,
    draw: Callable[[TrainState], None],
    draw_every: int,
    preemption: Preemption,
    steps_per_call: int = 1,
) -> TrainState:
    """Trains until num_steps, and saves and draws the last state; does nothing where that is reached already.

    The devices are called for one step or for several: until the next multiple of steps_per_call or, as the second call tells
    how long a step takes, for `PATIENCE` seconds. What a call leaves to do, to take its metrics and to save a copy of its
    state, is done when the next one is on its way, so that the devices never wait for it; but they do while a picture is drawn.

    Args:
        state: Where to start; its buffers are donated.
        train_step: From `make_train_step`, not compiled.
        batches: Batches from number `state.step` on.
        mesh: The devices.
        num_steps: The step to stop at.
        record: Takes the metrics.
        saver: Saves states: when they are due, and the last.
        snapshots: Saves averages when they are due.
        draw: Keeps a picture of what a state draws.
        draw_every: In steps.
        preemption: Asked after each call whether to save and to end.
        steps_per_call: Divides the steps between lines, saves, snapshots and pictures, for nothing happens within a call.

    Returns:
        The last state.

    Raises:
        FloatingPointError: the loss or the gradient was not finite in too many steps in a row.
        Ended: a signal came, a batch could not be read, or the last state could not be saved; all else is saved first.
    """
    step = int(state.step)
    if step >= num_steps:
        return state

    most = steps_per_call

    def read() -> tuple[list[HostBatch], Ended | None]:
        return _read(batches, step, min(num_steps, (step // steps_per_call + 1) * steps_per_call, step + most) - step)

    ahead, no_data = read()
    if not ahead and no_data is not None:
        raise no_data
    compiled = compile_step(several(train_step), state, _put(mesh, ahead, steps_per_call), mesh, record.terminal.say)

    ended = 0.0

    def take(step: int, num: int, metrics: Any) -> None:
        """Takes the metrics of a call of so many steps."""
        nonlocal ended
        rows = jax.device_get(metrics)
        ended = time.perf_counter()
        for i in range(num):
            record.take(step - num + 1 + i, {name: row[i] for name, row in rows.items()})

    def save(to: Saver | Snapshots, step: int, copy: Any) -> None:
        if copy is not None:
            with record.out_of_time():
                to.save(step, copy)

    for keeper in (saver, snapshots):
        keeper.prepare(state, footprint.needed(compiled))
    with _what_is_there_left_alone():
        record.begin()
        late: list[Callable[[], None]] = []
        for call in itertools.count():
            began = time.perf_counter()
            state, metrics = compiled(state, _put(mesh, ahead, steps_per_call))
            while late:
                late.pop(0)()
            step, num = step + len(ahead), len(ahead)
            if call == 1 and steps_per_call > 1:  # not the first, which has more to do
                jax.block_until_ready(metrics)
                seconds = (time.perf_counter() - max(began, ended)) / num
                most = distributed.of_first(functools.partial(_fitting, steps_per_call, seconds))
            ahead = []
            if step < num_steps and no_data is None:
                with record.waiting_for_data():
                    ahead, no_data = read()
            ending = not ahead or preemption.reached(call)
            is_drawn = step % draw_every == 0 or step == num_steps
            late.append(functools.partial(take, step, num, metrics))
            if ending or is_drawn:
                late.pop()()
            with record.out_of_time():
                if is_drawn:  # first: a run killed between the two would not come back to draw
                    _draw(draw, state, record.terminal)
                if snapshots.is_due(step):
                    late.append(functools.partial(save, snapshots, step, snapshots.copy(step, state)))
                if ending or saver.is_due(step):
                    late.append(functools.partial(save, saver, step, state.parts() if ending else saver.copy(step, state)))
            if ending:
                break
        while late:
            late.pop(0)()
    is_saved = saver.finish(step, state)
    how = f"step {step} is {'saved' if is_saved else 'NOT SAVED'}; the same command again goes on"
    if no_data is not None:
        raise Ended(f"{no_data}; {how}", no_data.code)
    if step < num_steps and preemption.number is not None:
        raise Ended(f"ended by {signal.Signals(preemption.number).name}; {how}", 128 + preemption.number)
    if not is_saved:
        raise Ended(how, 1)
    return state


def default_steps_per_call(everies: Collection[int]) -> int:
    """Steps that the devices take at one call: up to ten on accelerators, as many as fit between what is done every so many.

    Training CIFAR-10 is then 1.25 times as fast on a GPU, whose host does not keep up step by step. One on CPU, where the
    gradient of a convolution is 20 times slower within a loop.
    """
    most = 1 if jax.default_backend() == "cpu" else 10
    return max(n for n in range(1, most + 1) if math.gcd(*everies) % n == 0)


def _fitting(steps_per_call: int, seconds: float) -> int:
    """The largest divisor of so many steps that takes `PATIENCE` at most."""
    return max(n for n in range(1, steps_per_call + 1) if steps_per_call % n == 0 and (n == 1 or n * seconds <= PATIENCE))


def _draw(draw: Callable[[TrainState], None], state: TrainState, terminal: Terminal) -> None:
    """Draws; a picture that the disk has no room for is no reason to end."""
    try:
        draw(state)
    except OSError as error:
        terminal.say(f"CANNOT DRAW step {int(state.step)}: {error}")


def _read(batches: Iterator[HostBatch], step: int, num: int) -> tuple[list[HostBatch], Ended | None]:
    """The next batches, and why there are fewer; which one process of several cannot tell the others in time, and it fails."""
    ahead: list[HostBatch] = []
    try:
        while len(ahead) < num:
            ahead.append(next(batches))
    except (Exception, SystemExit) as error:  # whatever a source raises, or ends its thread with
        if jax.process_count() > 1:
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return ahead, Ended(f"cannot read the batch of step {step + len(ahead) + 1}: {why}", 1)
    return ahead, None


def _put(mesh: Mesh, ahead: list[HostBatch], steps_per_call: int) -> Any:
    """What a call takes: the batches in a row, the last again in places left, and how many they are."""
    filled = ahead + ahead[-1:] * (steps_per_call - len(ahead))
    rows = {name: np.stack([batch[name] for batch in filled]) for name in ahead[0]}
    return sharding.put_batch(mesh, rows, axis=1), sharding.put_number(mesh, len(ahead))


def compile_step(
    train_step: TrainStep, state: TrainState, batch: Any, mesh: Mesh, say: Callable[[str], None] = lambda line: None
) -> jax.stages.Compiled:
    """Compiles the step, or several, the state donated; state and batch are where they were.

    Args:
        train_step: From `make_train_step` or `several`.
        state: A state, on the mesh, or its shapes with shardings.
        batch: What it takes besides, likewise.
        mesh: The devices.
        say: Told how long it took, and what a step costs.
    """
    began = time.perf_counter()
    placed = jax.tree.map(lambda a: a.sharding, (state, batch))
    jitted = jax.jit(train_step, donate_argnums=0, in_shardings=placed, out_shardings=(placed[0], sharding.replicated(mesh)))
    lowered = jitted.lower(state, batch)
    compiled = lowered.compile(sharding.compiler_options(gradient=True))
    _tidy()
    say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    say(footprint.describe(state, lowered, compiled))
    distributed.wait("compiled")
    return compiled


def _tidy() -> None:
    """Gives the system what the compiler has left free, up to gigabytes that glibc would keep."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
        trim(0)


@contextlib.contextmanager
def _what_is_there_left_alone() -> Iterator[None]:
    """Has Python not look for garbage in all that JAX has by now.

    To look at half a million objects takes 0.3 s, in which no device is called, every few thousand steps.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
