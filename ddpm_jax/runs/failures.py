"""Failures that a run survives, in few lines and with the cause first."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

EVERY = 60.0
"""Seconds between reports of repeated failures."""

NOISY = ("absl", "asyncio")
"""Loggers on which Orbax reports every file it writes, and the reads still pending after a failed one."""


class Failures:
    """Reports the first failure at once, and later ones at most once per minute, with their number.

    Args:
        report: Receives the lines.
        clock: Returns seconds.
    """

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._report, self._clock = report, clock
        self._last: float | None = None
        self._is_open, self._num_unreported = False, 0

    def failed(self, line: str) -> None:
        """Reports or counts a failure."""
        if self._last is not None and self._clock() - self._last < EVERY:
            self._num_unreported += 1
            return
        more = f" (failed {self._num_unreported} more times since the last such line)" if self._num_unreported else ""
        self._last, self._is_open, self._num_unreported = self._clock(), True, 0
        self._report(line + more)

    def succeeded(self, line: str) -> None:
        """Reports that it works again, if its last report was a failure."""
        if self._is_open:
            self._is_open = False
            self._report(line)


def cause(error: BaseException) -> str:
    """An error in one line of at most about 200 characters, the operating system's reason first if there is one."""
    words = " ".join((str(error) if str(error) else repr(error)).split())
    code = re.search(r"os_error_code='(\d+)'", words)  # as TensorStore reports it, at the end of a long line
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    if code is not None:
        file = re.search(r'"(/[^"]*)', words)
        return os.strerror(int(code[1])) + ("" if file is None else f": {file[1]}")
    return words if len(words) < 200 else f"{words[:100]} ... {words[-100:]}"


def quiet_orbax() -> None:
    """Silences what Orbax and TensorStore print about a failed save besides its error, which `Checkpoints` reports.

    These are their logs, thousands of tracebacks from writes that end after the event loop of the save has been closed, those
    of event loops that could not be created, and warnings about the coroutines of the save that were never awaited.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings(
        "ignore", r"coroutine '(\w+Handler\.|run_sync\.|_create_paths|synchronize_next)\S* was never awaited", RuntimeWarning
    )
    if not isinstance(sys.unraisablehook, _QuietHook):
        sys.unraisablehook = _QuietHook(sys.unraisablehook)


class _QuietHook:
    """An unraisablehook that ignores closed and incomplete event loops, and leaves all else to the hook before."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        is_closed = unraisable.object is None and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        is_incomplete = unraisable.object is asyncio.BaseEventLoop.__del__ and isinstance(error, AttributeError)
        if not (is_closed or is_incomplete):
            self._before(unraisable)
