import functools
import os
import pathlib
import socket
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
    assert distributed.of_first(lambda: -1) == -1


def test_what_the_first_finds_is_what_all_have():
    """One of them cannot read what the other can, and is not asked."""
    code = """if True:
        import sys
        from ddpm_jax import distributed
        number = int(sys.argv[2])
        distributed.join(sys.argv[1], 2, number, cluster=False, timeout=60)
        try:
            distributed.of_first(lambda: 1 // number)
        except (ZeroDivisionError, ValueError) as error:
            print(error, file=sys.stderr)
        print(distributed.of_first(lambda: [1230, 1 // (1 - number)][number]), file=sys.stderr)
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    run = functools.partial(subprocess.Popen, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True)
    both = [run([sys.executable, "-c", code, address, str(number)]) for number in range(2)]
    try:
        said = [process.communicate(timeout=60)[1].splitlines()[-2:] for process in both]
        assert said == [["integer division or modulo by zero", "1230"], ["process 0 says why", "1230"]]
    finally:
        for process in both:
            process.kill()


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
