"""What can be set: one tree of frozen dataclasses."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ddpm_jax.cli import UsageError, options

Method = Literal[
    "ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpm_solver_pp", "dpm_solver_pp_sde", "dpm_solver_pp_2s", "unipc",
    "deis", "pndm",
]  # fmt: skip
Grid = Literal["leading", "linspace", "trailing", "quadratic", "log_snr", "karras", "exponential"]


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
    num_classes: int | None = None
    """Classes of the data that it is told of; None: it draws whatever the data are."""
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
    """Moving averages of the parameters; samples are drawn with the first, in the order of these fields."""

    decay: float | None = 0.9999
    """Share of the average that stays at each step; None for no such average."""
    half_life: tuple[float, ...] = ()
    """One more average for each: images after which what it holds weighs half."""
    warmup: bool = False
    """Let decays grow as (1 + n) / (10 + n), so that short runs forget their start."""
    power: tuple[float, ...] = ()
    """One more for each, its width a share of the run so far, such as 0.05 0.1 (Karras et al. 2024, arXiv 2312.02696). From
    snapshots of two or more, sample.py --ema makes an average of any width afterwards."""
    snapshot_every: int = 1000
    """power: steps between snapshots."""
    snapshots: int = 32
    """power: how many are kept; one more, and every second one goes."""


@dataclasses.dataclass(frozen=True)
class Train:
    """The run."""

    num_steps: int = 800_000
    """Training steps in all."""
    batch_size: int = 128
    """Images a step, over all devices."""
    accumulate: int = 1
    """Parts of a batch that go through the network one after another, to need less memory; the result is the same."""
    steps_per_call: int | None = None
    """Steps that the devices take at one call by the host, fewer if that takes over two seconds; divides --train.log_every and
    all others that say what is done every so many steps. By default 1 on CPU, where more are slow, elsewhere up to 10."""
    label_dropout: float = 0.1
    """Share of images whose class is withheld, so that samples can be guided."""
    seed: int = 0
    """Decides everything random."""
    log_every: int = 100
    """Steps between lines of metrics."""
    sample_every: int = 10_000
    """Steps between grids of samples."""
    remat: bool = False
    """Compute what a block of the network keeps for the gradient again when it is needed: less memory, more time."""
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
    grid: Grid = "leading"
    """Which noise levels are visited. log_snr, karras, exponential: at fractional times."""
    label: tuple[int, ...] | None = None
    """Classes to draw, in turn; all by default."""
    guidance: float = 1.0
    """0: whatever the class. 1: of the class. Above: more typical of it, at two network calls a step."""
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
    best: int = 0
    """How many with the smallest loss since the save before are kept besides; `sample.py --checkpoint best` takes it."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """What the run is spread over, as docs/scale.md explains."""

    state: Literal["replicated", "sharded"] = "replicated"
    """Parameters, optimizer and averages: a copy on every device, or of each large array a share."""
    axes: tuple[tuple[str, int | None], ...] = ()
    """sharded: a regular expression and an axis, as often as you like: arrays of such names, like params/.../conv1/kernel,
    are divided along it, or not at all for None. By default the largest axis is that the devices divide."""
    cluster: bool = False
    """Join the processes that SLURM, Open MPI, Kubernetes or a TPU pod has started."""
    coordinator: str | None = None
    """Or join these: address and port of process 0, such as 10.0.0.1:1234."""
    num_processes: int | None = None
    """--devices.coordinator: how many there are."""
    process_id: int | None = None
    """--devices.coordinator: which this one is, from 0."""
    timeout: int = 300
    """Seconds to wait for the others at the start."""


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
    devices: Devices = Devices()


MAY_CHANGE = (
    "workdir", "data.path", "data.data_dir", "optimizer.learning_rate", "train.num_steps", "train.accumulate",
    "train.steps_per_call", "train.log_every", "train.sample_every", "train.remat", "train.tensorboard", "sample.",
    "checkpoint.", "devices.", "ema.snapshot",
)  # fmt: skip
"""Fields that a run may resume with other values of; the others decide what it is."""

IMPORTED = ("network.", "diffusion.")
"""Fields that weights from elsewhere decide; what they are trained on and how is open until they are."""


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


def everies(config: Config) -> dict[str, int]:
    """The fields that say what is done every so many steps, with their values."""
    names = ["train.log_every", "train.sample_every", "checkpoint.every", *(["ema.snapshot_every"] if config.ema.power else [])]
    return {name: options(config)[name] for name in names}


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
        "train.accumulate": config.train.accumulate,
        "train.steps_per_call": 1 if config.train.steps_per_call is None else config.train.steps_per_call,
        "train.log_every": config.train.log_every,
        "train.sample_every": config.train.sample_every,
        "sample.num": config.sample.num,
        "network.num_classes": 1 if config.network.num_classes is None else config.network.num_classes,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "ema.snapshot_every": config.ema.snapshot_every,
        "ema.snapshots": config.ema.snapshots,
        "devices.timeout": config.devices.timeout,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UsageError(f"--{name}: expected a positive number, received {value}")
    for name, every in everies(config).items():
        if config.train.steps_per_call is not None and every % config.train.steps_per_call:
            raise UsageError(
                f"--train.steps_per_call: expected a divisor of --{name} {every}, received {config.train.steps_per_call}"
            )
    if not math.isfinite(config.optimizer.learning_rate):
        raise UsageError(f"--optimizer.learning_rate: expected a finite number, received {config.optimizer.learning_rate}")
    if config.checkpoint.best < 0:
        raise UsageError(f"--checkpoint.best: expected 0 or more, received {config.checkpoint.best}")
    if config.optimizer.warmup_steps < 0:
        raise UsageError(f"--optimizer.warmup_steps: expected 0 or more, received {config.optimizer.warmup_steps}")
    if config.data.image_size is not None and config.data.image_size < 1:
        raise UsageError(f"--data.image_size: expected a positive number, received {config.data.image_size}")
    for name, seed in {"train.seed": config.train.seed, "sample.seed": config.sample.seed}.items():
        check_seed(f"--{name}", seed)
    shares = {
        "network.dropout": config.network.dropout,
        "train.label_dropout": config.train.label_dropout,
        "diffusion.beta_start": config.diffusion.beta_start,
        "diffusion.beta_end": config.diffusion.beta_end,
        "ema.decay": 0.0 if config.ema.decay is None else config.ema.decay,
    }
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UsageError(f"--{name}: expected 0 or more and below 1, received {share}")
    if config.devices.axes and config.devices.state != "sharded":
        raise UsageError(f"--devices.axes: expected with --devices.state sharded, received with {config.devices.state}")
    if not config.network.multipliers or min(config.network.multipliers) < 1:
        raise UsageError(f"--network.multipliers: expected positive integers, received {config.network.multipliers}")
