"""What can be set, and how it is read from a file, the command line, and a workdir.

A config file defines `get_config()`, which returns one frozen Config; `--train.num_steps 100` overrides a field of it.
Only this file, factory.py and the scripts know Config; everything else takes plain arguments.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from ddpm_jax.cli import UsageError, blame, options, parse

T = TypeVar("T")

Method = Literal[
    "ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpm_solver_pp", "dpm_solver_pp_sde", "dpm_solver_pp_2s", "unipc",
    "deis", "pndm",
]  # fmt: skip
Spacing = Literal["leading", "linspace", "trailing", "quadratic", "log_snr", "karras", "exponential"]


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the images come from."""

    source: Literal["digits", "npz", "folder", "tfds"] | None = "digits"
    """digits: scikit-learn's, bundled. npz, folder: your own, at --data.path. tfds: TensorFlow Datasets. None: not yet
    said, for weights from elsewhere."""
    path: str | None = None
    """npz: a file with `image`, uint8 [N, H, W, C]. folder: PNG, JPEG and WebP files, at any depth."""
    name: str | None = None
    """tfds: the name of the data set, such as cifar10."""
    split: str = "train"
    """digits, tfds: the split; digits have train, test (every sixth) and all."""
    data_dir: str | None = None
    """tfds: where data sets are prepared; by default ~/tensorflow_datasets."""
    image_size: int | None = None
    """folder, tfds: crop to a square and resize to this size."""
    random_flip: bool = False
    """Mirror images left to right, each with probability 1/2."""


@dataclasses.dataclass(frozen=True)
class Network:
    """The UNet."""

    channels: int = 128
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level, as multiples; the image is halved between levels."""
    num_blocks: int = 2
    """Residual blocks a level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes at which attention follows every block."""
    num_heads: int = 1
    """Attention heads."""
    num_groups: int = 32
    """Groups of the norms."""
    dropout: float = 0.1
    """Dropout probability."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters, norms and softmax are float32."""
    attention_levels: tuple[int, ...] | None = None
    """In place of attention_resolutions: the levels with attention, 0 the finest."""
    head_dim: int | None = None
    """In place of num_heads: channels of an attention head."""
    middle: Literal["attention", "attention_without_norm", "blocks", "none"] = "attention"
    """What lies at the lowest resolution."""
    norm_eps: float = 1e-6
    """Added to the variance by the norms."""
    freq_shift: float = 1.0
    """Of the time embedding's frequencies."""
    cos_first: bool = False
    """Whether its cosines come first."""
    time_scale_shift: bool = False
    """Whether the time scales and shifts features."""
    symmetric_padding: bool = False
    """Whether downsampling pads both sides."""
    residual_downsampling: tuple[int, ...] = ()
    """Levels left downwards by a residual block."""
    residual_upsampling: tuple[int, ...] = ()
    """Levels left upwards by one."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The forward process, and what the network predicts of it."""

    schedule: Literal["linear", "quadratic", "constant", "warmup10", "warmup50", "jsd", "cosine", "sigmoid"] = "linear"
    """The first six: Ho et al. 2020. cosine: Nichol & Dhariwal 2021. sigmoid: Jabri et al. 2022."""
    num_steps: int = 1000
    """T, the number of noise levels."""
    beta_start: float = 1e-4
    """linear, quadratic, warm-up: the first beta."""
    beta_end: float = 0.02
    """linear, quadratic, warm-up, constant: the last."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last level is noise alone; for v and x0."""
    prediction: Literal["eps", "x0", "v", "score", "mean"] = "eps"
    """What the network predicts; mean: of q(x_{t-1} | x_t, x0)."""
    variance: Literal["fixed_small", "fixed_large", "learned", "learned_raw"] = "fixed_large"
    """Of the model's steps. fixed_small: the posterior's. fixed_large: beta. learned: between them, in log space, by twice
    the output channels. learned_raw: the log variance itself."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """What training minimises."""

    kind: Literal["simple", "vlb", "hybrid"] = "simple"
    """simple: the error of the prediction. vlb: the variational bound. hybrid: simple, and vlb for a learned variance."""
    weighting: Literal["none", "uniform", "min_snr", "p2", "truncated_snr", "edm", "sigmoid"] = "none"
    """simple, hybrid: weight of each noise level. none: 1 for what the network predicts. uniform: 1 for the error of eps."""
    distance: Literal["l2", "l1", "huber"] = "l2"
    """simple, hybrid: the error."""
    times: Literal["uniform", "stratified", "importance"] = "uniform"
    """How t is drawn. stratified: evenly over the batch. importance: where the loss has been large."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam."""

    learning_rate: float = 2e-4
    """After warm-up."""
    warmup_steps: int = 5000
    """Steps over which the learning rate grows linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """What the learning rate does then; cosine reaches 0 at --train.num_steps."""
    clip_norm: float = 1.0
    """The gradient's largest global norm."""


@dataclasses.dataclass(frozen=True)
class Ema:
    """The moving average of the parameters, which samples are drawn with."""

    decay: float = 0.9999
    """Share of the average that stays at each step."""
    warmup: bool = False
    """Let the decay grow as (1 + n) / (10 + n), so that short runs forget their start."""


@dataclasses.dataclass(frozen=True)
class Train:
    """The run."""

    num_steps: int = 800_000
    """Training steps in all."""
    batch_size: int = 128
    """Images a step, over all devices."""
    seed: int = 0
    """Decides everything random."""
    log_every: int = 100
    """Steps between lines of metrics."""
    sample_every: int = 10_000
    """Steps between grids of samples."""
    tensorboard: bool = False
    """Also write events for TensorBoard; needs pip install "ddpm_jax[tensorboard]"."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """How samples are drawn, in training and by sample.py."""

    sampler: Method = "ddpm"
    """ddpm: ancestral. ddim: deterministic at --sample.eta 0. The others: docs/samplers.md."""
    variance: Literal["fixed_small", "fixed_large", "learned"] | None = None
    """ddpm: the variance of its steps; the model's own by default."""
    eta: float = 0.0
    """ddim: the share of noise that is drawn anew, 0 to 1."""
    order: int = 2
    """dpm_solver_pp, dpm_solver_pp_sde, unipc, deis: the order."""
    steps: int | None = None
    """Steps; all of the schedule's by default."""
    spacing: Spacing = "leading"
    """Which noise levels are visited. log_snr, karras, exponential: at fractional times."""
    clip: bool = True
    """Clip the estimated image to [-1, 1] at every step."""
    num: int = 64
    """Images in the grid that training draws."""
    seed: int = 0
    """Of that grid."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is saved."""

    every: int = 5000
    """Steps between checkpoints."""
    keep: int = 2
    """How many of the latest are kept."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    workdir: str
    """Where the run lives; the same command again goes on from there."""
    data: Data = Data()
    network: Network = Network()
    diffusion: Diffusion = Diffusion()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    train: Train = Train()
    sample: Sample = Sample()
    checkpoint: Checkpoint = Checkpoint()


MAY_CHANGE = (
    "workdir", "data.path", "data.data_dir", "optimizer.learning_rate", "train.num_steps", "train.log_every",
    "train.sample_every", "train.tensorboard", "sample.", "checkpoint.",
)  # fmt: skip
"""Fields that a run may resume with other values of; the others decide what it is."""

IMPORTED = ("network.", "diffusion.")
"""Fields that weights from elsewhere decide; what they are trained on and how is open until they are."""


def read_config(argv: Sequence[str], configs: pathlib.Path, default: str, description: str) -> Config:
    """Reads `--config NAME_OR_FILE`, then the other options as overrides of what the file says; also a workdir's config.json.

    Args:
        argv: The command line, without the program's name.
        configs: The folder in which `--config NAME` looks for NAME.py.
        default: The name where no `--config` is given.
        description: Begins the help text.

    Returns:
        The Config.

    Raises:
        UsageError: an unknown config or option, or a value of the wrong type.
        SystemExit: after --help.
    """
    name, rest = _take_option(argv, "--config", default)
    files = [
        file for file in (pathlib.Path(name), configs / f"{name}.py") if file.is_file() and file.suffix in (".py", ".json")
    ]
    if not files:
        known = sorted(file.stem for file in configs.glob("*.py"))
        raise UsageError(f"--config: expected a file.py or one of {', '.join(known)}, received {name}")
    if files[0].suffix == ".json":
        with blame("--config"):
            return parse(from_dict(json.loads(files[0].read_text())), rest, description)
    spec = importlib.util.spec_from_file_location(files[0].stem, files[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever somebody else's code may raise
        raise UsageError(f"--config: expected get_config() in {files[0]}, received {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UsageError(f"--config: expected get_config() in {files[0]} to return a Config, received {type(config).__name__}")
    about = f"{description}\n\n--config {name}: {(module.__doc__ or '').strip()}"
    return parse(config, rest, about)


def _take_option(argv: Sequence[str], option: str, default: str) -> tuple[str, list[str]]:
    """The value of the last `option VALUE` or `option=VALUE`, and what else there is."""
    rest, value, words = [], default, list(argv)
    while words:
        word = words.pop(0)
        if word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
        elif word != option:
            rest.append(word)
        elif words:
            value = words.pop(0)
        else:
            raise UsageError(f"{option}: expected a value")
    return value, rest


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """What differs between the config of a run and that to resume it with.

    Returns:
        Differences that are allowed (MAY_CHANGE) and those that are not, each as "train.num_steps: 100 -> 200".
    """
    allowed: list[str] = []
    refused: list[str] = []
    now = options(new)
    for name, before in options(old).items():
        if before != now[name]:
            may = not name.startswith(IMPORTED) if old.data.source is None else name.startswith(MAY_CHANGE)
            (allowed if may else refused).append(f"{name}: {before} -> {now[name]}")
    return allowed, refused


def check_seed(option: str, seed: int) -> None:
    """Raises UsageError for a seed that JAX cannot take."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"{option}: expected 0 to 4294967295, received {seed}")


def check(config: Config) -> None:
    """Raises UsageError for numbers that are out of range whatever else is chosen."""
    positive = {
        "network.channels": config.network.channels,
        "network.num_blocks": config.network.num_blocks,
        "network.num_groups": config.network.num_groups,
        "network.num_heads": config.network.num_heads,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.clip_norm": config.optimizer.clip_norm,
        "train.num_steps": config.train.num_steps,
        "train.batch_size": config.train.batch_size,
        "train.log_every": config.train.log_every,
        "train.sample_every": config.train.sample_every,
        "sample.num": config.sample.num,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UsageError(f"--{name}: expected a positive number, received {value}")
    if not math.isfinite(config.optimizer.learning_rate):
        raise UsageError(f"--optimizer.learning_rate: expected a finite number, received {config.optimizer.learning_rate}")
    if config.optimizer.warmup_steps < 0:
        raise UsageError(f"--optimizer.warmup_steps: expected 0 or more, received {config.optimizer.warmup_steps}")
    if config.data.image_size is not None and config.data.image_size < 1:
        raise UsageError(f"--data.image_size: expected a positive number, received {config.data.image_size}")
    for name, seed in {"train.seed": config.train.seed, "sample.seed": config.sample.seed}.items():
        check_seed(f"--{name}", seed)
    shares = {
        "network.dropout": config.network.dropout,
        "diffusion.beta_start": config.diffusion.beta_start,
        "diffusion.beta_end": config.diffusion.beta_end,
        "ema.decay": config.ema.decay,
    }
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UsageError(f"--{name}: expected 0 or more and below 1, received {share}")
    if not config.network.multipliers or min(config.network.multipliers) < 1:
        raise UsageError(f"--network.multipliers: expected positive integers, received {config.network.multipliers}")


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`, also after a round trip through JSON; missing fields take their defaults.

    Raises:
        ValueError: a field that this version does not know.
    """
    return _from_dict(Config(workdir=""), values)


def _from_dict(default: T, values: Any) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"config: expected fields by name, received {values!r}")
    known = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}  # type: ignore[arg-type]
    if unknown := set(values) - set(known):
        raise ValueError(f"config: expected only fields of this version, received {', '.join(sorted(unknown))}")
    read = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(known[name]):
            value = _from_dict(known[name], value)
        read[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(default, **read)  # type: ignore[type-var]
