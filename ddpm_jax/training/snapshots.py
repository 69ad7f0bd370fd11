"""Snapshots of power functions' averages, from which an average of any width is made afterwards.

They are `snapshots/<step>`, written atomically; a resumed run reuses existing ones.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Self

import jax

from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.training import ema
from ddpm_jax.training.state import TrainState

FOLDER = "snapshots"


class Snapshots:
    """The snapshots of one run; a context manager that waits for one under way.

    Args:
        workdir: The run's.
        names: Those of the averages; none for no snapshots.
        every: Steps between them, at first.
        most: How many are kept; `ema.thin` picks them.
    """

    def __init__(self, workdir: str | os.PathLike[str], names: Sequence[str], every: int, most: int):
        self._names, self._thin = names, functools.partial(ema.thin, every=every, most=most)
        self._checkpoints = Checkpoints(pathlib.Path(workdir) / FOLDER, self._thin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._checkpoints.__exit__(*error)

    def is_due(self, step: int) -> bool:
        """Whether to save one after this step."""
        return bool(self._names and self._thin([step]))

    def save(self, step: int, state: TrainState) -> None:
        """Copies the averages and begins to save them; a snapshot that fails is left out."""
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
    """Makes the average of a width from the snapshots until a checkpoint, and from the checkpoint.

    Args:
        checkpoints: The run's.
        step: Of the checkpoint.
        workdir: The run's.
        averages: The widths of its power functions by name.
        width: The one to make.
        abstract: Shapes, dtypes and shardings of the parameters.

    Returns:
        The average, and a line on what it was made of.

    Raises:
        ValueError: a width out of range, or no power functions.
    """
    if not averages:
        raise ValueError(f"ema: expected a run with --ema.power for a width, received {width}")
    with Checkpoints(pathlib.Path(workdir) / FOLDER) as snapshots:
        sources = [(at, snapshots) for at in snapshots.steps if at < step] + [(step, checkpoints)]
        steps, widths = [at for at, _ in sources for _ in averages], list(averages.values()) * len(sources)
        shares = ema.coefficients(steps, widths, step, width)
        average = jax.tree.map(lambda a: jax.numpy.zeros(a.shape, a.dtype, device=a.sharding), abstract)
        for (at, source), of_step in zip(sources, shares.reshape(len(sources), -1), strict=True):
            parts = source.load(at, {f"ema_{name}": abstract for name in averages})
            for name, share in zip(averages, of_step, strict=True):
                average = jax.tree.map(lambda total, a, share=share: total + share * a, average, parts[f"ema_{name}"])
    off = ema.profile_error(steps, widths, shares, step, width)
    return average, f"width {width:g} from {len(sources)} snapshots, its profile off by {100 * off:.2g} %"
