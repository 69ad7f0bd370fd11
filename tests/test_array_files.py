"""Arrays written by another process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from orbax.checkpoint import v1 as ocp

from ddpm_jax import array_files
from ddpm_jax.aside import make_set_aside


class Moments(NamedTuple):
    mu: jax.Array
    nu: list[jax.Array]


PARTS = {
    "params": {"kernel": jnp.arange(600_000.0).reshape(2, 300, 1000), "bias": jnp.ones((3,), jnp.bfloat16)},
    "opt_state": (Moments(jnp.float32(2.5), [jnp.asarray([True, False])]), ()),
    "step": jnp.int32(7),
}


def aside_of(parts):
    return make_set_aside(parts, stacked=True)(parts)


ASIDE = aside_of(PARTS)


@pytest.fixture
def apart():
    with contextlib.closing(array_files.Apart()) as found:
        yield found


def test_it_writes_what_this_process_would(apart, tmp_path):
    array_files.begin(tmp_path / "here", PARTS).result()
    apart.write(tmp_path / "there", ASIDE)
    first = apart._process
    chex.assert_trees_all_equal(ocp.load_checkpointables(tmp_path / "there", PARTS), PARTS)
    chex.assert_trees_all_equal_dtypes(ocp.load_checkpointables(tmp_path / "there", PARTS), PARTS)
    names = [{path.name for path in (tmp_path / where).iterdir()} for where in ("here", "there")]
    assert names[0] == names[1]
    apart.write(tmp_path / "there", make_set_aside(PARTS)(PARTS | {"step": jnp.int32(8)}))
    assert ocp.load_checkpointables(tmp_path / "there", {"step": jnp.int32(0)}) == {"step": 8}, "written over, not stacked"
    assert apart._process is first
    apart.close()
    assert first.returncode is not None


def test_what_cannot_be_written_is_told(apart, tmp_path):
    with pytest.raises(OSError, match="zero size"):
        apart.write(tmp_path / "1", aside_of({"w": jnp.zeros((0, 4))}))
    apart.write(tmp_path / "2", ASIDE)


def test_half_a_request_is_not_taken_for_the_next(apart, tmp_path, monkeypatch):
    """What had been sent of it would be read as what follows."""
    sent, whole = [], array_files._bytes

    def runs_out(a):
        sent.append(a)
        if len(sent) > 1:
            raise MemoryError
        return whole(a)

    with monkeypatch.context() as patched:
        patched.setattr(array_files, "_bytes", runs_out)
        with pytest.raises(MemoryError):
            apart.write(tmp_path / "1", ASIDE)
    apart.write(tmp_path / "2", ASIDE)
    chex.assert_trees_all_equal(ocp.load_checkpointables(tmp_path / "2", PARTS), PARTS)
    assert not (tmp_path / "1").exists()


def test_it_leaves_signals_to_others_and_is_replaced_when_it_is_lost(apart, tmp_path):
    apart.write(tmp_path / "1", ASIDE)
    first = apart._process
    first.terminate()
    first.send_signal(signal.SIGINT)
    apart.write(tmp_path / "2", ASIDE)
    first.kill()
    with pytest.raises((OSError, EOFError)):
        apart.write(tmp_path / "3", ASIDE)
    apart.write(tmp_path / "4", ASIDE)
    assert apart._process is not first
    chex.assert_trees_all_equal(ocp.load_checkpointables(tmp_path / "4", PARTS), PARTS)


def test_wide_numbers_and_other_names_of_platforms_are_as_they_are_here(tmp_path):
    """JAX is set for another process by what is in the environment alone."""
    code = """if True:
        import os, pathlib, sys, jax, jax.numpy as jnp
        jax.config.update("jax_enable_x64", True)
        from ddpm_jax import array_files
        from ddpm_jax.aside import make_set_aside
        tree = {"w": jnp.arange(5.0), "n": jnp.int64(2**40)}
        os.environ["JAX_PLATFORM_NAME"] = "gpu"
        array_files.APART.write(pathlib.Path(sys.argv[1]), make_set_aside(tree, stacked=True)(tree))
        print(array_files.ocp.load_checkpointables(sys.argv[1], tree))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "wide")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "1099511627776" in printed.stdout, printed.stderr
    assert "float64" in printed.stdout


def test_it_ends_when_whoever_asked_is_killed_even_while_it_writes(tmp_path):
    code = """if True:
        import pathlib, sys, threading, time, jax.numpy as jnp
        from ddpm_jax import array_files
        from ddpm_jax.aside import make_set_aside
        aside_of = lambda parts: make_set_aside(parts, stacked=True)(parts)
        folder, apart = pathlib.Path(sys.argv[1]), array_files.Apart()
        apart.write(folder / "small", aside_of({"w": jnp.zeros(3)}))
        print(apart._process.pid, flush=True)
        apart.write(folder / "large", aside_of({"w": [jnp.zeros(10_000_000) for _ in range(40)]}))
        print("written", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        writing = int(asking.stdout.readline())
        while not list(tmp_path.glob("large*")):
            time.sleep(0.01)
        os.kill(writing, 0)  # it is there
        asking.kill()
        said, _ = asking.communicate(timeout=20)  # until both have ended, for both have stderr
    assert said == "", "it was not written yet"
    assert not (tmp_path / "large").exists(), "nor did the process go on"
