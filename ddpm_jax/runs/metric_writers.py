"""Metric outputs: metrics.jsonl, TensorBoard, and the terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Protocol

from tqdm import tqdm

from ddpm_jax.devices.files import atomic_write


class Writer(Protocol):
    """Writes metrics by step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""

    def flush(self) -> None:
        """Writes metrics that earlier calls could not write. Raises OSError if that still fails."""

    def close(self) -> None:
        """Closes the output; nothing is written afterwards."""


class Jsonl:
    """One JSON object per line, {"step": 100, "loss": 0.1, ...}, and one line per step.

    Args:
        path: The file. When a run resumes, lines after the restored step and an incomplete last line are removed.
        step: The restored step, 0 for a new run.

    Raises:
        ValueError: a complete line is not such an object.
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0):
        self._path = pathlib.Path(path)
        kept = [line for line in self._lines() if self._step_of(line) <= step]
        atomic_write(self._path, lambda file: file.write("".join(kept).encode()))
        self._file = self._path.open("ab", buffering=0)
        self._unwritten = b""

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        return [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("}\n")]

    def _step_of(self, line: str) -> int:
        try:
            return json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"expected an object with a step on each line of {self._path}, received {line.strip()}") from None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line. Raises OSError if the disk is full; the line is then written by the next call."""
        self._unwritten += json.dumps({"step": step, **metrics}).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Writes the lines that earlier calls could not write, each once."""
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def require_tensorboard() -> None:
    """Raises ImportError, with the command to install it, if tensorboardX is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ImportError('expected tensorboardX to be installed: pip install -e ".[tensorboard]"')


class TensorBoard:
    """Event files for TensorBoard; needs the extra `tensorboard`.

    Args:
        folder: Receives the event files.
        step: The restored step; events of an earlier run after it are hidden.
    """

    def __init__(self, folder: str | os.PathLike[str], step: int = 0):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flushes the events to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def make_writers(workdir: pathlib.Path, step: int, tensorboard: bool) -> list[Writer]:
    """The writers of a workdir: metrics.jsonl and, optionally, tensorboard/.

    Args:
        workdir: The folder of the run.
        step: The restored step, 0 for a new run.
        tensorboard: Whether to write TensorBoard events as well.

    Raises:
        ImportError: tensorboardX is not installed.
        ValueError: a line of metrics.jsonl is not an object with a step.
    """
    events: list[Writer] = [TensorBoard(workdir / "tensorboard", step)] if tensorboard else []
    return [Jsonl(workdir / "metrics.jsonl", step), *events]


class Terminal:
    """A progress bar if the output is a terminal, else plain lines.

    Args:
        num_steps: The last step of the run.
    """

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._bar: tqdm | None = None

    def begin(self, step: int) -> None:
        """Opens the bar at the first step."""
        if sys.stdout.isatty() and sys.stderr.isatty():
            self._bar = tqdm(initial=step, total=self._num_steps, unit="step", dynamic_ncols=True)

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one; output errors are ignored, so that they do not end a run."""
        with contextlib.suppress(OSError):
            tqdm.write(line) if self._bar is not None else print(line, flush=True)

    def advance(self) -> None:
        """Advances the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows loss and speed."""
        shown = {name: f"{metrics[name]:.4g}" for name in ("loss", "images_per_second") if name in metrics}
        if self._bar is not None:
            self._bar.set_postfix(shown)
        else:
            self.say(f"step {step}/{self._num_steps}  " + "  ".join(f"{name} {value}" for name, value in shown.items()))

    def close(self) -> None:
        """Closes the bar, which stays on the screen."""
        if self._bar is not None:
            self._bar.close()
