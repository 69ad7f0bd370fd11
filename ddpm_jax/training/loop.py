"""The training loop: step, log, sample, save."""

from __future__ import annotations

import contextlib
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
"""(interval in steps, function(step, params)); params are an EMA of the parameters, on every device."""

MAX_DISPATCH_SECONDS = 2.0
"""Maximum duration of a dispatch: a signal is answered after the current one and the one queued behind it."""


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
    """Trains until num_steps; returns immediately if that step is already reached.

    The metrics of a dispatch are read while the devices run the next one, except before sampling and saving.

    Args:
        state: The state to start from; its buffers are donated.
        train_step: From `make_train_step`, not compiled.
        batches: The batches, starting with number `state.step`.
        mesh: The devices.
        num_steps: The step to stop at.
        log: Collects the metrics.
        saver: Saves states when they are due and at the end.
        snapshots: Saves EMAs when they are due.
        preemption: Polled after each dispatch, for a signal to save and end.
        hooks: Called when they are due and at step num_steps, before the state is saved: to sample, to evaluate.
        average: The name of the EMA passed to the hooks; None for the parameters themselves.
        frozen: The frozen arrays of the Objective, on the devices.
        steps_per_call: Training steps per dispatch. Must divide the intervals of logging, saves, snapshots and hooks, since
            the host does nothing within a dispatch.

    Returns:
        The last state.

    Raises:
        FloatingPointError: the loss or the gradient was not finite in too many consecutive steps.
        EarlyExit: a signal came, a batch could not be read, or the last state could not be saved. The state is saved first,
            if possible.
    """
    step = int(state.step)
    if step >= num_steps:
        return state
    feed = _Feed(batches, mesh, step, num_steps, steps_per_call)
    compiled = compile_step(multi_step(train_step), state, feed.put(), frozen, mesh, log.terminal.say, log.terminal.doing)

    log.start_clock()
    unlogged = None  # the dispatch whose metrics have not been read
    for dispatch in itertools.count():
        # Step.
        state, metrics = compiled(state, feed.put(), frozen)
        step, num = step + len(feed.queued), len(feed.queued)

        # Log the dispatch before, and read the next batches, while the devices run this one.
        if unlogged is not None:
            log.add_dispatch(*unlogged)
        unlogged = step, num, metrics
        if dispatch == 1:  # not the first, which takes longer
            feed.measure(time.perf_counter(), metrics)
        with log.waiting_for_data():
            feed.read(step)
        ending = not feed.queued or preemption.should_stop(dispatch)
        due = [function for every, function in hooks if step % every == 0 or step == num_steps]
        if not (ending or due or snapshots.is_due(step) or saver.is_due(step)):
            continue

        # Log this dispatch too, then sample, then save: a run killed before the save resumes earlier and samples again.
        log.add_dispatch(*unlogged)
        unlogged = None
        with log.paused_clock():
            if due:
                with log.terminal.doing(f"generating samples at step {step}", after=2.0):
                    _call(due, step, sharding.replicate(mesh, state.params if average is None else state.ema[average]))
            with log.terminal.doing(f"saving step {step}", after=2.0):
                if snapshots.is_due(step):
                    snapshots.save(step, state)
                if ending or saver.is_due(step):
                    saver.save(step, state, is_last=ending)
        if ending:
            break
    with log.terminal.doing(f"saving step {step}", after=2.0):
        is_saved = saver.finish(step, state)
    _raise_if_incomplete(step, num_steps, feed.ended, preemption.number, is_saved)
    return state


def _call(hooks: Sequence[Callable[[int, Any], None]], step: int, params: Any) -> None:
    """Calls the hooks; a function of its own, so that the copy of the parameters is freed when it returns."""
    for hook in hooks:
        hook(step, params)


def _raise_if_incomplete(step: int, num_steps: int, no_data: EarlyExit | None, number: int | None, is_saved: bool) -> None:
    how = f"step {step} is {'saved' if is_saved else 'NOT SAVED'}; repeat the command to resume"
    if no_data is not None:
        raise EarlyExit(f"{no_data}; {how}", no_data.code)
    if step < num_steps and number is not None:
        raise EarlyExit(f"ended by {signal.Signals(number).name}; {how}", 128 + number)
    if not is_saved:
        raise EarlyExit(how, 1)


class _Feed:
    """Reads the batches of the next dispatch and puts them on the devices; raises EarlyExit if there is not even a first.

    Attributes:
        queued: The batches of the next dispatch.
        ended: The error that ended the data, or None.
    """

    def __init__(self, batches: Iterator[HostBatch], mesh: Mesh, step: int, num_steps: int, steps_per_call: int):
        self.ended: EarlyExit | None = None
        self._batches, self._mesh, self._num_steps = batches, mesh, num_steps
        self._steps_per_call = self._most = steps_per_call
        self.read(step)
        if not self.queued and self.ended is not None:
            raise self.ended

    def read(self, step: int) -> None:
        """Queues the batches after a step: up to the next multiple of steps_per_call, or fewer if steps are slow."""
        self.queued: list[HostBatch] = []
        until = min(self._num_steps, (step // self._steps_per_call + 1) * self._steps_per_call, step + self._most)
        if self.ended is not None:
            return
        try:
            while len(self.queued) < until - step:
                self.queued.append(next(self._batches))
        except (Exception, SystemExit) as error:  # any error of the source, or the exit of its thread
            if jax.process_count() > 1:  # the others cannot be informed in time
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.ended = EarlyExit(f"cannot read the batch of step {step + len(self.queued) + 1}: {why}", 1)

    def put(self) -> Any:
        """Puts the queued batches on the devices: stacked, padded by repeating the last one, and their number."""
        filled = self.queued + self.queued[-1:] * (self._steps_per_call - len(self.queued))
        rows = {name: np.stack([batch[name] for batch in filled]) for name in filled[0]}
        return sharding.put_batch(self._mesh, rows, axis=1), sharding.put_number(self._mesh, len(self.queued))

    def measure(self, began: float, metrics: Any) -> None:
        """Waits for a dispatch, and limits the later ones to the steps that fit into `MAX_DISPATCH_SECONDS`."""
        if self._steps_per_call > 1:
            jax.block_until_ready(metrics)
            seconds = (time.perf_counter() - began) / len(self.queued)
            self._most = distributed.from_first_process(lambda: largest_dispatch(self._steps_per_call, seconds))


def largest_dispatch(steps_per_call: int, seconds: float) -> int:
    """The largest divisor of steps_per_call whose steps, each of the given length, take at most `MAX_DISPATCH_SECONDS`."""
    divisors = (n for n in range(1, steps_per_call + 1) if steps_per_call % n == 0)
    return max(n for n in divisors if n == 1 or n * seconds <= MAX_DISPATCH_SECONDS)


def default_steps_per_call(intervals: Collection[int]) -> int:
    """Training steps per dispatch: 1 on CPU; on accelerators the largest number up to 10 that divides all intervals.

    With 10, CIFAR-10 trains 1.25 times as fast on a GPU whose host cannot keep up with single steps. On CPU, the gradient of a
    convolution is 20 times slower inside a loop.
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
    doing: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> jax.stages.Compiled:
    """Compiles one or more training steps, with the state donated; all arguments keep their shardings.

    Args:
        train_step: From `make_train_step` or `multi_step`.
        state: A state on the mesh, or its shapes with shardings.
        batch, frozen: The other arguments, also arrays or shapes with shardings.
        mesh: The devices.
        say: Prints a line: the compile time, then memory and FLOPs of a step.
        doing: Announces the compilation, which runs within its context.
    """
    began = time.perf_counter()
    placed = jax.tree.map(lambda a: a.sharding, (state, batch, frozen))
    jitted = jax.jit(train_step, donate_argnums=0, in_shardings=placed, out_shardings=(placed[0], sharding.replicated(mesh)))
    with doing("compiling the training step"):
        lowered = jitted.lower(state, batch, frozen)
        compiled = lowered.compile(compiler_options(gradient=True))
    say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    say(memory.describe(state, lowered, compiled))
    distributed.barrier("compiled")
    return compiled
