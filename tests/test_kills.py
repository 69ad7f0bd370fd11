"""A run killed at random moments by benchmarks/kills.py is bit-identical to an uninterrupted one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(("run", "signals"), [("unet", ["SIGTERM"]), ("dit", ["SIGINT"])])
def test_kills_and_signals_change_no_bit(run, signals, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "2", "--run", run, "--signals", *signals]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["kills"] == {"save": 1, "step": 1}
    assert found["lines"] == found["steps"]
    assert found["arrays"] > 50
    assert (found["differing"], found["same_lines"]) == ([], True)
