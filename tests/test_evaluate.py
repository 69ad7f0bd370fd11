"""evaluate.py as its users run it: real processes, real files, real signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, run, run_inside

SMALL = [
    "--network.channels", "8", "--network.multipliers", "1", "--network.num_groups", "4", "--train.batch_size", "8",
    "--diffusion.num_steps", "25", "--diffusion.variance", "learned", "--loss.kind", "hybrid", "--loss.times", "importance",
    "--loss.weighting", "min_snr", "--sample.num", "4", "--sample.steps", "2", "--train.num_steps", "3",
    "--network.dropout", "0.5", "--network.middle", "none",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def this_package():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


def command(script, *args):
    return [sys.executable, str(ROOT / script), *map(str, args)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result = run_inside("train.py", "--config", "digits", "--workdir", folder, *SMALL)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def copy(workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def results(workdir):
    """Where the results of the last checkpoint go."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    return workdir / "evaluation" / f"{step}_ema_decay"


def read(workdir, metric):
    return json.loads((results(workdir) / f"{metric}.json").read_text())


BPD = ["--metric", "bpd", "--num", 21, "--batch-size", 10]


@pytest.fixture(scope="module")
def measured(workdir):
    result = run("evaluate.py", "--workdir", workdir, *BPD)
    assert result.returncode == 0, result.stderr
    return read(workdir, "bpd"), result


def test_bits_per_dimension(workdir, measured):
    bpd, result = measured
    assert 0 < bpd["bpd"] < 30
    assert bpd["standard_error"] > 0
    assert len(bpd["terms"]) == 25
    np.testing.assert_allclose(bpd["prior"] + sum(bpd["terms"]), bpd["bpd"], rtol=1e-6)
    assert "bits/dim on 21 images, step 3" in result.stdout
    assert "compiled the measurement in" in result.stdout
    assert Image.open(results(workdir) / "bpd.png").size == (1200, 480)


def test_eight_devices_measure_the_same(copy, measured):
    """21 images in batches of 10, neither of which eight divides; to 1e-4."""
    eight = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    result = run("evaluate.py", "--workdir", copy, *BPD, env=os.environ | eight)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(read(copy, "bpd")["bpd"], measured[0]["bpd"], atol=1e-4)
    np.testing.assert_allclose(read(copy, "bpd")["terms"], measured[0]["terms"], atol=1e-4)


def test_killed_and_resumed_it_measures_the_same(copy, measured):
    """`kill -9` after the first batch has been written, and then the same command again."""
    small = ["evaluate.py", "--workdir", copy, "--metric", "bpd", "--num", 21, "--batch-size", 1]
    records = results(copy) / "bound.jsonl"
    with subprocess.Popen(command(*small), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (records.exists() and len(records.read_text().splitlines()) > 2) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = records.read_text().splitlines()[:-1]
    assert 1 < len(kept) < 22, "it was killed between the first batch and the last"
    assert not (results(copy) / "bpd.json").exists()
    result = run(*small)
    assert result.returncode == 0, result.stderr
    assert records.read_text().splitlines()[: len(kept)] == kept, "what was measured stays"
    np.testing.assert_allclose(read(copy, "bpd")["bpd"], measured[0]["bpd"], atol=1e-4)


def test_the_rate_distortion_curve_is_read_from_the_same_terms(workdir, measured):
    before = (results(workdir) / "bound.jsonl").stat().st_mtime_ns
    result = run_inside("evaluate.py", "--workdir", workdir, "--metric", "rate_distortion", *BPD[2:])
    assert result.returncode == 0, result.stderr
    curve = read(workdir, "rate_distortion")
    assert len(curve["rate"]) == len(curve["distortion"]) == 25
    assert np.all(np.diff(curve["rate"]) <= 0)
    np.testing.assert_allclose(curve["rate"][0] + measured[0]["terms"][0], curve["bpd"], rtol=1e-6)
    assert "reverse steps   rate" in result.stdout
    assert (results(workdir) / "rate_distortion.png").exists()
    lines = (results(workdir) / "bound.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3
    assert before <= (results(workdir) / "bound.jsonl").stat().st_mtime_ns


def test_results_of_other_settings_are_refused_and_kept(workdir, measured):
    before = {path.name: path.read_bytes() for path in (results(workdir)).iterdir()}
    result = run_inside("evaluate.py", "--workdir", workdir, *BPD, "--num", 20)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"evaluate.py: error: --out: expected the settings of the results in {results(workdir)}/bound.jsonl, "
        "received num: 21 -> 20; another folder keeps both\n"
    )
    assert {path.name: path.read_bytes() for path in (results(workdir)).iterdir()} == before


def test_the_ode_estimates_what_it_computes(workdir, tmp_path):
    """Two images: Hutchinson's estimate and the exact divergence of the same, barely trained network."""
    found = {}
    for name, extra in {"estimate": [], "exact": ["--exact", "True"]}.items():
        out = tmp_path / name / "results"
        args = ["--metric", "ode_nll", "--num", 2, "--ode-steps", 5, "--out", out, *extra]
        result = run_inside("evaluate.py", "--workdir", workdir, *args)
        assert result.returncode == 0, result.stderr
        assert sorted(path.name for path in out.iterdir()) == ["ode_nll.json", "ode_nll.jsonl", "ode_nll.png"]
        found[name] = json.loads((out / "ode_nll.json").read_text())["bits_per_dimension"]
    assert len(found["exact"]) == 2
    np.testing.assert_allclose(found["estimate"], found["exact"], rtol=0.2)
    assert found["estimate"] != found["exact"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["--num", "0"], "--num: expected at least 1"),
        (["--batch-size", "0"], "--batch_size: expected at least 1"),
        (["--metric", "fid"], "--metric"),
        (["--workdir", "nowhere"], "--workdir: expected a folder that train.py has saved"),
        (["--split", "validation"], "--split: split: expected all, train or test"),
        (["--path", "images.npz"], "--path: expected with --source npz or folder, received with digits"),
        (["--seed", "-1"], "--seed: expected 0 to"),
    ],
)
def test_mistakes_are_one_line(workdir, args, message):
    result = run_inside("evaluate.py", "--workdir", workdir, *args)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
