"""Plots the metrics of runs: `python -m ddpm_jax.runs plot runs/digits [runs/other ...] [--out metrics.png]`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tyro

from ddpm_jax.config.cli import UsageError, as_usage_error, parse, run_script
from ddpm_jax.config.paths import LocalPath
from ddpm_jax.devices.files import replacing
from ddpm_jax.runs.metric_writers import require

Rows = list[dict[str, float]]

METRICS = ("loss", "grad_norm", "learning_rate", "images_per_second")


@dataclasses.dataclass(frozen=True)
class Options:
    """The runs to compare."""

    runs: tyro.conf.Positional[tuple[LocalPath, ...]]
    """Their folders."""
    out: LocalPath = "metrics.png"
    """The plot, a .png file."""


def main(argv: Sequence[str]) -> None:
    """Reads the metrics of each run and plots them over the steps, one axis per metric and one colour per run."""
    command, *rest = argv or ["nothing"]
    if command not in ("plot", "-h", "--help"):
        raise UsageError(f"expected plot RUN [RUN ...] [--out FILE.png], received {command}")
    options = parse(Options(runs=()), rest if command == "plot" else ["--help"], str(__doc__))
    if not options.runs:
        raise UsageError("RUN: expected the folder of a run, received nothing")
    if pathlib.Path(options.out).suffix != ".png":
        raise UsageError(f"--out: expected a .png file, received {options.out}")
    with as_usage_error("plot"):
        require("matplotlib", "plot")
    with as_usage_error("RUN"):
        runs = {run: read(pathlib.Path(run)) for run in options.runs}
    with as_usage_error("--out"):
        pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as partial:
            plot(partial, runs)
    print(f"written to {options.out}")


def read(run: pathlib.Path) -> Rows:
    """The rows of a run's metrics.jsonl; a last line that is still being written is left out.

    Raises:
        OSError: there is no such file.
        ValueError: a line is not an object with a step, or there are none.
    """
    file = run / "metrics.jsonl"
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        rows = [row for row in map(json.loads, lines) if row["step"] is not None]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"expected an object with a step on each line of {file}") from None
    if not rows:
        raise ValueError(f"expected metrics in {file}, there are none yet")
    return rows


def plot(path: str | os.PathLike[str], runs: dict[str, Rows]) -> None:
    """Writes a PNG of METRICS over the steps."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(10, 6), layout="constrained")
    for name, axes in zip(METRICS, figure.subplots(2, 2).flat, strict=True):
        for run, rows in runs.items():
            steps, values = [row["step"] for row in rows], [row.get(name, math.nan) for row in rows]
            axes.plot(steps, values, label=run, marker="." if len(rows) < 30 else None)
        axes.set(xlabel="step", title=name.replace("_", " "))
        if name in ("loss", "grad_norm") and _is_positive(axes):
            axes.set_yscale("log")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center")
    figure.savefig(path, dpi=150, format="png")


def _is_positive(axes: Any) -> bool:
    return all(value > 0 or math.isnan(value) for line in axes.get_lines() for value in line.get_ydata())


if __name__ == "__main__":
    run_script(main)
