import pathlib
import subprocess
import sys
import time

import jax
import pytest

from ddpm_jax import distributed

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("coordinator", "num_processes", "process_id", "cluster", "said"),
    [
        (None, 2, None, False, "coordinator: expected an address with num_processes"),
        (None, None, 0, False, "coordinator: expected an address with num_processes"),
        ("10.0.0.1", 2, 0, False, "coordinator: expected an address and a port such as 10.0.0.1:1234, received 10.0.0.1"),
        ("10.0.0.1:1234", None, 0, False, "num_processes: expected at least 1 with coordinator, received None"),
        ("10.0.0.1:1234", 2, None, False, "process_id: expected 0..1 with coordinator, received None"),
        ("10.0.0.1:1234", 2, 2, False, "process_id: expected 0..1 with coordinator, received 2"),
        ("10.0.0.1:1234", 2, 0, True, "coordinator: expected none with cluster"),
        (None, None, None, True, "expected all processes of the cluster, received: "),
    ],
)
def test_what_names_no_processes_is_refused(coordinator, num_processes, process_id, cluster, said):
    with pytest.raises(ValueError, match=said):
        distributed.join(coordinator, num_processes, process_id, cluster, timeout=10)


def test_one_process_alone_joins_nothing():
    assert distributed.join(None, None, None, cluster=False, timeout=1)
    assert jax.process_count() == 1


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_whose_others_do_not_come_says_so_in_time(tmp_path, process_id):
    """Process 0 waits for the others; process 1 for a coordinator that is not there."""
    began = time.monotonic()
    options = ["--devices.coordinator", "127.0.0.1:1", "--devices.num_processes", "2", "--devices.timeout", "2"]
    command = [sys.executable, str(ROOT / "train.py"), "--workdir", "run", *options, "--devices.process_id", str(process_id)]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "--devices.coordinator: expected 2 processes at 127.0.0.1:1 within 2 s" in result.stderr
    assert result.stderr.count("\n") == 1
    assert time.monotonic() - began < 30
    assert not list(tmp_path.iterdir())
