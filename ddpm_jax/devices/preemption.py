"""Signals that ask a run to end: SIGTERM, as clusters send it before they take a machine away, and SIGINT, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)

DEBOUNCE = 0.5
"""Signals within so many seconds of the first are the first: `timeout` sends one to a process and one to its whole group."""


class EarlyExit(Exception):
    """The run ends before its time, by no mistake on the command line.

    Args:
        line: What to tell the user.
        code: The exit code.
    """

    def __init__(self, line: str, code: int):
        super().__init__(line)
        self.code = code


class Preemption:
    """Notes the first signal within a context, for a loop to ask for; another that is not of the same moment ends the process.

    A thread of its own waits for them, so that the second one counts also while the main thread is within a library. The
    exit code is then 128 + the signal's number, as shells have it.

    Attributes:
        number: Of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0

    def __enter__(self) -> Preemption:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        alone = jax.process_count() == 1  # else SIGTERM is JAX's, which has all processes agree on a step
        self._before = {number: signal.signal(number, lambda *_: None) for number in (SIGNALS if alone else (signal.SIGINT,))}
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writing)

    def should_stop(self, call: int) -> bool:
        """Whether to end after this call of the devices, a number one higher each time, the same for all processes."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call):
            self.number = signal.SIGTERM
            return True
        return jax.process_count() == 1 and self.number is not None

    def _watch(self, reading: int) -> None:
        """Reads the numbers of the signals as they come."""
        with os.fdopen(reading, "rb", buffering=0) as arrivals:
            while number := arrivals.read(1):
                if number[0] in SIGNALS:
                    self._take(number[0])

    def _take(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.number is not None:
            if time.monotonic() - self._since < DEBOUNCE:
                return
            print(f"{name}: ended at once", file=sys.__stderr__, flush=True)
            os._exit(128 + number)
        self.number, self._since = number, time.monotonic()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        print(
            f"{name}: it ends after the steps under way and a save; once more to end at once", file=sys.__stderr__, flush=True
        )
