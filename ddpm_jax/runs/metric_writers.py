"""Metric outputs: metrics.jsonl, TensorBoard, Weights & Biases, and the terminal."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from ddpm_jax.config.cli import UsageError
from ddpm_jax.devices.files import atomic_write
from ddpm_jax.runs.progress import Progress


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


def require(module: str, extra: str) -> None:
    """Raises ImportError, with the command that installs the extra, if a module is missing."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'expected {module} to be installed: pip install -e ".[{extra}]"')


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


class WandB:
    """A run of Weights & Biases; needs the extra `wandb`. A resumed run continues the same one.

    Args:
        workdir: The folder of the run; its file `wandb-id` holds the id of the W&B run, and its folder `wandb` W&B's files.
        project: The W&B project of a new run.
        config: Shown beside the run.

    Raises:
        UsageError: W&B cannot start the run, for example without a login.
    """

    def __init__(self, workdir: pathlib.Path, project: str, config: dict[str, Any] | None = None):
        import wandb

        file = workdir / "wandb-id"
        known = file.read_text().strip() if file.exists() else None
        try:
            self._run = wandb.init(project=project, id=known, resume="allow", dir=str(workdir), config=config)
        except Exception as error:  # W&B has its own types
            raise UsageError(f"--train.wandb: {' '.join(str(error).split())}") from error
        if known is None:
            atomic_write(file, lambda opened: opened.write(f"{self._run.id}\n".encode()))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics; W&B ignores those of steps that it has already. Raises OSError if W&B fails."""
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:  # W&B has its own types
            raise OSError(f"W&B: {error}") from error

    def flush(self) -> None:
        """Does nothing: W&B uploads in the background."""

    def close(self) -> None:
        """Finishes the upload."""
        self._run.finish()


def make_writers(
    workdir: pathlib.Path, step: int, tensorboard: bool, wandb: str | None = None, config: dict[str, Any] | None = None
) -> list[Writer]:
    """The writers of a workdir: metrics.jsonl and, optionally, tensorboard/ and Weights & Biases.

    Args:
        workdir: The folder of the run.
        step: The restored step, 0 for a new run.
        tensorboard: Whether to write TensorBoard events as well.
        wandb: The Weights & Biases project to log to as well, or None.
        config: The config of the run, for Weights & Biases.

    Raises:
        ImportError: tensorboardX or wandb is not installed.
        ValueError: a line of metrics.jsonl is not an object with a step.
        UsageError: Weights & Biases cannot start.
    """
    writers: list[Writer] = [Jsonl(workdir / "metrics.jsonl", step)]
    if tensorboard:
        writers.append(TensorBoard(workdir / "tensorboard", step))
    if wandb is not None:
        writers.append(WandB(workdir, wandb, config))
    return writers


class Terminal(Progress):
    """The progress of a training run, with its loss.

    Args:
        num_steps: The last step of the run.
        batch_size: Images per step; 0: no images/s.
    """

    def __init__(self, num_steps: int, batch_size: int = 0):
        super().__init__(num_steps, "step", images=batch_size)
        self._num_steps = num_steps

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a row of metrics, whose loss the next lines show; the last row is printed at once."""
        self.advance(0, **{name: f"{metrics[name]:.4g}" for name in ("loss",) if name in metrics})
        if step == self._num_steps:
            self.show()
