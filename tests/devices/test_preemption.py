import signal
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.devices.preemption import DEBOUNCE, Preemption

CODE = """
import time
from ddpm_jax.devices.preemption import Preemption
with Preemption() as preemption:
    print("ready", flush=True)
    while preemption.number is None:
        time.sleep(0.01)
    print(preemption.number, preemption.should_stop(3), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_recorded_and_the_second_ends_immediately(number):
    command = [sys.executable, "-c", CODE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{int(number)} True\n"
        process.send_signal(number)  # as by a sender that signals the process and its group
        time.sleep(2 * DEBOUNCE)
        assert process.poll() is None
        process.send_signal(number)
        out, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out == ""
    name = signal.Signals(number).name
    first, second = said.splitlines()
    assert first == f"{name}: finishing the current steps and saving; send it again to end immediately"
    assert second == f"{name}: ended immediately"


def test_the_previous_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        assert not preemption.should_stop(1)
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_interrupts_an_interactive_python_and_does_not_end_it():
    """As in a notebook, where SIGINT is the stop button; afterwards the earlier handlers hold."""
    interactive = "import signal, sys, time\nsys.ps1 = '>>> '\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    code = CODE.replace("import time", interactive, 1)  # a shell's background jobs would ignore SIGINT
    code = "\n".join(["try:", *(f"    {line}" for line in code.strip().splitlines())])
    code += (
        "\nexcept KeyboardInterrupt:\n    print('interrupted', signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "2 True\n"
        time.sleep(2 * DEBOUNCE)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "interrupted True\n")
    assert "ended immediately" not in said


def test_outside_the_main_thread_signals_are_left_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with Preemption() as preemption:
            found.extend([signal.getsignal(signal.SIGINT), preemption.should_stop(1)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, False]
