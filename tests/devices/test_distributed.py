import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from ddpm_jax.devices import distributed


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
def test_invalid_processes_are_refused(coordinator, num_processes, process_id, cluster, said):
    with pytest.raises(ValueError, match=said):
        distributed.join(coordinator, num_processes, process_id, cluster, timeout=10)


def test_a_single_process_joins_nothing():
    assert distributed.join(None, None, None, cluster=False, timeout=1)
    assert jax.process_count() == 1
    assert distributed.from_first_process(lambda: -1) == -1


@pytest.fixture
def start():
    """Starts Python code with arguments as a process, which is killed after the test."""
    processes = []

    def run(code, *args):
        options = {
            "env": os.environ | {"JAX_PLATFORMS": "cpu"},
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        processes.append(subprocess.Popen([sys.executable, "-c", code, *map(str, args)], **options))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def test_all_processes_receive_the_value_of_the_first_and_only_the_first_prints(start):
    """The other process would raise, and is not called."""
    code = """if True:
        import sys
        from ddpm_jax.devices import distributed
        number = int(sys.argv[2])
        first = distributed.join(sys.argv[1], 2, number, cluster=False, timeout=60)
        try:
            distributed.from_first_process(lambda: 1 // number)
        except (ZeroDivisionError, ValueError) as error:
            print(error, file=sys.stderr)
        print(distributed.from_first_process(lambda: [1230, 1 // (1 - number)][number]), file=sys.stderr)
        print("first" if first else "another")
    """
    address = free_address()
    both = [start(code, address, number) for number in range(2)]
    printed, said = zip(*(process.communicate(timeout=60) for process in both), strict=True)
    assert said[0].splitlines()[-2:] == ["integer division or modulo by zero", "1230"]
    assert said[1].splitlines()[-2:] == ["process 0 failed, see its error", "1230"]
    printed = [[line for line in lines.splitlines() if not line.startswith("[Gloo]")] for lines in printed]
    assert printed == [["first"], ["process 1 of 2: process 0 prints for all"]]


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_whose_others_do_not_join_names_them_and_ends(start, process_id):
    """Process 0 waits for the others, process 1 for a coordinator that does not exist. JAX aborts both with its own log."""
    code = """if True:
        import sys
        from ddpm_jax.devices import distributed
        distributed.join(sys.argv[1], 2, int(sys.argv[2]), cluster=False, timeout=2)
    """
    began, address = time.monotonic(), free_address()
    process = start(code, address, process_id)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGABRT
    assert time.monotonic() - began < 30
    assert said.startswith(f"process {process_id} expects 2 processes at {address} within 2 s\n")
    assert "DEADLINE_EXCEEDED" in said


def test_when_a_process_is_killed_the_other_ends(start):
    """Even while it waits in native code, as for a collective on a GPU; with a short HEARTBEAT."""
    code = """if True:
        import ctypes, sys, time
        from ddpm_jax.devices import distributed
        distributed.HEARTBEAT = 5
        distributed.join(sys.argv[1], 2, int(sys.argv[2]), cluster=False, timeout=60)
        distributed.from_first_process(lambda: 0)
        print("joined", file=sys.stderr, flush=True)
        ctypes.CDLL(None).sleep(600)
    """
    address = free_address()
    first, second = (start(code, address, number) for number in range(2))
    for line in iter(first.stderr.readline, "joined\n"):
        assert line, "it has ended"
    second.kill()
    began = time.monotonic()
    said = first.communicate(timeout=60)[1]
    assert time.monotonic() - began < 30
    assert first.returncode == -signal.SIGABRT
    assert "another task died" in said
