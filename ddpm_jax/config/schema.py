"""What can be set: one tree of frozen dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Literal

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

    schedule: Literal[
        "linear", "quadratic", "constant", "warmup10", "warmup50", "jsd", "cosine", "sigmoid",
        "continuous_linear", "continuous_cosine",
    ] = "linear"  # fmt: skip
    """The first six: Ho et al. 2020. cosine: Nichol & Dhariwal 2021. sigmoid: Jabri et al. 2022. In continuous time, t in
    [0, 1]: continuous_linear, the limit of linear (Song et al. 2020); continuous_cosine (Hoogeboom et al. 2023)."""
    num_steps: int = 1000
    """T, the number of noise levels; in continuous time only the scale of beta_start and beta_end."""
    beta_start: float = 1e-4
    """linear, continuous_linear, quadratic, warm-up: the first beta."""
    beta_end: float = 0.02
    """linear, continuous_linear, quadratic, warm-up, constant: the last beta."""
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
    """Sampling steps; all of the schedule's by default, 100 in continuous time."""
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
