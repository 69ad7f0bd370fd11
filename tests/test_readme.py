"""README's commands and its example, as they are written there."""

import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.strip().splitlines()]


def test_the_example_learns_its_data_and_knows_no_flax():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 20
    assert "flax" not in code
    names = {}
    exec(code, names)
    np.testing.assert_allclose(names["params"], [0.5, -0.3], atol=0.01)
    np.testing.assert_allclose(names["x"], np.tile([0.5, -0.3], (16, 1)), atol=0.05)


def test_the_commands_are_those_tested_here():
    assert COMMANDS == [
        "pip install -e . && python train.py --config configs/digits.py --workdir runs/digits",
        "python sample.py --workdir runs/digits --num 100 --guidance 1.25 --out out/digits",
        "python evaluate.py --workdir runs/digits --metric bpd",
        'pip install -e ".[test]" && pytest',
    ]


def test_the_commands_run(tmp_path):
    """Without the installation, with a small network and fewer steps; pytest is this test's own command."""
    for name in ("train.py", "sample.py", "evaluate.py", "configs", "ddpm_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    train = COMMANDS[0].split(" && ")[1] + " --train.num_steps 2 --sample.num 4 --sample.steps 2"
    train += " --diffusion.num_steps 10 --network.multipliers 1 --network.middle none"
    for command in (train, COMMANDS[1] + " --steps 2", COMMANDS[2] + " --num 20"):
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "digits"
    assert all((workdir / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints", "samples"))
    assert (tmp_path / "out" / "digits" / "grid.png").exists()
    assert (workdir / "evaluation" / "2_ema_decay" / "bpd.json").exists()
    assert np.load(tmp_path / "out" / "digits" / "samples.npz")["image"].shape == (100, 8, 8, 1)


def test_the_extras_that_readme_names_exist():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[(\w+)\]", README)) <= set(extras)


def test_the_files_that_readme_links_exist_and_its_pictures_are_small():
    for name in re.findall(r"\]\((?!https)([^)]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).stat().st_size < 60_000, name


def test_the_length_of_two_moons():
    (length,) = re.findall(r"program of (\d+) lines", README)
    assert len((ROOT / "examples" / "two_moons.py").read_text().splitlines()) == int(length) < 60
