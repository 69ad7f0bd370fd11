"""sample.py in this process, except for the network: its options, and what it writes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import sample
from ddpm_jax import factory
from ddpm_jax.config import Config, Ddim, Diffusion, Digits, Ema, UNet
from ddpm_jax.config.cli import UsageError
from ddpm_jax.devices import compiler
from ddpm_jax.objectives.diffusion import init_params
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.runs.workdir import checkpoint_metadata

CLASSES = ("cats", "dogs", "geese")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "animals"
    network = UNet(channels=4, multipliers=(1,), num_blocks=1, num_groups=2, attention_resolutions=(), num_classes=3)
    config = Config(str(folder), Digits(), network, Diffusion(num_steps=20), ema=Ema(decay=0.9), sample=Ddim(steps=2))
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), factory.make_network(config, (8, 8, 1)), (8, 8, 1)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), shapes)
    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        for step in (3, 5):
            parts = {"params": params, "ema_decay": jax.tree.map(lambda a, step=step: a * step / 5, params)}
            checkpoints.save(step, parts, checkpoint_metadata(config, (8, 8, 1), CLASSES))
    return folder


@pytest.fixture
def draw(workdir, tmp_path, monkeypatch):
    """Runs sample.py, with pixels of 16 times the label plus the number as the samples; returns `image` and `index`."""

    def make_generator(config, network, schedule, image_shape, *others):
        labels = factory.make_labels(config.sample, config.network)
        pixel = jax.jit(lambda key, params, ids: (16 * labels(ids) + ids)[:, None, None, None].astype(np.uint8))
        return lambda *args: np.broadcast_to(pixel(*args), (len(args[-1]), *image_shape))

    monkeypatch.setattr(factory, "make_generator", make_generator)
    monkeypatch.setattr(compiler, "compiled", lambda generate, name, say, doing: generate)
    monkeypatch.setattr(compiler, "divide_cores", lambda batch_size: None)  # it would come too late

    def run(out, *args):
        sample.main(["--workdir", str(workdir), "--out", str(tmp_path / out), *map(str, args)])
        with np.load(tmp_path / out / "samples.npz") as arrays:
            return arrays["image"], arrays["index"].tolist()

    return run


def test_a_class_is_asked_for_by_name_or_index(draw, workdir):
    assert factory.load(workdir).classes == factory.find(workdir).classes == CLASSES
    for out, labels in {"names": ("geese", "cats"), "indices": (2, 0)}.items():
        image, _ = draw(out, "--num", 4, "--batch_size", 4, "--label", *labels)
        assert image[:, 0, 0, 0].tolist() == [32, 1, 34, 3]
    with pytest.raises(UsageError, match=r"--sample.label: expected one of cats, dogs, geese, received goose, perhaps geese"):
        draw("none", "--label", "goose")


def test_samples_of_one_run_share_a_folder_in_parts_of_any_size(draw, tmp_path):
    whole, index = draw("whole", "--num", 9, "--batch_size", 3)
    assert index == list(range(9))
    assert draw("parts", "--num", 3, "--first", 5, "--batch_size", 3)[1] == [5, 6, 7]
    draw("parts", "--num", 5, "--batch_size", 2)
    again, index = draw("parts", "--num", 9, "--batch_size", 3)
    assert index == list(range(9))
    np.testing.assert_array_equal(again, whole)
    before = (tmp_path / "parts" / "samples.npz").read_bytes()
    with pytest.raises(
        UsageError, match=r"--out: expected an empty folder or .*/parts has steps 2, now 3; choose another --out"
    ):
        draw("parts", "--num", 9, "--steps", 3)
    with pytest.raises(
        UsageError, match=r"--out: .* has checkpoint 5, now 3; weights \w{16}, now \w{16}; choose another --out"
    ):
        draw("parts", "--num", 9, "--checkpoint", 3)
    assert (tmp_path / "parts" / "samples.npz").read_bytes() == before
    settings = json.loads((tmp_path / "parts" / "settings.json").read_text())
    assert (settings["sampler"], settings["steps"], settings["checkpoint"], settings["ema"]) == ("ddim", 2, 5, "ema_decay")
    assert "num" not in settings and "batch_size" not in settings and settings["workdir"].endswith("animals")


@pytest.mark.parametrize(
    "args, said",
    [
        (["--ema", "decy"], "^--ema: ema: expected decay, raw or a width, received decy$"),
        (["--ema", "0.1"], r"^--ema: ema: expected a run with --ema\.power for a width, received 0\.1$"),
        (["--checkpoint", "4"], r"^--checkpoint: checkpoint: expected best or one of \[3, 5\] in "),
        (["--weaker", "{}", "--weaker_ema", "decy"], "^--weaker_ema: ema: expected decay, raw or a width, received decy$"),
        (["--weaker", "{}", "--weaker_checkpoint", "4"], r"^--weaker_checkpoint: checkpoint: expected best or one of \[3, 5\]"),
        (["--weaker", "nowhere"], "^--weaker: expected a folder that train.py has saved checkpoints in, received nowhere$"),
    ],
)
def test_a_mistake_is_blamed_on_its_own_option(draw, workdir, tmp_path, args, said):
    with pytest.raises(UsageError, match=said):
        draw("none", *(arg.format(workdir) for arg in args))
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_blamed_on_the_workdir_unless_it_is_asked_for(workdir, tmp_path):
    damaged = tmp_path / "run"
    (damaged / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"^--workdir: expected an intact checkpoint in "):
        factory.load_named(str(damaged), None, None)
    with pytest.raises(UsageError, match=r"^--checkpoint: checkpoint: expected an intact one, received "):
        factory.load_named(str(damaged), None, 7)
    with pytest.raises(factory.CheckpointError):
        factory.load(damaged, checkpoint=7)
    with pytest.raises(factory.AverageError):
        factory.load(workdir, "decy")


def test_a_config_may_name_the_classes_of_its_samples(workdir):
    run = factory.load(workdir)
    named = dataclasses.replace(run.config, sample=dataclasses.replace(run.config.sample, label=("dogs",)))
    assert factory.with_label_indices(named, run.classes).sample.label == (1,)
