"""`python -m ddpm_jax.interop` as its users run it, and its workdirs in sample.py and train.py."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import chex
import jax
import numpy as np
import optax
import pytest

import train
from ddpm_jax import factory
from ddpm_jax.config import Config, Data, Diffusion, Network, Train, changes, from_dict, read_config
from ddpm_jax.config.cli import UsageError
from ddpm_jax.devices import sharding
from ddpm_jax.interop import __main__ as script
from ddpm_jax.interop import diffusers, files, weights
from ddpm_jax.networks import UNet
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.training import state

ROOT = pathlib.Path(__file__).parents[2]
FIXTURES = pathlib.Path(__file__).parent / "fixtures"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def run(*command, cwd):
    command = [sys.executable, *map(str, command)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(cwd)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)


@pytest.fixture
def imported(tmp_path):
    script.main(["import", str(FIXTURES / "plain"), "--workdir", str(tmp_path / "run")])
    return tmp_path / "run"


def test_an_imported_model_is_exported_unchanged(imported, tmp_path, capsys):
    assert json.loads((imported / "config.json").read_text())["data"]["source"] is None
    for part in ("ema", "raw"):
        script.main(["export", str(tmp_path / part), "--workdir", str(imported), "--weights", part])
        tensors = files.read(tmp_path / part / "unet" / WEIGHTS)
        chex.assert_trees_all_equal(tensors, files.read(FIXTURES / "plain" / WEIGHTS))
        config = json.loads((tmp_path / part / "unet" / "config.json").read_text())
        assert config == json.loads((FIXTURES / "plain" / "config.json").read_text())
    assert "EMA at step 0" in capsys.readouterr().out


def test_a_file_with_our_own_names(imported, tmp_path):
    script.main(["export", str(tmp_path / "model.safetensors"), "--workdir", str(imported)])
    model = diffusers.load(FIXTURES / "plain")
    read = weights.load(tmp_path / "model.safetensors", model.network, (8, 8, 3))
    chex.assert_trees_all_equal(read, model.params)


def test_a_workdir_represents_the_network_and_the_process(tmp_path):
    diffusers.save(tmp_path / "model", *diffusers.load(FIXTURES / "plain")._replace(prediction="v", clip=False))
    model = diffusers.load(tmp_path / "model")
    config = script.config_of(model, "run")
    assert factory.make_network(config, (8, 8, 3)) == model.network
    chex.assert_trees_all_equal(factory.make_schedule(config.diffusion), model.schedule)
    assert (config.diffusion.prediction, config.sample.clip, config.diffusion.variance) == ("v", False, "fixed_small")


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", script.SCHEDULES)
def test_a_workdir_represents_every_schedule_of_train(name, zero_terminal_snr):
    begun = Diffusion(schedule=name, num_steps=50, zero_terminal_snr=zero_terminal_snr, prediction="v")
    schedule = factory.make_schedule(begun)
    model = diffusers.load(FIXTURES / "plain")._replace(schedule=schedule, prediction="v")
    if zero_terminal_snr and name in ("warmup10", "warmup50", "sigmoid"):  # which go out as trained_betas that end with 1
        with pytest.raises(UsageError, match="FOLDER: beta_schedule: expected the betas of a schedule"):
            script.config_of(model, "run")
        return
    chosen = script.config_of(model, "run").diffusion
    chex.assert_trees_all_close(factory.make_schedule(chosen), schedule, rtol=1e-6)
    same = {"constant": "linear"}  # with equal ends
    assert chosen.schedule == ("jsd" if name == "jsd" else same.get(name, name))


def test_dynamic_thresholding_goes_out_and_comes_back(imported, tmp_path, monkeypatch):
    loaded = factory.load(imported)
    sample = dataclasses.replace(loaded.config.sample, dynamic_threshold=0.9)
    config = dataclasses.replace(loaded.config, sample=sample)
    monkeypatch.setattr(factory, "load", lambda *_: loaded._replace(config=config))
    script.main(["export", str(tmp_path / "out"), "--workdir", str(imported)])
    model = diffusers.load(tmp_path / "out")
    assert model.threshold == (0.9, float("inf"))
    assert script.config_of(model, "run").sample == sample
    with pytest.raises(
        UsageError, match=r"FOLDER: sample_max_value: expected 1, or 1e6 for no limit, in a workdir, received 2\.0"
    ):
        script.config_of(model._replace(threshold=(0.9, 2.0)), "run")


def test_the_config_of_networks_has_their_options_and_defaults():
    fields = dataclasses.asdict(Network())
    expected = {name: getattr(UNet(), name) for name in fields if name not in ("kind", "dtype")}
    assert {name: value for name, value in fields.items() if name not in ("kind", "dtype")} == expected


def test_sample_accepts_the_workdir(imported, tmp_path):
    sampled = run(ROOT / "sample.py", "--workdir", imported, "--num", 2, "--steps", 2, "--out", "out", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    assert np.load(tmp_path / "out" / "samples.npz")["image"].shape == (2, 8, 8, 3)


def test_train_finds_a_complete_state_of_step_0(imported):
    """All that train.py needs of a workdir: a config that it accepts, and a checkpoint of the state that it would create."""
    config = read_config(["--config", str(imported / "config.json"), "--train.batch_size", "2"], ROOT, "")
    assert config.workdir == str(imported)
    objective = factory.make_objective(config, (8, 8, 3))
    optimizer = factory.make_optimizer(config.optimizer, factory.make_learning_rate(config.optimizer, 10))
    init = functools.partial(state.init_state, jax.random.key(0), objective, optimizer)
    abstract = sharding.abstract(init, sharding.replicated(sharding.make_mesh()))
    with Checkpoints(imported / "checkpoints") as checkpoints:
        assert checkpoints.latest == 0
        assert checkpoints.metadata(0)["image_shape"] == [8, 8, 3]
        parts = checkpoints.load(0, abstract.parts())
    model = diffusers.load(FIXTURES / "plain")
    chex.assert_trees_all_equal(parts["params"], model.params)
    chex.assert_trees_all_equal(parts["ema_decay"], model.params)
    chex.assert_trees_all_equal(parts["opt_state"], optimizer.init(model.params))
    assert parts["step"] == 0


def test_train_resumes_from_the_weights_with_another_ema_and_optimizer(imported, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", image=image)
    data = ["--data.source", "npz", "--data.path", str(tmp_path / "data.npz"), "--train.batch_size", "4"]
    pictures = ["--train.sample_every", "9", "--sample.num", "1", "--sample.steps", "1"]
    other = [
        "--optimizer.learning_rate",
        "1e-9",
        "--ema.half_life",
        "100",
        "--optimizer.clip_norm",
        "2",
        "--loss.times",
        "importance",
    ]
    options = ["--config", str(imported / "config.json"), *data, *pictures, *other]
    for begun in (0, 1):
        train.main([*options, "--train.num_steps", str(begun + 1)])
        assert f"from step {begun} to {begun + 1}" in capsys.readouterr().out
    begun_from = diffusers.load(FIXTURES / "plain").params
    script.main(["export", str(tmp_path / "out"), "--workdir", str(imported)])
    chex.assert_trees_all_close(diffusers.load(tmp_path / "out").params, begun_from, atol=1e-7)


def test_training_options_may_change_once_and_the_model_never(imported):
    begun = from_dict(json.loads((imported / "config.json").read_text()))
    chosen = dataclasses.replace(begun, data=Data(source="npz", path="data.npz"), train=Train(batch_size=2, seed=1))
    allowed, refused = changes(begun, chosen)
    assert "data.source: None -> npz" in allowed and "train.seed: 0 -> 1" in allowed and not refused
    assert changes(chosen, dataclasses.replace(chosen, train=Train(batch_size=2)))[1] == ["train.seed: 1 -> 0"]
    other = dataclasses.replace(begun, network=dataclasses.replace(begun.network, norm_eps=0.1))
    assert changes(begun, other)[1] == ["network.norm_eps: 1e-06 -> 0.1"]


def test_a_conditional_model_is_exported_as_unconditional_or_for_one_class(tmp_path):
    """Pipelines have no labels, so neither has the exported network; its output is that of ours, given the label."""
    network = Network(channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), num_groups=4, num_classes=3)
    config = Config(workdir=str(tmp_path / "run"), network=network)
    ours = factory.make_network(config, (8, 8, 1))
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), np.array([5, 900])
    params = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape) / 4, ours.init(jax.random.key(0), x, t))
    with Checkpoints(tmp_path / "run" / "checkpoints", 1) as checkpoints:
        metadata = {"config": dataclasses.asdict(config), "image_shape": [8, 8, 1]}
        checkpoints.save(0, state.state_from_params(params, optax.identity()).parts(), metadata)
    for name, extra, label in (("unconditional", [], 3), ("one", ["--label", "1"], 1)):
        script.main(["export", str(tmp_path / name), "--workdir", str(tmp_path / "run"), *extra])
        theirs = diffusers.load(tmp_path / name)
        assert theirs.network.num_classes is None
        expected = ours.apply(params, x, t, np.full(2, label))
        np.testing.assert_allclose(theirs.network.apply(theirs.params, x, t), expected, atol=1e-5)
        assert np.std(expected) > 0.1
    with pytest.raises(UsageError, match="--label: label: expected one of 4 classes, received 4"):
        script.main(["export", str(tmp_path / "new"), "--workdir", str(tmp_path / "run"), "--label", "4"])
    script.main(["export", str(tmp_path / "model.safetensors"), "--workdir", str(tmp_path / "run")])
    chex.assert_trees_all_equal(weights.load(tmp_path / "model.safetensors", ours, (8, 8, 1)), params)


def test_a_network_other_than_a_unet_is_not_exported(imported, tmp_path, monkeypatch):
    loaded = factory.load(imported)
    other = types.SimpleNamespace(kind="transformer", num_classes=None)
    config = dataclasses.replace(loaded.config, network=other)
    monkeypatch.setattr(factory, "load", lambda *_: loaded._replace(config=config))
    with pytest.raises(UsageError, match=r"^--workdir: expected a UNet, received transformer$"):
        script.main(["export", str(tmp_path / "out"), "--workdir", str(imported)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nowhere"], "FOLDER: expected a folder of diffusers, received nowhere"),
        (
            ["import", "google/ddpm-cifar10-32"],
            "FOLDER: .* by: hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32$",
        ),
        (["import"], "FOLDER: expected a folder of diffusers, received nothing"),
        (["import", str(FIXTURES / "plain"), "--workdir", "full"], "--workdir: expected a new or empty folder"),
        (["import", str(FIXTURES / "plain"), "--wrokdir", "a"], "--wrokdir: expected an option, perhaps --workdir"),
        (["import", str(FIXTURES / "conditional")], "FOLDER: num_class_embeds: expected null in a workdir, received 5"),
        (["import", "full"], r"FOLDER: .*config\.json"),
        (["export", "full", "--workdir", "full"], "FOLDER: expected a new or empty folder"),
        (["export", "new", "--workdir", "full"], "--workdir: expected a folder that train.py has saved checkpoints in"),
        (["exprt"], "command: expected import or export, received exprt"),
        ([], "command: expected import or export, received nothing"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=said) as caught:
        script.main(arguments)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]


def test_a_damaged_model_is_named_with_exit_code_2_and_writes_nothing(tmp_path):
    shutil.copytree(FIXTURES / "plain", tmp_path / "model")
    tensors = files.read(tmp_path / "model" / WEIGHTS)
    tensors["conv_in.wieght"] = tensors.pop("conv_in.weight")
    files.write(tmp_path / "model" / WEIGHTS, tensors)
    before = sorted(tmp_path.rglob("*"))
    result = run("-m", "ddpm_jax.interop", "import", "model", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"ddpm_jax.interop: error: FOLDER: {WEIGHTS}: expected the tensors of the network: ")
    assert "conv_in.weight is missing; conv_in.wieght is not expected" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trained_betas": [0.1, 0.3, 0.2], "num_train_timesteps": 3}, "beta_schedule"),
        ({"sample_size": None}, "sample_size"),
        ({"out_channels": 6}, "out_channels"),
    ],
)
def test_a_model_that_a_workdir_cannot_represent_is_refused(changed, said):
    model = diffusers.load(FIXTURES / "plain")
    if "trained_betas" in changed:
        schedule = jax.tree.map(lambda table: table[:3], model.schedule)
        model = model._replace(schedule=schedule._replace(beta=np.array([0.1, 0.3, 0.2])))
    if "sample_size" in changed:
        model = model._replace(image_size=None)
    if "out_channels" in changed:
        model = model._replace(network=model.network.clone(out_channels=6))
    with pytest.raises(UsageError, match=f"FOLDER: {said}: expected"):
        script.config_of(model, "run")
