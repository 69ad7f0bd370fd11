"""The metric log: collects the metrics of every step and writes their means."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.runs.failures import Failures, cause
from ddpm_jax.runs.metric_writers import Terminal, Writer

MAX_SKIPPED = 20
"""Abort after this many consecutive non-finite steps."""


class MetricLog:
    """Collects the metrics of every step, and writes a line every log_every steps.

    A line has the means over the steps since the last line, without skipped steps. The sums behind them are part of a
    checkpoint, so that an interrupted run writes the same lines as an uninterrupted one.

    Args:
        terminal: Shows progress.
        writers: Receive the lines.
        log_every: Steps between lines.
        num_steps: The last step, which always gets a line.
        batch_size: Images per step.
        sums: The `sums` of the run that is resumed.
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
        self._failures = Failures(terminal.say)
        self.start_clock()

    def start_clock(self) -> None:
        """Starts measuring the speed."""
        self._began, self._waited, self._num_since_line = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time within the context as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused_clock(self) -> Iterator[None]:
        """Excludes the time within the context from the speed."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def add_dispatch(self, step: int, num: int, rows: dict[str, Any]) -> None:
        """Adds the metrics [K, ...] of a dispatch: num steps, of which the last is `step`. Waits until they are computed."""
        rows = jax.device_get(rows)
        for i in range(num):
            self.add(step - num + 1 + i, jax.tree.map(lambda row, i=i: row[i], rows))

    def add(self, step: int, now: dict[str, Any]) -> None:
        """Adds the metrics of a step, and writes a line if one is due.

        Raises:
            FloatingPointError: too many consecutive steps were skipped.
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
                f"loss or gradient is not finite at step {step} and the {MAX_SKIPPED - 1} steps before it; the last checkpoint "
                "is kept, and the run can be resumed from it with a lower --optimizer.learning_rate"
            )
        if step % self._log_every == 0 or step == self._num_steps:
            self._write(step, now)

    def sums(self) -> dict[str, Any]:
        """The sums and counts for the next line so far, as JSON."""
        return {name: value.tolist() for name, value in self._sums.items()}

    def loss_since_save(self) -> float:
        """The mean loss since the last call; infinite if every step was skipped."""
        losses, self._loss_since_save = self._loss_since_save, []
        return float(np.mean(losses)) if losses else float("inf")

    def flush(self) -> None:
        """Writes all lines to disk. Raises OSError if the disk is full."""
        for writer in self._writers:
            writer.flush()

    def _accumulate(self, now: dict[str, Any]) -> None:
        added = now["objective"] | {name: (now[name], 1) for name in ("loss", "grad_norm")}
        for name, sum_and_count in added.items():
            self._sums[name] = self._sums.get(name, 0.0) + np.array(sum_and_count, np.float64)

    def _write(self, step: int, now: dict[str, Any]) -> None:
        metrics = self._means()
        metrics |= {name: float(now[name]) for name in ("param_norm", "learning_rate")} | {"skipped": int(now["skipped"])}
        metrics |= self._speed()
        self._sums = {}
        self.start_clock()
        self.terminal.write(step, metrics)
        failures = []
        for writer in self._writers:
            try:
                writer.write(step, metrics)
            except OSError as error:
                failures.append(f"CANNOT WRITE the metrics of step {step}: {cause(error)}")
        if failures:
            self._failures.failed(f"{failures[0]}; metrics.jsonl receives all rows once it can be written")
        else:
            self._failures.succeeded(f"metrics are written again: those of step {step} and all before")

    def _means(self) -> dict[str, float]:
        return {name: float(total / count) for name, (total, count) in self._sums.items() if count}

    def _speed(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        speed = self._batch_size * self._num_since_line / seconds
        return {"images_per_second": speed, "data_wait": self._waited / seconds, "memory_gib": _memory() / 2**30}


def _by_name(sums: dict[str, Any]) -> dict[str, Any]:
    """Sums and counts by metric; converts those of a checkpoint of version 0.1, which has another format."""
    if "quarter_losses" not in sums:
        return sums
    quarters = zip(sums["quarter_losses"], sums["quarter_counts"], strict=True)
    means = {name: (sums[name], sums["num"]) for name in ("loss", "grad_norm")}
    return means | {f"loss_q{i}": quarter for i, quarter in enumerate(quarters)}


def _memory() -> int:
    """Peak bytes in use on any device of this process or, if the only device is the CPU, peak memory of the process."""
    in_use = [stats.get("peak_bytes_in_use", 0) for device in jax.local_devices() if (stats := device.memory_stats())]
    return max(in_use) if in_use else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
