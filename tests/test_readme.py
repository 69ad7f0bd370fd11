"""README's commands and its example, as they stand there."""

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
        'pip install -e ".[test]" && pytest',
        "python sample.py --workdir runs/digits --num 64 --out out/digits",
        "python evaluate.py --workdir runs/digits --metric bpd",
    ]


def test_the_commands_run(tmp_path):
    """But for installing, and for the length of the training and of the chain; pytest is this test's own command."""
    for name in ("train.py", "sample.py", "evaluate.py", "configs", "ddpm_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    train = COMMANDS[0].split(" && ")[1] + " --train.num_steps 2 --sample.num 4 --sample.steps 2"
    train += " --diffusion.num_steps 10"
    for command in (train, COMMANDS[2] + " --steps 2", COMMANDS[3] + " --num 20"):
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "digits" / "grid.png").exists()
    assert (tmp_path / "runs" / "digits" / "evaluation" / "bpd.json").exists()
    assert np.load(tmp_path / "out" / "digits" / "samples.npz")["image"].shape == (64, 8, 8, 1)


def test_the_extras_that_readme_names_exist():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[(\w+)\]", README)) <= set(extras)
