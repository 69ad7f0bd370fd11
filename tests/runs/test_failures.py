import errno
import gc
import os
import resource
import sys

import jax.numpy as jnp
import pytest

from ddpm_jax.runs import failures
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.runs.failures import Failures, cause


def test_failures_are_reported_at_once_and_then_at_most_once_per_minute():
    said, now = [], 0.0
    reports = Failures(said.append, lambda: now)
    for now in range(0, 600, 5):
        reports.failed(f"CANNOT at {now}")
    assert said[:2] == ["CANNOT at 0", "CANNOT at 60 (failed 11 more times since the last such line)"]
    assert len(said) == 10
    said.clear()
    for now in range(600, 1200, 5):  # noqa: B007
        reports.succeeded("works")
        reports.failed("CANNOT")
    assert said[0] == "works"
    assert len(said) <= 21, "also if failures and successes alternate"


LONG = f"begin {100 * 'middle '}end"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs/5"), "Permission denied: /runs/5"),
        (
            ValueError(f'OUT_OF_RANGE: Error writing "0/c" in "/runs/5/w": {"x" * 300}: bytes [os_error_code=\'28\']'),
            "No space left on device: /runs/5/w",
        ),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError()"),
        (ValueError(LONG), f"{LONG[:100]} ... {LONG[-100:]}"),
    ],
)  # fmt: skip
def test_the_cause_is_one_line_and_the_systems_reason_comes_first(error, said):
    assert cause(error) == said


@pytest.fixture
def limited():
    """Sets a limit of the process, until the test ends."""
    kinds = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)}
    yield lambda kind, value: resource.setrlimit(kind, (value, kinds[kind][1]))
    for kind, before in kinds.items():
        resource.setrlimit(kind, before)


@pytest.mark.skipif(sys.platform != "linux", reason="the limits and the list of open files are those of Linux")
@pytest.mark.parametrize("kind", ["files too large", "too many files"])
def test_saves_that_fail_print_one_line(tmp_path, capfd, limited, kind):
    """Orbax's and TensorStore's own tracebacks, hundreds of lines per save, included."""
    state = {"params": {str(i): jnp.full(300, float(i)) for i in range(40)}, "ema": {"w": jnp.ones(3)}}
    with Checkpoints(tmp_path / "c", keep=1, report=lambda line: print(line, flush=True)) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        checkpoints.retry = "trying again every 5 steps"
        if kind == "files too large":
            limited(resource.RLIMIT_FSIZE, 2000)
        else:
            limited(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + 1)
        for step in (2, 3, 4):
            checkpoints.save(step, state, {})
            checkpoints.wait()
            assert checkpoints.failed
        for which, (_, hard) in (
            (which, resource.getrlimit(which)) for which in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
        ):
            limited(which, hard if hard != resource.RLIM_INFINITY or which == resource.RLIMIT_FSIZE else 4096)
        checkpoints.save(5, state, {})
        checkpoints.wait()
        gc.collect()
    out, err = capfd.readouterr()
    reason = "File too large" if kind == "files too large" else "Too many open files"
    first, last = out.splitlines()
    assert first.startswith(f"CANNOT SAVE step 2: {reason}")
    assert first.endswith("; step 1 is kept; trying again every 5 steps")
    assert last == "saving works again: step 5 is saved"
    assert err == ""


def test_other_errors_that_cannot_be_raised_are_printed_as_before(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    failures.quiet_orbax()
    failures.quiet_orbax()
    assert sys.unraisablehook._before == seen.append, "wrapped once"

    class Breaks:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    Breaks()
    assert [str(unraisable.exc_value) for unraisable in seen] == ["Event loop is closed"], "one of an object of the user's"
