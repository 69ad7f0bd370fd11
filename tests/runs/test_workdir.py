import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.config import Config, Network
from ddpm_jax.config.cli import UsageError
from ddpm_jax.runs import workdir
from ddpm_jax.runs.checkpoints import Checkpoints

BASE = Config(workdir="runs/base")


def test_a_workdir_belongs_to_its_config(tmp_path, capsys):
    mine = dataclasses.replace(BASE, workdir=str(tmp_path / "run"))
    with workdir.claim(mine) as claimed:
        workdir.write_config(claimed, mine)
    longer = dataclasses.replace(mine, train=dataclasses.replace(mine.train, num_steps=9))
    with workdir.claim(longer):
        assert "train.num_steps: 800000 -> 9" in capsys.readouterr().out
    other = dataclasses.replace(mine, network=dataclasses.replace(mine.network, channels=64))
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"--workdir.*network\.channels: 128 -> 64"), workdir.claim(other):
        pass
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_workdir_is_locked_while_its_run_is_alive_and_released_when_it_is_killed(tmp_path):
    mine = dataclasses.replace(BASE, workdir=str(tmp_path))
    code = (
        "import sys, time; from ddpm_jax.config import Config; from ddpm_jax.runs.workdir import claim\n"
        f"with claim(Config(workdir={str(tmp_path)!r})): print('claimed', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(UsageError, match=r"--workdir.*in use"), workdir.claim(mine):
            pass
        other.kill()
    with workdir.claim(mine):
        pass


def test_a_conditional_run_resumes_with_classes_of_the_same_names(tmp_path):
    conditional = dataclasses.replace(BASE, network=Network(num_classes=2))
    parts, shape = {"params": np.ones(2, np.float32)}, (8, 8, 1)

    def resume(config, classes, saved):
        with Checkpoints(tmp_path / f"{config.network.num_classes} {saved}", keep=1) as checkpoints:
            checkpoints.save(1, parts, workdir.checkpoint_metadata(config, shape, saved))
            checkpoints.wait()
            return workdir.restore(checkpoints, config, shape, parts, classes)[1]

    names = ("cats", "dogs")
    assert resume(conditional, names, names)["classes"] == ["cats", "dogs"]
    resume(conditional, names, None)  # as in older checkpoints
    resume(BASE, ("cats", "cows"), names)  # an unconditional model doesn't use them
    with pytest.raises(
        UsageError, match=r"^--data: expected the classes cats, dogs, as before, received the classes cats, cows$"
    ):
        resume(conditional, ("cats", "cows"), names)
    with pytest.raises(
        UsageError, match=r"^--data: expected the classes cats, dogs, as before, received classes without names$"
    ):
        resume(conditional, None, names)


def test_a_workdir_that_is_a_file_or_holds_a_broken_config_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="--workdir"), workdir.claim(dataclasses.replace(BASE, workdir=str(file))):
        pass
    (tmp_path / "config.json").write_text('{"workdir"')
    with pytest.raises(UsageError, match=r"config.json: "), workdir.claim(dataclasses.replace(BASE, workdir=str(tmp_path))):
        pass
