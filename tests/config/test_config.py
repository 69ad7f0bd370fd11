import dataclasses
import json
import pathlib

import pytest

from ddpm_jax import config
from ddpm_jax.config import Config, Network, Train
from ddpm_jax.config.cli import UsageError
from ddpm_jax.runs import workdir

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
BASE = Config(workdir="runs/base")
CONFIG = "from ddpm_jax.config import *\ndef get_config(): return Config(workdir='x', {})"


def read(*argv, default="digits"):
    chosen = any(word.startswith("--config") for word in argv)
    return config.read_config(argv if chosen else ("--config", default, *argv), CONFIGS, "About.")


def test_a_config_has_a_name_or_a_path():
    assert read("--config", "configs/digits.py") == read("--config=digits")
    assert read("--config", "digits").data.source == "digits"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_is_sound_and_says_how_to_run_it(path):
    found = read("--config", str(path))
    config.check(found)
    assert f"python train.py --config configs/{path.name}" in path.read_text()
    assert config.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_the_papers_settings():
    """Appendix B of Ho et al. 2020."""
    cifar, church = read("--config", "cifar10"), read("--config", "lsun_church")
    assert (cifar.optimizer.learning_rate, cifar.train.batch_size, cifar.train.num_steps) == (2e-4, 128, 800_000)
    assert (cifar.network.dropout, cifar.diffusion.variance, cifar.ema.decay) == (0.1, "fixed_large", 0.9999)
    assert (church.optimizer.learning_rate, church.train.batch_size, church.train.num_steps) == (2e-5, 64, 1_200_000)
    assert (church.network.dropout, church.diffusion.variance) == (0.0, "fixed_small")
    for found in (cifar, church):
        assert (found.optimizer.warmup_steps, found.optimizer.clip_norm, found.diffusion.prediction) == (
            5000,
            1.0,
            "eps",
        )
        assert (found.sample.sampler, found.sample.steps, found.data.random_flip) == ("ddpm", None, True)


def test_options_override_the_file():
    found = read("--train.num_steps", "7", "--network.multipliers", "1", "2", "3", "--data.random-flip", "True")
    assert (found.train.num_steps, found.network.multipliers, found.data.random_flip) == (7, (1, 2, 3), True)
    assert found.optimizer == read().optimizer


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--train.num_stepz", "3"], "--train.num_stepz: expected an option, perhaps --train.num_steps"),
        (["--trian.batch_size=3"], "perhaps --train.batch_size"),
        (["extra"], "extra: expected an option"),
        (["--optimizer.lr", "1"], "perhaps --optimizer.learning_rate"),
        (["--optimizer.learningrate", "1"], "perhaps --optimizer.learning_rate"),
        (["--optimizer.momentum", "1"], "--optimizer has learning_rate, warmup_steps, decay, betas"),
        (["--batch-size", "1"], "perhaps --train.batch_size"),
        (["--train.num_steps", "many"], "--train.num_steps"),
        (["--train.num_steps"], "--train.num_steps"),
        (["--diffusion.prediction", "noise"], "--diffusion.prediction"),
        (["--config", "mnist"], "--config: expected a file.py or one of celebahq256, cifar10, cifar10_edm"),
        (["--config", "no/such/file.py"], "--config: expected a file.py"),
        (["--config"], "--config: expected a value"),
        (["--config", "gs://bucket/c.py"], "--config: expected a local path, received gs://bucket/c.py; mount the bucket"),
        (["--workdir", "s3://b/run"], "--workdir: expected a local path, received s3://b/run"),
        (["--data.source", "npz", "--data.path", "https://b/x.npz"], "--data.path: expected a local path"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(argv, said):
    with pytest.raises(UsageError) as error:
        read(*argv)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "│" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "AttributeError"),
        ("def get_config(:", "SyntaxError"),
        ("raise TypeError('no')", "TypeError: no"),
        ("from ddpm_jax.config import Config\ndef get_config(): return Config(workdir='x', foo=3)", "TypeError.*foo"),
        ("def get_config(): return 3", "return a Config, received int"),
        (CONFIG.format("train=Train(num_steps='many')"), r"mine.py: train.num_steps: expected int, received 'many'"),
        (CONFIG.format("train=3"), r"mine.py: train: expected Train, received 3"),
        (CONFIG.format("data=Npz(path='gs://b/x.npz')"), r"mine.py: data.path: expected a local path"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"--config.*{said}"):
        read("--config", str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"train": Train(num_steps=0)},
        {"train": Train(batch_size=-1)},
        {"train": Train(steps_per_call=0)},
        {"train": Train(steps_per_call=3)},
        {"train": Train(seed=-1)},
        {"train": Train(seed=2**32)},
        {"sample": config.Sample(seed=2**70)},
        {"data": config.Data(source="folder", image_size=0)},
        {"optimizer": config.Optimizer(learning_rate=float("inf"))},
        {"network": Network(dropout=1.0)},
        {"network": Network(multipliers=())},
        {"network": Network(multipliers=(1, 0))},
        {"sample": config.Sample(num=0)},
        {"optimizer": config.Optimizer(learning_rate=float("nan"))},
        {"ema": config.Ema(half_life=(1.0, float("nan")))},
        {"diffusion": config.Diffusion(num_steps=10**12)},
        {"network": Network(channels=10**12)},
        {"network": Network(num_blocks=10**9)},
        {"network": Network(norm_eps=-1.0)},
        {"workdir": ""},
    ],
)
def test_numbers_out_of_range_are_refused(change):
    (part,) = change
    config.check(BASE)
    with pytest.raises(UsageError, match=f"--{part}"):
        config.check(dataclasses.replace(BASE, **change))


def test_what_may_change_on_resuming_and_what_may_not():
    later = dataclasses.replace(
        BASE,
        workdir="elsewhere",
        train=dataclasses.replace(BASE.train, num_steps=9, seed=3),
        network=dataclasses.replace(BASE.network, channels=64),
    )
    allowed, refused = config.changes(BASE, later)
    assert allowed == ["workdir: runs/base -> elsewhere", "train.num_steps: 800000 -> 9"]
    assert refused == ["network.channels: 128 -> 64", "train.seed: 0 -> 3"]
    assert config.changes(BASE, BASE) == ([], [])


def test_averages_and_the_optimizer_may_change_on_resuming_but_a_power_average_covers_the_whole_run():
    before = dataclasses.replace(BASE, ema=config.Ema(decay=None, power=(0.05, 0.1)))
    optimizer = config.Optimizer(warmup_steps=1, decay="cosine", clip_norm=None)
    after = dataclasses.replace(before, ema=config.Ema(decay=0.999, warmup=True, power=(0.1,)), optimizer=optimizer)
    assert len(config.changes(before, after)[0]) == 6
    assert config.changes(before, after)[1] == []
    assert config.changes(after, before)[1] == ["ema.power: (0.1,) -> (0.05, 0.1)"]


def test_a_config_of_another_version_is_refused():
    values = dataclasses.asdict(BASE)
    values["network"]["depth"] = 3
    with pytest.raises(ValueError, match="depth"):
        config.from_dict(values)
    with pytest.raises(ValueError, match="expected fields"):
        config.from_dict([])


def test_a_workdir_alone_is_resumed_with_its_own_config(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"--config: .*digits.* to start a run in .*, received nothing"):
        config.read_config(["--workdir", str(tmp_path)], CONFIGS, "")
    with pytest.raises(UsageError, match=r"--config: .*or --workdir of a run to resume, received neither"):
        config.read_config(["--train.num_steps", "3"], CONFIGS, "")
    (tmp_path / "run").mkdir()
    workdir.write_config(tmp_path / "run", read("--workdir", "elsewhere"))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = config.read_config(["--workdir=~/run", "--train.num_steps", "7"], CONFIGS, "")
    assert found == read("--workdir", str(tmp_path / "run"), "--train.num_steps", "7")


def test_an_empty_command_line_asks_for_help(capsys):
    with pytest.raises(SystemExit) as end:
        config.read_config([], CONFIGS, "About.")
    assert not end.value.code
    assert "--train.num-steps" in capsys.readouterr().out.replace("_", "-")


def test_the_config_of_a_workdir_is_a_config_too(tmp_path):
    workdir.write_config(tmp_path, read("--config", "cifar10", "--network.head_dim", "32", "--workdir", "here"))
    again = read("--config", str(tmp_path / "config.json"), "--train.seed", "3")
    assert (again.workdir, again.network.head_dim, again.network.multipliers, again.train.seed) == ("here", 32, (1, 2, 2, 2), 3)
    (tmp_path / "config.json").write_text('{"network": {"layers": 3}}')
    with pytest.raises(UsageError, match=r"config.json: config: expected only fields of this version, received layers"):
        read("--config", str(tmp_path / "config.json"))
