"""Calls something in a process of its own, in which nothing of another side is loaded."""

import concurrent.futures
import importlib
import multiprocessing
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[], Callable[[], Any]]
"""Begins its work, and returns what waits for the end of it."""


class Turn(NamedTuple):
    """The seconds of a call, the mean of a turn, and the most memory taken, in bytes, the GPU's or else the host's."""

    seconds: float
    peak: int


class Side:
    """A process that has made something to call.

    Attributes:
        num_params: Parameters of its network.
        first: Seconds from making it to the end of the first call.
    """

    def __init__(self, module: str, make: str, *arguments: Any):
        """Makes what `sides.<module>.<make>(*arguments)` gives: what to call, and the number of parameters."""
        context = multiprocessing.get_context("spawn")
        self._process = concurrent.futures.ProcessPoolExecutor(1, context)
        self._module = module
        self.num_params, self.first = self._process.submit(_make, module, make, arguments).result()

    def turn(self, least: float = 1.0) -> Turn:
        """Calls once uncounted, for what others did to the caches, then for at least so many seconds, at least once.

        A call is waited for when the next one has begun, as train.py does it.
        """
        return self._process.submit(_turn, self._module, least).result()

    def matmul_rate(self, dtype: str = "float32") -> float:
        """FLOP/s of products of square matrices, large for the device: the best of 20."""
        return self._process.submit(_best_rate, self._module, dtype).result()

    def ask(self, name: str) -> Any:
        """What the function of that name in the side's module gives."""
        return self._process.submit(_ask, self._module, name).result()

    def end(self) -> None:
        """Ends the process."""
        self._process.shutdown()


_runs: list[Run] = []  # of this process


def _make(module: str, make: str, arguments: tuple[Any, ...]) -> tuple[int, float]:
    began = time.perf_counter()
    run, num_params = getattr(importlib.import_module(f"sides.{module}"), make)(*arguments)
    _runs.append(run)
    run()()
    first = time.perf_counter() - began
    run()()
    memory = pathlib.Path("/proc/self/clear_refs")
    if memory.exists():
        memory.write_text("5")  # so that the peak leaves out the compiler
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
    return Turn(taken, _ask(module, "memory") or peak)


def _best_rate(module: str, dtype: str) -> float:
    size = 8192 if _ask(module, "memory") else 2048  # with a GPU, and without
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    product = importlib.import_module(f"sides.{module}").matmul(a, dtype)
    return 2 * size**3 / min(seconds(product) for _ in range(20))


def seconds(run: Run) -> float:
    """How long a call takes, waited for."""
    began = time.perf_counter()
    run()()
    return time.perf_counter() - began
