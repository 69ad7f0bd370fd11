"""The training loop: step, log, draw, save."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.devices import distributed, sharding
from ddpm_jax.devices.compiler import compiler_options
from ddpm_jax.devices.preemption import EarlyExit, Preemption
from ddpm_jax.training import memory
from ddpm_jax.training.metrics import MetricLog
from ddpm_jax.training.saving import Saver
from ddpm_jax.training.snapshots import Snapshots
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import TrainStep, multi_step

HostBatch = dict[str, np.ndarray]
Hook = tuple[int, Callable[[int, Any], None]]
"""(every so many steps, function(step, params)); params are an average of the parameters, on every device."""

MAX_DISPATCH_SECONDS = 2.0
"""Seconds of steps per dispatch at most: a signal is answered after the dispatch under way and the one queued behind it."""


def train(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[HostBatch],
    mesh: Mesh,
    num_steps: int,
    *,
    log: MetricLog,
    saver: Saver,
    snapshots: Snapshots,
    preemption: Preemption,
    hooks: Sequence[Hook] = (),
    average: str | None = None,
    frozen: Any = (),
    steps_per_call: int = 1,
) -> TrainState:
    """Trains until num_steps; returns at once if that is reached already.

    The metrics of a dispatch are read while the devices run the next one, except before something is drawn or saved.

    Args:
        state: Where to start; its buffers are donated.
        train_step: From `make_train_step`, not compiled.
        batches: Batches from number `state.step` on.
        mesh: The devices.
        num_steps: The step to stop at.
        log: Takes the metrics.
        saver: Saves states, when they are due and at the end.
        snapshots: Saves averages when they are due.
        preemption: Asked after each dispatch whether to save and end.
        hooks: Called when they are due and at step num_steps, before the state is saved: to draw, to evaluate.
        average: The average that hooks are given, by name; None for the parameters themselves.
        frozen: The Objective's, on the devices.
        steps_per_call: Training steps per dispatch; divides the intervals of lines, saves, snapshots and hooks, since
            nothing happens within a dispatch.

    Returns:
        The last state.

    Raises:
        FloatingPointError: the loss or the gradient was not finite in too many steps in a row.
        EarlyExit: a signal came, a batch could not be read, or the last state could not be saved; all else is saved first.
    """
    step = int(state.step)
    if step >= num_steps:
        return state
    feed = _Feed(batches, mesh, step, num_steps, steps_per_call)
    compiled = compile_step(multi_step(train_step), state, feed.put(), frozen, mesh, log.terminal.say)

    log.start_clock()
    previous = None  # the dispatch whose metrics have not been read
    for dispatch in itertools.count():
        # Step: dispatch the next batches, and read those that follow.
        state, metrics = compiled(state, feed.put(), frozen)
        if previous is not None:
            log.add_dispatch(*previous)
        began = time.perf_counter()
        step, num = step + len(feed.queued), len(feed.queued)
        previous = step, num, metrics
        if dispatch == 1:  # not the first, which takes longer
            feed.measure(began, metrics)
        with log.waiting_for_data():
            feed.read(step)
        ending = not feed.queued or preemption.should_stop(dispatch)
        due = [function for every, function in hooks if step % every == 0 or step == num_steps]
        if not (ending or due or snapshots.is_due(step) or saver.is_due(step)):
            continue

        # Log, draw, save: in this order, since a run killed between the last two would not come back to draw.
        log.add_dispatch(*previous)
        previous = None
        with log.paused_clock():
            if due:
                _call(due, step, sharding.replicate(mesh, state.params if average is None else state.ema[average]))
            if snapshots.is_due(step):
                snapshots.save(step, state)
            if ending or saver.is_due(step):
                saver.save(step, state, is_last=ending)
        if ending:
            break
    is_saved = saver.finish(step, state)
    _raise_if_incomplete(step, num_steps, feed.ended, preemption.number, is_saved)
    return state


def _call(hooks: Sequence[Callable[[int, Any], None]], step: int, params: Any) -> None:
    for hook in hooks:
        hook(step, params)


def _raise_if_incomplete(step: int, num_steps: int, no_data: EarlyExit | None, number: int | None, is_saved: bool) -> None:
    how = f"step {step} is {'saved' if is_saved else 'NOT SAVED'}; the same command again goes on"
    if no_data is not None:
        raise EarlyExit(f"{no_data}; {how}", no_data.code)
    if step < num_steps and number is not None:
        raise EarlyExit(f"ended by {signal.Signals(number).name}; {how}", 128 + number)
    if not is_saved:
        raise EarlyExit(how, 1)


class _Feed:
    """The batches of the next dispatch, at first those after a step; raises EarlyExit if there are none.

    Attributes:
        ahead: The batches.
        ended: Why there are no more, or None.
    """

    def __init__(self, batches: Iterator[HostBatch], mesh: Mesh, step: int, num_steps: int, steps_per_call: int):
        self.ended: EarlyExit | None = None
        self._batches, self._mesh, self._num_steps = batches, mesh, num_steps
        self._steps_per_call = self._most = steps_per_call
        self.read(step)
        if not self.queued and self.ended is not None:
            raise self.ended

    def read(self, step: int) -> None:
        """Reads the batches after a step: up to the next multiple of steps_per_call, or fewer if a step takes long."""
        self.queued: list[HostBatch] = []
        until = min(self._num_steps, (step // self._steps_per_call + 1) * self._steps_per_call, step + self._most)
        if self.ended is not None:
            return
        try:
            while len(self.queued) < until - step:
                self.queued.append(next(self._batches))
        except (Exception, SystemExit) as error:  # whatever a source raises, or ends its thread with
            if jax.process_count() > 1:  # this process cannot tell the others in time
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.ended = EarlyExit(f"cannot read the batch of step {step + len(self.queued) + 1}: {why}", 1)

    def put(self) -> Any:
        """Brings the batches to the devices: stacked, the last one repeated to fill up, and how many they are."""
        filled = self.queued + self.queued[-1:] * (self._steps_per_call - len(self.queued))
        rows = {name: np.stack([batch[name] for batch in filled]) for name in filled[0]}
        return sharding.put_batch(self._mesh, rows, axis=1), sharding.put_number(self._mesh, len(self.queued))

    def measure(self, began: float, metrics: Any) -> None:
        """Waits for a dispatch, and from then on has as many steps in one as fit into `MAX_DISPATCH_SECONDS`."""
        if self._steps_per_call > 1:
            jax.block_until_ready(metrics)
            seconds = (time.perf_counter() - began) / len(self.queued)
            self._most = distributed.from_first_process(lambda: largest_dispatch(self._steps_per_call, seconds))


def largest_dispatch(steps_per_call: int, seconds: float) -> int:
    """The largest divisor of steps_per_call whose steps, each of the given length, take at most `MAX_DISPATCH_SECONDS`."""
    divisors = (n for n in range(1, steps_per_call + 1) if steps_per_call % n == 0)
    return max(n for n in divisors if n == 1 or n * seconds <= MAX_DISPATCH_SECONDS)


def default_steps_per_call(intervals: Collection[int]) -> int:
    """Training steps per dispatch: up to ten on accelerators, as many as divide the intervals of lines, saves and the like.

    CIFAR-10 then trains 1.25 times as fast on a GPU, whose host does not keep up step by step. One on CPU, where the gradient
    of a convolution is 20 times slower within a loop.
    """
    most = 1 if jax.default_backend() == "cpu" else 10
    return max(n for n in range(1, most + 1) if math.gcd(*intervals) % n == 0)


def compile_step(
    train_step: TrainStep,
    state: TrainState,
    batch: Any,
    frozen: Any,
    mesh: Mesh,
    say: Callable[[str], None] = lambda line: None,
) -> jax.stages.Compiled:
    """Compiles the step, or several, with the state donated; all arguments stay placed as they are.

    Args:
        train_step: From `make_train_step` or `multi_step`.
        state: A state, on the mesh, or its shapes with shardings.
        batch, frozen: Its other arguments, likewise.
        mesh: The devices.
        say: Receives lines: how long it took, and memory and FLOPs of a step.
    """
    began = time.perf_counter()
    placed = jax.tree.map(lambda a: a.sharding, (state, batch, frozen))
    jitted = jax.jit(train_step, donate_argnums=0, in_shardings=placed, out_shardings=(placed[0], sharding.replicated(mesh)))
    lowered = jitted.lower(state, batch, frozen)
    compiled = lowered.compile(compiler_options(gradient=True))
    say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    say(memory.describe(state, lowered, compiled))
    distributed.barrier("compiled")
    return compiled
