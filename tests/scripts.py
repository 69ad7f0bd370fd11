"""The scripts at a command line, in a process of their own or inside this one, which spares the start of another."""

import io
import os
import pathlib
import runpy
import subprocess
import sys
from unittest import mock

import jax

ROOT = pathlib.Path(__file__).parents[1]


def run(script, *args, **options):
    """In a process of its own."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def run_inside(script, *args, cwd="."):
    """In this process; has the same attributes as the result of `run`. For all but signals, devices and native output."""
    jax.devices()  # sample.py and evaluate.py would otherwise choose their number, for the other tests too
    argv, out, error = [str(ROOT / script), *map(str, args)], io.StringIO(), io.StringIO()
    streams = {"argv": argv, "stdout": out, "stderr": error, "__stderr__": error}
    before, code = os.getcwd(), 0
    os.chdir(cwd)
    try:
        with mock.patch.multiple(sys, **streams):
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), error.getvalue())
