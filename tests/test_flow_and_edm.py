"""A DiT by flow matching, and one by EDM, from the command line: trained, sampled with guidance, measured."""

import json

import numpy as np
import pytest
from scripts import run_inside

TINY = [
    "--network.width", "16", "--network.depth", "1", "--network.num_heads", "2", "--network.patch", "4",
    "--train.num_steps", "4", "--train.batch_size", "8", "--train.log_every", "2", "--sample.num", "4",
    "--sample.steps", "3",
]  # fmt: skip
EDM = [
    "--diffusion.prediction", "edm", "--diffusion.sigma_data", "0.75", "--loss.times_mean", "-1.2", "--loss.times_std", "1.2",
]  # fmt: skip
HEUN = ["--sampler", "heun", "--grid", "karras", "--sigma_range", "0.002", "80", "--clip", "False"]


@pytest.mark.parametrize(("options", "sampling"), [([], []), (EDM, HEUN)], ids=["flow", "edm"])
def test_it_trains_samples_and_measures(tmp_path, options, sampling):
    workdir, out = tmp_path / "run", tmp_path / "out"
    trained = run_inside("train.py", "--config", "digits_dit", "--workdir", workdir, *TINY, *options)
    assert trained.returncode == 0, trained.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(np.isfinite(row["loss"]) for row in rows)

    sampled = run_inside(
        "sample.py", "--workdir", workdir, "--num", 3, "--steps", 3, "--guidance", 2, "--label", 3, "--out", out, *sampling
    )
    assert sampled.returncode == 0, sampled.stderr
    image = np.load(out / "samples.npz")["image"]
    assert image.shape == (3, 8, 8, 1)
    assert image.std() > 0

    measured = run_inside("evaluate.py", "--workdir", workdir, "--metric", "ode_nll", "--num", 2, "--ode_steps", 3)
    assert measured.returncode == 0, measured.stderr
    (found,) = workdir.glob("evaluation/*/ode_nll.json")
    assert np.isfinite(json.loads(found.read_text())["bpd"])
