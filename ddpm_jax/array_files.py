"""Trees of arrays to files by Orbax: by this process, or by one of its own.

For the 1,300 arrays of CIFAR-10's state, Orbax is more than a second of Python, of which one thread runs at a time. A loop that
calls an accelerator every few milliseconds would come late to all calls of that second: so it has another process write.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import logging
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
from typing import IO, Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ddpm_jax.aside import Aside

Tree = Any

NOISY = ("absl", "asyncio")
"""Loggers by which Orbax reports every file that it writes, and every read that a failed one left behind."""

_BEGINNING = threading.Lock()
"""For the part of Orbax that counts its saves."""


def give_way() -> None:
    """Has this thread, and those that it starts, run where others leave room: what is written can wait for what trains."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.nice(10)


def begin(folder: pathlib.Path, parts: dict[str, Tree]) -> Any:
    """Begins to write in this process; returns what can be waited for by its `result()`.

    Args:
        folder: A new one, or one that is overwritten.
        parts: Trees of arrays by name, which stay as they are until all is written.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False  # random digits hardly shrink, and the CPU has better things to do
    context.memory.deepcopy_host_arrays = False
    if jax.process_count() == 1:
        parts = jax.device_get(parts)  # on CPU the same memory; Orbax takes half the time for arrays of numpy's
    with _BEGINNING, context:
        return ocp.save_checkpointables_async(folder, parts, overwrite=True)


class Apart:
    """A process that writes; it ends when this one has, however that does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def start(self) -> subprocess.Popen[bytes]:
        """Begins the process, unless there is one; it is ready after some seconds, for which nobody waits."""
        self._process = self._process or _start()
        return self._process

    def write(self, folder: pathlib.Path, parts: Aside) -> None:
        """Has it write what `begin` would of the tree, and waits until it has; in whatever thread.

        Raises:
            Exception: it has not, for whatever reason, and the next call begins another; what the folder has is half done.
        """
        with self._one_at_a_time:
            try:
                self._send(self.start(), folder, parts)
            except BaseException:  # also half a request, of which the rest must not be taken for the next
                self.close()
                raise

    def _send(self, process: subprocess.Popen[bytes], folder: pathlib.Path, parts: Aside) -> None:
        assert process.stdin is not None and process.stdout is not None
        kinds = [(a.shape, np.dtype(a.dtype)) for a in parts.arrays]
        pickle.dump((folder, parts.shapes, parts.stacked, kinds), process.stdin)
        for a in parts.arrays:
            process.stdin.write(_bytes(np.asarray(a)))
        process.stdin.flush()
        error: str | None = pickle.load(process.stdout)
        if error is not None:
            raise OSError(error)

    def close(self) -> None:
        """Ends the process, if there is one, in the middle of what it writes."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError), process:
                pass


APART = Apart()
"""That of this process."""

atexit.register(APART.close)


def _start() -> subprocess.Popen[bytes]:
    """A process that leaves the accelerator alone, and signals to whom they are meant for."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))  # which it inherits
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_PLATFORM_NAME": "", "PYTHONPATH": path},
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _bytes(a: np.ndarray) -> memoryview:
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8).data


def _read(requests: IO[bytes]) -> tuple[pathlib.Path, Aside]:
    """What `Apart.write` has sent. Raises EOFError where it sends no more."""
    folder, shapes, stacked, kinds = pickle.load(requests)
    parts = Aside(shapes, [np.empty(shape, dtype) for shape, dtype in kinds], stacked)
    for a in parts.arrays:
        rest = _bytes(a)
        while rest:
            num = requests.readinto(rest)  # type: ignore[attr-defined]
            if not num:
                raise EOFError
            rest = rest[num:]
    return folder, parts


def main() -> None:
    """Writes what is asked for on stdin, and answers on stdout what went wrong, or None; ends when stdin does."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    give_way()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print

    def write(folder: pathlib.Path, parts: Aside) -> None:
        error = None
        try:
            begin(folder, parts.tree()).result()
        except Exception as raised:  # of a wide choice
            error = str(raised) or repr(raised)
        pickle.dump(error, answers)
        answers.flush()

    writing = concurrent.futures.ThreadPoolExecutor(1)  # so that this thread sees at once when whoever asked is gone
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            writing.submit(write, *_read(requests))
    os._exit(0)


if __name__ == "__main__":
    main()
