"""The record of a run: what is measured of each step, and the means of it that are written down."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.runs.metric_writers import Terminal, Writer

MAX_SKIPPED = 20
"""Abort after this many consecutive non-finite steps."""


class MetricLog:
    """Takes the metrics of every step, and writes a line every log_every steps.

    The means are over the steps since the last line, those that were skipped left out. What they are made of is part of a
    checkpoint, so that a run that was broken off writes the lines of an unbroken one.

    Args:
        terminal: Shows progress.
        writers: Take the lines.
        log_every: Steps between lines.
        num_steps: The last step, which gets a line in any case.
        batch_size: Images a step.
        sums: From the `sums` of the record of the run that is resumed.
    """

    def __init__(
        self,
        terminal: Terminal,
        writers: Sequence[Writer],
        log_every: int,
        num_steps: int,
        batch_size: int,
        sums: dict[str, Any] | None = None,
    ):
        self.terminal = terminal
        self._writers, self._log_every, self._num_steps, self._batch_size = writers, log_every, num_steps, batch_size
        self._sums = {name: np.asarray(value, np.float64) for name, value in _by_name(sums or {}).items()}
        self._loss_since_save: list[float] = []
        self._num_since_line = 0
        self.start_clock()

    def start_clock(self) -> None:
        """Starts the clock of the speed."""
        self._began, self._waited, self._num_since_line = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time within as spent on waiting for a batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused_clock(self) -> Iterator[None]:
        """Leaves the time within out of the speed."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def add_dispatch(self, step: int, num: int, rows: dict[str, Any]) -> None:
        """Takes the metrics [K, ...] of a dispatch of num steps, the last of which is step; waits for its end."""
        rows = jax.device_get(rows)
        for i in range(num):
            self.add(step - num + 1 + i, jax.tree.map(lambda row, i=i: row[i], rows))

    def add(self, step: int, now: dict[str, Any]) -> None:
        """Adds the metrics of a step; writes a line if one is due.

        Raises:
            FloatingPointError: too many steps in a row were skipped.
        """
        self.terminal.advance()
        self._num_since_line += 1
        if now["is_finite"]:
            self._accumulate(now)
            self._loss_since_save.append(float(now["loss"]))
        else:
            self.terminal.say(f"step {step} is skipped: its loss or gradient is not finite ({now['skipped']} skipped so far)")
        if now["skipped_in_a_row"] >= MAX_SKIPPED:
            raise FloatingPointError(
                f"loss or gradient is not finite at step {step}, as at the {MAX_SKIPPED - 1} before it; the last checkpoint is "
                "kept, and --optimizer.learning_rate may be lowered to go on from it"
            )
        if step % self._log_every == 0 or step == self._num_steps:
            self._write(step, now)

    def sums(self) -> dict[str, Any]:
        """What the next line's means are made of so far, as JSON."""
        return {name: value.tolist() for name, value in self._sums.items()}

    def loss_since_save(self) -> float:
        """The mean loss since the last time that this was asked for; infinite where no step went well."""
        losses, self._loss_since_save = self._loss_since_save, []
        return float(np.mean(losses)) if losses else float("inf")

    def flush(self) -> None:
        """Has all lines on the disk. Raises OSError where there is no room for them."""
        for writer in self._writers:
            writer.flush()

    def _accumulate(self, now: dict[str, Any]) -> None:
        figures = now["objective"] | {name: (now[name], 1) for name in ("loss", "grad_norm")}
        for name, sum_and_count in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + np.array(sum_and_count, np.float64)

    def _write(self, step: int, now: dict[str, Any]) -> None:
        figures = self._means()
        figures |= {name: float(now[name]) for name in ("param_norm", "learning_rate")} | {"skipped": int(now["skipped"])}
        figures |= self._speed()
        self._sums = {}
        self.start_clock()
        self.terminal.write(step, figures)
        for writer in self._writers:
            try:
                writer.write(step, figures)
            except OSError as error:
                self.terminal.say(f"CANNOT WRITE the metrics of step {step}, which are kept for later: {error}")

    def _means(self) -> dict[str, float]:
        return {name: float(total / count) for name, (total, count) in self._sums.items() if count}

    def _speed(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        speed = self._batch_size * self._num_since_line / seconds
        return {"images_per_second": speed, "data_wait": self._waited / seconds, "memory_gib": _memory() / 2**30}


def _by_name(sums: dict[str, Any]) -> dict[str, Any]:
    """Sums and counts by the names of the metrics, also from a checkpoint of version 0.1, which kept them otherwise."""
    if "quarter_losses" not in sums:
        return sums
    quarters = zip(sums["quarter_losses"], sums["quarter_counts"], strict=True)
    means = {name: (sums[name], sums["num"]) for name in ("loss", "grad_norm")}
    return means | {f"loss_q{i}": quarter for i, quarter in enumerate(quarters)}


def _memory() -> int:
    """The most bytes that a device of this process has held, or, where there are no devices but the CPU, the process."""
    in_use = [stats.get("peak_bytes_in_use", 0) for device in jax.local_devices() if (stats := device.memory_stats())]
    return max(in_use) if in_use else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
