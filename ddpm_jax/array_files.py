"""Trees of arrays to files by Orbax: by this process, or by one of its own.

For the 1,300 arrays of CIFAR-10's state, Orbax is more than a second of Python, of which one thread runs at a time. A loop that
calls an accelerator every few milliseconds would come late to all calls of that second: so it has another process write.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from ddpm_jax import aside
from ddpm_jax.aside import Aside

Tree = Any

_BEGINNING = threading.Lock()
"""For the part of Orbax that counts its saves."""


def begin(folder: pathlib.Path, parts: dict[str, Tree]) -> Any:
    """Begins to write in this process; returns what can be waited for by its `result()`.

    Args:
        folder: A new one, or one that is overwritten.
        parts: Trees of arrays by name, which stay as they are until all is written.
    """
    uncompressed = ocp.Context()  # random digits hardly shrink, and the CPU has better things to do
    uncompressed.array.saving.use_compression = False
    with _BEGINNING, uncompressed:
        return ocp.save_checkpointables_async(folder, parts, overwrite=True)


class Lost(OSError):
    """A process that writes has ended by itself."""


class Apart:
    """A process that writes; it ends with this one, however this one ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Begins the process, unless there is one; it is ready after some seconds, for which nobody waits."""
        self._process = self._process or _start()
        return self._process

    def write(self, folder: pathlib.Path, parts: Aside) -> None:
        """Has it write what `begin` would of the tree, and waits until it has, in whatever thread.

        Raises:
            OSError: it could not; the process has ended where it is `Lost`, and the next call begins another.
        """
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((folder, parts.shapes, parts.stacked), process.stdin)
            for a in parts.arrays:
                process.stdin.write(_bytes(np.asarray(a)))
            process.stdin.flush()
            error: str | None = pickle.load(process.stdout)
        except (OSError, EOFError) as lost:
            self.close()
            raise Lost(f"the process that writes has ended, with {process.returncode}") from lost
        if error is not None:
            raise OSError(error)

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
        self._process = None


def _start() -> subprocess.Popen[bytes]:
    """A process that leaves the accelerator alone, and signals to whom they are meant for."""
    path = os.pathsep.join(folder for folder in sys.path if folder)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))  # which it inherits
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _bytes(a: np.ndarray) -> memoryview:
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8).data


def _read(requests: IO[bytes]) -> tuple[pathlib.Path, Aside]:
    """What `Apart.write` has sent. Raises EOFError where it sends no more."""
    folder, shapes, stacked = pickle.load(requests)
    parts = Aside(shapes, [np.empty(a.shape, a.dtype) for a in aside.shapes_of(shapes, stacked)], stacked)
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
