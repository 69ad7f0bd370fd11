"""Runs a side in its own process, in which no other side's libraries are loaded."""

import concurrent.futures
import importlib
import multiprocessing
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[], Callable[[], Any]]
"""Starts some work, and returns a function that waits for it."""


class Turn(NamedTuple):
    """The mean seconds of a call, and the peak memory in bytes: the GPU's, or without one the host's."""

    seconds: float
    peak: int


class Side:
    """A process with a function to measure.

    Attributes:
        num_params: Number of parameters of its network.
        first: Seconds from the start to the end of the first call.
    """

    def __init__(self, module: str, make: str, *arguments: Any):
        """Calls `sides.<module>.<make>(*arguments)`, which returns the function to measure and the number of parameters."""
        context = multiprocessing.get_context("spawn")
        self._process = concurrent.futures.ProcessPoolExecutor(1, context)
        self._module = module
        self.num_params, self.first = self._process.submit(_make, module, make, arguments).result()

    def turn(self, least: float = 1.0) -> Turn:
        """Makes one uncounted call to restore the caches, then calls for at least `least` seconds.

        Each call is waited for after the next one has started, as in train.py.
        """
        return self._process.submit(_turn, self._module, least).result()

    def matmul_rate(self, dtype: str = "float32") -> float:
        """FLOP/s of products of large square matrices: the best of 20."""
        return self._process.submit(_best_rate, self._module, dtype).result()

    def ask(self, name: str) -> Any:
        """The result of a function of the side's module."""
        return self._process.submit(_ask, self._module, name).result()

    def end(self) -> None:
        """Ends the process."""
        self._process.shutdown()


_runs: list[Run] = []  # the function of this process


def _make(module: str, make: str, arguments: tuple[Any, ...]) -> tuple[int, float]:
    began = time.perf_counter()
    run, num_params = getattr(importlib.import_module(f"sides.{module}"), make)(*arguments)
    _runs.append(run)
    run()()
    first = time.perf_counter() - began
    run()()
    memory = pathlib.Path("/proc/self/clear_refs")
    if memory.exists():
        memory.write_text("5")  # resets the peak, which would otherwise include the compiler
    return num_params, first


def _ask(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"sides.{module}"), name)()


def _turn(module: str, least: float) -> Turn:
    (run,) = _runs
    run()()
    began, num, late = time.perf_counter(), 1, run()
    while time.perf_counter() - began < least:
        wait, late, num = late, run(), num + 1
        wait()
    late()
    taken = (time.perf_counter() - began) / num
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    on_gpu = _ask(module, "memory")
    return Turn(taken, on_gpu if on_gpu > 0 else peak)


def _best_rate(module: str, dtype: str) -> float:
    size = 8192 if _ask(module, "memory") else 2048  # with a GPU, and without
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    product = importlib.import_module(f"sides.{module}").matmul(a, dtype)
    return 2 * size**3 / min(seconds(product) for _ in range(20))


def seconds(run: Run) -> float:
    """The seconds from the start to the end of a call."""
    began = time.perf_counter()
    run()()
    return time.perf_counter() - began
