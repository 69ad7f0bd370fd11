"""Signals that ask a run to end: SIGTERM, which clusters send before they preempt a machine, and SIGINT, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)

DEBOUNCE = 0.5
"""Seconds within which another signal counts as the first: `timeout` sends one to the process and one to its group."""


def is_interactive() -> bool:
    """Whether this Python is interactive, such as a notebook's."""
    return hasattr(sys, "ps1")


class EarlyExit(Exception):
    """The run ends early, though not because of a mistake on the command line.

    Args:
        message: One line for the user.
        code: The exit code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Preemption:
    """Records the first signal within its context, for the loop to poll; a second one ends the process at once.

    A separate thread waits for signals, so that the second one is handled even while the main thread is inside a library.
    The exit code is then 128 + the signal's number, the shells' convention. An interactive Python, such as a notebook's, is not
    ended but interrupted. Outside the main thread, which alone may handle signals, none is recorded.

    Attributes:
        number: The number of the signal received, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._times_handled = 0

    def __enter__(self) -> Preemption:
        if threading.current_thread() is not threading.main_thread():
            return self
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        alone = jax.process_count() == 1  # else JAX handles SIGTERM, and makes all processes agree on a step
        self._before = {number: signal.signal(number, self._interrupt) for number in (SIGNALS if alone else (signal.SIGINT,))}
        self._fd_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writing)

    def should_stop(self, dispatch: int) -> bool:
        """Whether to end after this dispatch, a number that counts up and is the same on all processes."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(dispatch):
            self.number = signal.SIGTERM
            return True
        return jax.process_count() == 1 and self.number is not None

    def _interrupt(self, *_: object) -> None:
        """The handler, in the main thread."""
        self._times_handled += 1
        if self._times_handled > 1 and is_interactive():
            raise KeyboardInterrupt

    def _watch(self, reading: int) -> None:
        """Reads signal numbers as they arrive."""
        with os.fdopen(reading, "rb", buffering=0) as arrivals:
            while number := arrivals.read(1):
                if number[0] in SIGNALS:
                    self._handle(number[0])

    def _handle(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.number is not None:
            if time.monotonic() - self._since < DEBOUNCE:
                return
            if is_interactive():
                return  # the handler interrupts the main thread
            print(f"{name}: ended immediately", file=sys.__stderr__, flush=True)
            os._exit(128 + number)
        self.number, self._since = number, time.monotonic()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        print(
            f"{name}: finishing the current steps and saving; send it again to end immediately",
            file=sys.__stderr__,
            flush=True,
        )
