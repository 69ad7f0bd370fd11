"""Snapshots of power-function EMAs, from which an EMA of any width can be reconstructed after training.

They are stored as `snapshots/<step>`, written atomically; a resumed run reuses existing ones.
"""

from __future__ import annotations

import functools
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax

from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.training import ema
from ddpm_jax.training.state import TrainState

FOLDER = "snapshots"

logger = logging.getLogger(__name__)


class Snapshots:
    """The snapshots of one run; as a context manager, it waits for a pending one.

    Args:
        workdir: The folder of the run.
        names: The names of the averages; none for no snapshots.
        every: Steps between snapshots, at first.
        most: Maximum number to keep, selected by `ema.thin`.
        report: Called with a line for failed saves, at most once per minute.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        names: Sequence[str],
        every: int,
        most: int,
        report: Callable[[str], None] = logger.warning,
    ):
        self._names, self._thin = names, functools.partial(ema.thin, every=every, most=most)
        self._checkpoints = Checkpoints(
            pathlib.Path(workdir) / FOLDER, self._thin, report=lambda line: report(f"EMA snapshots: {line}")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._checkpoints.__exit__(*error)

    def is_due(self, step: int) -> bool:
        """Whether to save one after this step."""
        return bool(self._names and self._thin([step]))

    def save(self, step: int, state: TrainState) -> None:
        """Copies the averages and begins to save them; a snapshot that fails is skipped."""
        averages = self._checkpoints.copy(step, {f"ema_{name}": state.ema[name] for name in self._names})
        if averages is not None:
            self._checkpoints.save(step, averages, {})


def reconstruct(
    checkpoints: Checkpoints,
    step: int,
    workdir: str | os.PathLike[str],
    averages: dict[str, float],
    width: float,
    abstract: Any,
) -> tuple[Any, str]:
    """Reconstructs the EMA of a width from a checkpoint and the snapshots before it.

    Args:
        checkpoints: The checkpoints of the run.
        step: The step of the checkpoint.
        workdir: The folder of the run.
        averages: The widths of the run's power-function EMAs, by name.
        width: The width to reconstruct.
        abstract: Shapes, dtypes and shardings of the parameters.

    Returns:
        The EMA, and a line with the number of snapshots and the error of its profile.

    Raises:
        ValueError: the width is out of range, or the run has no power-function EMAs.
    """
    if not averages:
        raise ValueError(f"ema: expected a run with --ema.power for a width, received {width}")
    with Checkpoints(pathlib.Path(workdir) / FOLDER) as snapshots:
        sources = [(at, snapshots) for at in snapshots.steps if at < step] + [(step, checkpoints)]
        steps, widths = [at for at, _ in sources for _ in averages], list(averages.values()) * len(sources)
        weights = ema.coefficients(steps, widths, step, width)
        average = jax.tree.map(lambda a: jax.numpy.zeros(a.shape, a.dtype, device=a.sharding), abstract)
        for (at, source), row in zip(sources, weights.reshape(len(sources), -1), strict=True):
            parts = source.load(at, {f"ema_{name}": abstract for name in averages})
            for name, weight in zip(averages, row, strict=True):
                average = jax.tree.map(lambda total, a, weight=weight: total + weight * a, average, parts[f"ema_{name}"])
    error = ema.profile_error(steps, widths, weights, step, width)
    return average, f"width {width:g} from {len(sources)} snapshots, relative error of its profile {100 * error:.2g} %"
