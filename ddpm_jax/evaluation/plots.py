"""Plots of evaluations, as PNG; needs matplotlib, from the extra `plot`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np


def save(path: str | os.PathLike[str], draw: Callable[[Any], None]) -> None:
    """Draws into a new matplotlib Figure with `draw`, and writes it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    draw(figure)
    figure.savefig(path, dpi=150)


def terms(figure: Any, result: dict[str, Any]) -> None:
    """The terms of the bound over t, as in figure 2 of Nichol & Dhariwal 2021, and their cumulative sum."""
    each = np.maximum(result["terms"], 1e-12)
    single, cumulative = figure.subplots(1, 2)
    single.loglog(np.arange(1, len(each) + 1), each)
    single.set(xlabel="t + 1", ylabel="bits/dim of the step")
    cumulative.plot(np.arange(1, len(each) + 1), np.cumsum(each))
    cumulative.set(xlabel="t + 1", ylabel="bits/dim of all steps up to t", ylim=(0, None))


def rate_distortion(figure: Any, result: dict[str, Any]) -> None:
    """Distortion over rate, and both over reverse steps, as in figures 5 and 6 of Ho et al. 2020."""
    by_rate, by_time, rate_by_time = figure.subplots(1, 3)
    received = np.arange(len(result["rate"]), 0, -1)
    by_rate.plot(result["rate"], result["distortion"])
    by_rate.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE, 0 to 255)", ylim=(0, None))
    by_time.plot(received, result["distortion"])
    by_time.set(xlabel="reverse steps", ylabel="distortion (RMSE, 0 to 255)", ylim=(0, None))
    rate_by_time.plot(received, result["rate"])
    rate_by_time.set(xlabel="reverse steps", ylabel="rate (bits/dim)")


def histogram(figure: Any, result: dict[str, Any]) -> None:
    """The distribution of bits/dim over the images."""
    axes = figure.subplots()
    axes.hist(result["bits_per_dimension"], bins=40)
    axes.axvline(result["bpd"], color="black", linewidth=1)
    axes.set(xlabel="bits/dim", ylabel="images")
