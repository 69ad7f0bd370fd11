"""Commands and options that the documents name, and those of version 0.2: all are still read, each as its kind."""

import dataclasses
import pathlib
import re
import shlex

import pytest

import evaluate
import sample
from ddpm_jax import config, factory
from ddpm_jax.config import Config, Data, Digits, Network, Sample, kinds
from ddpm_jax.config.cli import options

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.py")),
]
FIGURES = {"film", "shared", "interpolate", "slerp", "coding"}
OTHERS = {"help", "config", "label", "weights", "peer", "variants", "requeue"} | FIGURES
"""Options that are not fields of a config: of `ddpm_jax.interop`, the paper's figures, the benchmarks, and SLURM."""

VERSION_0_2 = {
    "train": {
        "data.source digits": "split random_flip", "data.source npz": "path", "data.source folder": "path image_size",
        "data.source tfds": "name split data_dir image_size",
        "network.kind unet": "channels multipliers num_blocks attention_resolutions num_heads num_groups dropout num_classes "
        "dtype attention_levels head_dim middle norm_eps freq_shift cos_first time_scale_shift symmetric_padding "
        "residual_downsampling residual_upsampling",
        "sample.sampler ddpm": "variance steps grid label guidance clip num seed", "sample.sampler ddim": "eta",
        "sample.sampler dpm_solver_pp": "order", "sample.sampler dpm_solver_pp_sde": "order", "sample.sampler unipc": "order",
        "sample.sampler deis": "order", "sample.sampler euler": "steps", "sample.sampler euler_ancestral": "steps",
        "sample.sampler heun": "steps", "sample.sampler dpm_solver_pp_2s": "steps", "sample.sampler pndm": "steps",
    },
    "others": "workdir diffusion.schedule diffusion.num_steps diffusion.beta_start diffusion.beta_end "
    "diffusion.zero_terminal_snr diffusion.prediction diffusion.variance loss.kind loss.weighting loss.distance loss.times "
    "optimizer.learning_rate optimizer.warmup_steps optimizer.decay optimizer.clip_norm ema.decay ema.half_life ema.warmup "
    "ema.power ema.snapshot_every ema.snapshots train.num_steps train.batch_size train.accumulate train.steps_per_call "
    "train.label_dropout train.seed train.log_every train.sample_every train.remat train.tensorboard checkpoint.every "
    "checkpoint.keep checkpoint.best devices.state devices.axes devices.cluster devices.coordinator devices.num_processes "
    "devices.process_id devices.timeout",
    "sample": "workdir num first out png seed batch_size checkpoint ema sampler steps grid label guidance init_image strength "
    "inpaint",
    "evaluate": "workdir metric checkpoint ema split num batch_size variance seed ode_steps exact",
}  # fmt: skip


@pytest.fixture
def saved(monkeypatch):
    """Scripts find a run on digits, with ten classes, wherever they look."""
    run = factory.SavedRun(Config(workdir="runs/digits", network=Network(num_classes=10)), 1, (8, 8, 1))
    monkeypatch.setattr(factory, "find_named", lambda argv, workdir: run)


def read(words):
    """The options of a command, read by its script."""
    script, *argv = words
    match script:
        case "train.py":
            return config.read_config(argv, ROOT / "configs", "")
        case "sample.py":
            return sample.read_options(argv)
        case "evaluate.py":
            return evaluate.read_options(argv)


def commands():
    """The scripts' commands in the documents, continued lines joined, shells' variables as they are."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for found in re.findall(r"python ((?:train|sample|evaluate)\.py[^`\n]*)", text):
            command = found.split(" #")[0].split(" && ")[0].split(" & ")[0].rstrip("&:' ")
            if "..." not in command:
                yield pytest.param(command, id=f"{page.name}: {command[:60]}")


@pytest.mark.parametrize("command", list(commands()))
def test_a_command_of_the_documents_is_read(saved, command):
    words = [word for word in shlex.split(command) if word != "|"]
    if "--help" not in words and not any(word.lstrip("-") in FIGURES for word in words):
        assert read(words) is not None


def known_options():
    known = set(options(Config(workdir="")))
    for choice in (Data, Network, Sample):
        for kind in kinds.kinds(choice).values():
            known |= {f"{choice.__name__.lower()}.{field}" for field in kinds.defaults(kind)} | set(kinds.defaults(kind))
    return known | {field.name for script in (sample, evaluate) for field in dataclasses.fields(script.Options)} | OTHERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_document_names_exists(page):
    text = re.sub(r"```bash\n.*?```", "", page.read_text(), flags=re.DOTALL)  # commands are read above, or are benchmarks'
    inline = [span for span in re.findall(r"`([^`]*)`", text) if "benchmarks/" not in span]
    named = {name.replace("-", "_") for span in inline for name in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", span)}
    assert named <= known_options()


def test_the_flags_of_version_0_2_are_accepted(saved):
    def check(tree, flags, flat=""):
        assert set(flags.split()) <= set(options(tree, flat)), flags

    for choice, fields in VERSION_0_2["train"].items():
        option, name = choice.split()
        tree = read(["train.py", "--config", "digits", f"--{option}", name])
        check(tree, " ".join(f"{option.split('.')[0]}.{field}" for field in fields.split()))
    check(read(["train.py", "--config", "digits"]), VERSION_0_2["others"])
    check(read(["sample.py"]), VERSION_0_2["sample"], "sample")
    check(read(["sample.py", "--sampler", "ddim", "--eta", "0.5"]), "eta", "sample")
    check(read(["sample.py", "--sampler", "unipc", "--order", "3"]), "order", "sample")
    check(read(["sample.py", "--sampler", "ddpm", "--variance", "fixed_small"]), "variance", "sample")
    check(read(["evaluate.py"]), VERSION_0_2["evaluate"], "data")
    assert read(["evaluate.py"]).data == Digits(split="test"), "held-out images by default"
    assert read(["evaluate.py", "--source", "npz", "--path", "x.npz"]).data.path == "x.npz"


def test_a_config_file_of_version_0_2_is_read(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ddpm_jax.config import Config, Data, Ema, Network, Sample, Train\n"
        "def get_config():\n"
        "    return Config(workdir='runs/mine', data=Data(source='npz', path='a.npz', random_flip=True),\n"
        "                  network=Network(channels=32, multipliers=(1, 2), num_classes=4), ema=Ema(warmup=True),\n"
        "                  train=Train(num_steps=7), sample=Sample(sampler='dpm_solver_pp', order=3, steps=9, guidance=2.0))\n"
    )
    found = read(["train.py", "--config", str(tmp_path / "mine.py"), "--sample.grid", "karras", "--data.path", "b.npz"])
    assert (found.data, found.network.channels) == (config.Npz(path="b.npz", random_flip=True), 32)
    assert found.sample == config.DpmSolverPp(order=3, steps=9, guidance=2.0, grid="karras")
