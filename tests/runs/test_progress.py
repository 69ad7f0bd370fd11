import re
import sys
import threading
import time

import pytest

from ddpm_jax.runs import progress
from ddpm_jax.runs.progress import Progress


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Without the thread: the test calls `beat` itself."""
    monkeypatch.setattr(Progress, "_watch", lambda self: None)
    return Clock()


def run(clock, job, seconds, step=lambda second: None):
    """Lets time pass in half seconds, and calls a function after each second."""
    for half in range(1, 2 * seconds + 1):
        clock.now += 0.5
        if half % 2 == 0:
            step(half // 2)
        job.beat()


@pytest.mark.parametrize("rate", [0, 1, 1000])
def test_lines_come_by_time_whatever_the_rate(clock, capsys, rate):
    """At 5, 10, 20, 40 and 60 seconds, then once a minute: 64 in an hour."""
    with Progress(10**9, "step", clock=clock) as job:
        job.begin()
        run(clock, job, 3600, lambda second: job.advance(rate) if rate else None)
    found = [re.search(r"(?:(\d+):)?(\d+):(\d+) elapsed", line) for line in capsys.readouterr().out.splitlines()]
    seconds = [3600 * int(hours or 0) + 60 * int(minutes) + int(rest) for hours, minutes, rest in (f.groups() for f in found)]
    assert seconds == [5, 10, 20, 40, *range(60, 3601, 60)]


def test_the_remaining_time_is_that_of_the_steady_rate(clock, capsys):
    """5 steps/s after a first step of 30 seconds and a compilation of 100, with a pause of 8 in every 60."""
    with Progress(3000, "step", images=4, clock=clock) as job:
        job.begin(1000)
        with job.doing("compiling"):
            run(clock, job, 100)
        clock.now += 30
        job.advance()
        for _ in range(3):
            run(clock, job, 52, lambda second: job.advance(5, loss="0.5"))
            with job.doing("saving", after=2.0):
                clock.now += 8
        job.show()
        line = capsys.readouterr().out.splitlines()[-1]
        left = (3000 - 1000 - 1 - 3 * 52 * 5) / 5
        assert line == (
            f"step {1001 + 3 * 52 * 5}/3000  loss 0.5  5 steps/s  20 images/s  5:10 elapsed, "
            f"about {progress.duration(left)} left"
        )


def test_slow_units_are_seen_between_advances(clock, capsys):
    """Batches of 100 seconds: the remaining time falls within a batch, and no further than to the end of it."""
    with Progress(4, "batch", "sampling", images=64, clock=clock) as job:
        job.begin()
        run(clock, job, 100)
        job.advance()
        run(clock, job, 200)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["sampling: batch 0/4 ...", "sampling: batch 0/4  0:05 elapsed", "sampling: batch 0/4  0:10 elapsed"]
    assert [line.split("  ")[1:] for line in lines if "1/4" in line] == [
        ["100 s/batch", "0.64 images/s", time] for time in (
            "2:00 elapsed, about 4:40 left", "3:00 elapsed, about 3:40 left", "4:00 elapsed, about 3:20 left",
            "5:00 elapsed, about 3:20 left",
        )
    ]  # fmt: skip


def test_a_job_is_announced_before_it_starts_and_a_short_one_not_at_all(clock, capsys):
    job = Progress(0, "", clock=clock)
    with job.doing("compiling"):
        assert capsys.readouterr().out == "compiling ...\n"
        run(clock, job, 12)
        assert capsys.readouterr().out == "compiling: 0:05 elapsed\ncompiling: 0:10 elapsed\n"
    for _ in range(100):
        with job.doing("reading", after=10.0):
            run(clock, job, 9)
    assert capsys.readouterr().out == ""
    with job.doing("reading", after=10.0):
        run(clock, job, 11)
        assert capsys.readouterr().out == "reading ...\n"


def test_pauses_of_seconds_do_not_flood(clock, capsys):
    """An hour of saves of three seconds each: two lines per minute at most."""
    with Progress(10**6, "step", clock=clock) as job:
        job.begin()
        for _ in range(900):
            run(clock, job, 1, lambda second: job.advance())
            with job.doing("saving", after=2.0):
                run(clock, job, 3)
    assert 60 <= len(capsys.readouterr().out.splitlines()) <= 124


def test_no_line_after_close_and_no_thread_that_keeps_the_process(capsys, monkeypatch):
    """With the real clock and thread."""
    monkeypatch.setattr(progress, "FIRST_LINES", (0.01,))
    monkeypatch.setattr(progress, "EVERY", 0.01)
    beats, beat = [], Progress.beat
    monkeypatch.setattr(Progress, "beat", lambda self: beats.append(beat(self)))
    with Progress(10, "step") as job:
        job.begin()
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "progress")
        assert thread.daemon
        while not beats:
            time.sleep(0.05)
    assert "step 0/10" in capsys.readouterr().out
    thread.join(5)
    assert not thread.is_alive()
    job.beat()
    assert capsys.readouterr().out == ""


def test_other_processes_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    with Progress(10, "batch", "sampling", clock=clock) as job, job.doing("compiling"):
        job.begin()
        run(clock, job, 100, lambda second: job.advance(0))
        job.show()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_to_do_prints_nothing(capsys, monkeypatch, is_terminal):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: is_terminal)
    with Progress(0, "batch", "sampling") as job:
        job.begin()
    assert capsys.readouterr() == ("", "")


def test_without_an_output_nothing_is_shown(monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}", None)  # as after `sample.py >&-`
    with Progress(2, "batch", "sampling") as job:
        job.begin()
        job.advance(2)


def test_a_bar_keeps_its_times_while_nothing_advances(clock, capsys, monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    with Progress(4, "batch", "sampling", images=8, clock=clock) as job:
        job.begin()
        clock.now += 20
        job.advance()
        with job.doing("compiling"):
            clock.now += 100
            job.beat()
        clock.now += 10
        job.beat()
    out, err = capsys.readouterr()
    assert out.strip() == "compiling ..."
    frames = [frame.strip() for frame in err.split("\r")]
    (during,) = {frame for frame in frames if frame.startswith("compiling:  25%|")}
    assert during.endswith("| 1/4, 20 s/batch  0.4 images/s  2:00 elapsed, about 1:00 left")
    assert frames[-1].startswith("sampling:  25%|")
    assert frames[-1].endswith("| 1/4, 20 s/batch  0.4 images/s  2:10 elapsed, about 0:50 left")


def test_a_closed_output_ends_nothing(clock, monkeypatch, tmp_path):
    closed = (tmp_path / "log").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(ValueError, match="closed file"):
        print("x")
    with Progress(10, "step", clock=clock) as job:
        job.say("x")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00"), (59, "0:59"), (125, "2:05"), (3725, "1:02:05"), (9e4, "25:00:00")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
