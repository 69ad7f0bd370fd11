"""Progress of long jobs: what is running, how fast, and how long it still takes."""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import jax
from tqdm import tqdm

FIRST_LINES = (5.0, 10.0, 20.0, 40.0)
"""Seconds after which a job prints its first lines; from then on one every EVERY."""
EVERY = 60.0
WINDOW = 300.0
"""Seconds over which the rate is measured, excluding pauses."""


class Progress:
    """A progress bar if the output is a terminal, else plain lines, whose number depends on time alone.

    A daemon thread prints, so that a single unit that takes minutes is seen as well. Only process 0 shows progress. As a
    context manager, it closes itself.

    Args:
        total: The units to do.
        unit: "step", "batch", ...
        what: The job, such as "sampling"; begins each line.
        images: Images per unit, to show images/s as well; 0 for none.
        clock: Returns seconds.
    """

    def __init__(self, total: int, unit: str, what: str = "", images: int = 0, clock: Callable[[], float] = time.monotonic):
        self._total, self._unit, self._what, self._images, self._clock = total, unit, what, images, clock
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._bar: tqdm | None = None
        self._has_begun = False
        self._job: tuple[str, float] | None = None  # what interrupts the units, and since when
        self._late: tuple[str, float] | None = None  # the line that will announce it, and when
        self._announced: float | None = None  # when such a line was last printed
        self._shown: dict[str, str] = {}
        self._next_line = FIRST_LINES[0]
        self._start(0)

    def _start(self, initial: int) -> None:
        self._done, self._paused = initial, 0.0
        self._began = self._clock()
        self._marks = collections.deque([(0.0, initial)])  # (seconds of work, units) at past advances, up to WINDOW ago
        self._is_warm = False
        self._restart_lines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, initial: int = 0) -> None:
        """Starts the units, of which `initial` are already done: opens the bar, or prints the first line of a named job."""
        with self._lock:
            self._has_begun = True
            self._start(initial)
            if jax.process_index() > 0 or not self._total:
                return
            if all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr)):
                bar = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
                self._bar = tqdm(initial=initial, total=self._total, unit=self._unit, dynamic_ncols=True, bar_format=bar)
            elif self._what:
                self.say(f"{self._count()} ...")
            self._watch()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one; output errors are ignored, so that they do not end a run."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the output is closed
            tqdm.write(line) if self._bar is not None else print(line, flush=True)

    @contextlib.contextmanager
    def doing(self, what: str, after: float = 0.0) -> Iterator[None]:
        """Announces another job, such as "compiling the sampler", whose time is excluded from the rate.

        Args:
            what: The job.
            after: Seconds after which it is announced, for a job that is usually short. 0: at once.
        """
        with self._lock:
            outer, began = self._job, self._clock()
            self._job = what, began
            if after:
                self._late = f"{what} ...", began + after
            elif jax.process_index() == 0:
                self.say(f"{what} ...")
                self._restart_lines()
            self._watch()
        try:
            yield
        finally:
            with self._lock:
                self._job, self._late = outer, None
                self._paused += 0.0 if outer else self._clock() - began
                if not after:
                    self._restart_lines()

    def advance(self, num: int = 1, **shown: str) -> None:
        """Counts units as done, and keeps values to show, such as loss="0.1235"."""
        with self._lock:
            self._shown |= shown
            self._done += num
            if not num:
                return
            mark = self._working(self._clock()), self._done
            if len(self._marks) > 1 and self._marks[-1][0] - self._marks[-2][0] < 1:
                self._marks.pop()
            self._marks.append(mark)
            if len(self._marks) > 2 and not self._is_warm:  # the first units include work that is done once
                self._marks.popleft()
                self._is_warm = True
            while len(self._marks) > 2 and mark[0] - self._marks[1][0] > WINDOW:
                self._marks.popleft()

    def beat(self) -> None:
        """Refreshes the bar, or prints a line if one is due; the thread calls it twice a second."""
        with self._lock:
            if self._closed.is_set():
                return
            now = self._clock()
            if self._late is not None and now >= self._late[1]:
                self._announce_late(now)
            elif self._bar is not None:
                self._refresh()
            elif now - self._lines_since >= self._next_line and (self._has_begun or self._late is None):
                self.show()
                self._schedule(now)

    def _announce_late(self, now: float) -> None:
        """At most once per minute, or else saves that all take seconds would flood the output."""
        assert self._late is not None
        if self._announced is None or now - self._announced >= EVERY:
            self.say(self._late[0])
            self._announced = now
            self._schedule(now)
        self._late = None

    def _schedule(self, now: float) -> None:
        seconds = now - self._lines_since
        self._next_line = next((line for line in FIRST_LINES if line > seconds), (seconds // EVERY + 1) * EVERY)

    def show(self) -> None:
        """Prints a line now, unless there is a bar."""
        if self._bar is None and jax.process_index() == 0:
            self.say(self._status())

    def close(self) -> None:
        """Ends the thread, and leaves the bar on the screen."""
        with self._lock:
            self._closed.set()
            if self._bar is not None:
                self._refresh()
                self._bar.close()
                self._bar = None

    def _watch(self) -> None:
        """Starts the thread if there is none yet."""
        if self._thread is None and jax.process_index() == 0 and not self._closed.is_set():
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(0.5):
            self.beat()

    def _restart_lines(self) -> None:
        self._lines_since, self._next_line = self._clock(), FIRST_LINES[0]

    def _refresh(self) -> None:
        assert self._bar is not None
        self._bar.n = self._done
        self._bar.set_description(self._job[0] if self._job else self._what or None, refresh=False)
        self._bar.set_postfix_str("  ".join(self._figures()), refresh=False)
        with contextlib.suppress(OSError, ValueError):
            self._bar.refresh()

    def _working(self, now: float) -> float:
        """Seconds of work on the units, without other jobs."""
        return now - self._began - self._paused - (0.0 if self._job is None else now - self._job[1])

    def _status(self) -> str:
        if self._job is not None and self._late is None:
            what, began = self._job
            return f"{what}: {duration(self._clock() - began)} elapsed"
        return "  ".join([self._count(), *self._figures()])

    def _count(self) -> str:
        return f"{self._what}{': ' if self._what else ''}{self._unit} {self._done}/{self._total}"

    def _figures(self) -> list[str]:
        """The values to show, the rate, and the times."""
        now = self._clock()
        figures = [f"{name} {value}" for name, value in self._shown.items()]
        times = f"{duration(now - self._began)} elapsed"
        (first, before), (last, done) = self._marks[0], self._marks[-1]
        if last > first:
            rate = (done - before) / (last - first)
            many = "batches" if self._unit == "batch" else f"{self._unit}s"
            figures.append(f"{rate:.3g} {many}/s" if rate >= 1 else f"{1 / rate:.3g} s/{self._unit}")
            if self._images:
                figures.append(f"{self._images * rate:.4g} images/s")
            if self._done < self._total:
                begun = min(self._working(now) - last, last - self._marks[-2][0])  # of the units in progress
                times += f", about {duration(max((self._total - done) / rate - begun, 0))} left"
        return [*figures, times]


def doing(what: str, after: float = 10.0) -> contextlib.AbstractContextManager[None]:
    """Announces a job outside a `Progress`, such as "reading the data", and says every now and then that it still runs.

    Args:
        what: The job.
        after: Seconds after which it is announced; short jobs print nothing.
    """

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with Progress(0, "") as progress, progress.doing(what, after):
            yield

    return context()


def duration(seconds: float) -> str:
    """2:05, or 1:02:05 from an hour on."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
