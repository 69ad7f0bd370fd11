"""The tree of options: frozen dataclasses whose docstrings are the help texts."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ddpm_jax.config.data import Data, Digits
from ddpm_jax.config.network import Network, UNet
from ddpm_jax.config.paths import LocalPath
from ddpm_jax.config.sampling import Ddpm, Sample


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The forward process, and the prediction parameterization."""

    schedule: Literal[
        "linear", "quadratic", "constant", "warmup10", "warmup50", "jsd", "cosine", "sigmoid",
        "continuous_linear", "continuous_cosine", "flow",
    ] = "linear"  # fmt: skip
    """The first six: Ho et al. 2020. cosine: Nichol & Dhariwal 2021. sigmoid: Jabri et al. 2022. In continuous time, t in
    [0, 1]: continuous_linear, the limit of linear (Song et al. 2020); continuous_cosine (Hoogeboom et al. 2023); flow, the
    straight path alpha = 1 - t, sigma = t (Liu et al. 2022)."""
    num_steps: int = 1000
    """T, the number of timesteps; in continuous time only the scale of beta_start and beta_end."""
    beta_start: float = 1e-4
    """First beta of linear, continuous_linear, quadratic and the warm-up schedules."""
    beta_end: float = 0.02
    """Last beta of these, and the beta of constant."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to zero terminal SNR (Lin et al. 2023); for v, x0 and flow prediction."""
    shift: float = 1.0
    """flow: at time t the path is at shift t / (1 + (shift - 1) t); above 1 for larger images (Esser et al. 2024)."""
    prediction: Literal["eps", "x0", "v", "score", "mean", "flow", "edm"] = "eps"
    """What the network predicts. mean: the mean of q(x_{t-1} | x_t, x0). flow: eps - x0, the velocity of flow matching. edm: a
    mixture of x0 and eps with unit variance at every noise level, from inputs with unit variance (Karras et al. 2022)."""
    sigma_data: float = 0.5
    """edm: standard deviation of the data."""
    variance: Literal["fixed_small", "fixed_large", "learned", "learned_raw"] = "fixed_large"
    """Variance of the reverse steps. fixed_small: beta_tilde, the posterior's. fixed_large: beta. learned: interpolated between
    them in log space (iDDPM), with twice the output channels. learned_raw: the network outputs the log variance."""

    @property
    def is_continuous(self) -> bool:
        """Whether time is continuous, t in [0, 1]."""
        return self.schedule == "flow" or self.schedule.startswith("continuous")


@dataclasses.dataclass(frozen=True)
class Loss:
    """The training loss."""

    kind: Literal["simple", "vlb", "hybrid"] = "simple"
    """simple: L_simple. vlb: the variational bound. hybrid: L_simple, plus the bound for a learned variance (iDDPM)."""
    weighting: Literal["none", "uniform", "min_snr", "p2", "truncated_snr", "edm", "sigmoid"] = "none"
    """simple, hybrid: loss weight per noise level. none: 1 for the error of the prediction. uniform: 1 for the error of eps."""
    distance: Literal["l2", "l1", "huber"] = "l2"
    """simple, hybrid: the error measure."""
    times: Literal["uniform", "stratified", "importance", "log_normal"] = "uniform"
    """Distribution of training timesteps. stratified: evenly over the batch. importance: by past losses (iDDPM). log_normal: a
    log-normal sigma / alpha (Karras et al. 2022); for flow, a logit-normal t (Esser et al. 2024)."""
    times_mean: float = 0.0
    """log_normal: mean of log(sigma / alpha), or of logit(t) for flow. EDM: -1.2."""
    times_std: float = 1.0
    """log_normal: standard deviation. EDM: 1.2."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam, or AdamW if there is weight decay."""

    learning_rate: float = 2e-4
    """Peak learning rate."""
    warmup_steps: int = 5000
    """Steps of linear learning rate warm-up."""
    decay: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    """Learning rate after warm-up. cosine: decays to 0 at --train.num_steps. inverse_sqrt: with 1 / sqrt(step)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay per unit of learning rate, of matrices and convolutions only: not of biases, norms and embeddings
    (Loshchilov & Hutter 2017)."""
    clip_norm: float | None = 1.0
    """Gradient clipping: maximum global norm; None for no clipping."""


@dataclasses.dataclass(frozen=True)
class Ema:
    """Exponential moving averages (EMA) of the parameters; samples use the first, in the order of these fields."""

    decay: float | None = 0.9999
    """EMA decay; None for no such average."""
    half_life: tuple[float, ...] = ()
    """EMA half-life in images; one more average for each."""
    warmup: bool = False
    """EMA warm-up: at step n, decays are at most (1 + n) / (10 + n), so that short runs forget their initialization."""
    power: tuple[float, ...] = ()
    """Relative width of a power-function EMA, such as 0.05 0.1 (Karras et al. 2024, arXiv 2312.02696); one more average for
    each. From snapshots of two or more, `sample.py --ema WIDTH` reconstructs the EMA of any width afterwards."""
    snapshot_every: int = 1000
    """power: steps between EMA snapshots."""
    snapshots: int = 32
    """power: maximum number of snapshots kept; when exceeded, every second one is deleted."""


@dataclasses.dataclass(frozen=True)
class Train:
    """The training loop."""

    num_steps: int = 800_000
    """Number of training steps."""
    batch_size: int = 128
    """Batch size, over all devices."""
    accumulate: int = 1
    """Gradient accumulation: number of microbatches per batch, to reduce memory."""
    steps_per_call: int | None = None
    """Training steps per dispatch (at most two seconds' worth). Must divide log_every, sample_every and checkpoint.every.
    1 on CPU and up to 10 on accelerators by default."""
    label_dropout: float = 0.1
    """Label dropout probability, for classifier-free guidance."""
    seed: int = 0
    """Random seed of the run."""
    log_every: int = 100
    """Steps between rows of metrics."""
    sample_every: int = 10_000
    """Steps between sample grids."""
    remat: bool = False
    """Gradient checkpointing: recompute block activations in the backward pass; less memory, more time."""
    tensorboard: bool = False
    """Also write TensorBoard events; needs pip install -e ".[tensorboard]"."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases; needs pip install -e ".[wandb]". WANDB_MODE=offline logs to the workdir."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Checkpoints."""

    every: int = 5000
    """Steps between checkpoints."""
    keep: int = 2
    """Number of latest checkpoints kept."""
    best: int = 0
    """Also keep this many with the smallest mean training loss since the previous one; see `sample.py --checkpoint best`."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices and processes; see docs/scale.md."""

    state: Literal["replicated", "sharded"] = "replicated"
    """Parameters, optimizer state and EMA: replicated on every device, or each large array sharded over all of them."""
    axes: tuple[tuple[str, int | None], ...] = ()
    """sharded: pairs of a regular expression and an axis: arrays with matching names, such as params/.../conv1/kernel, are
    sharded along that axis, or replicated for None. By default the largest axis that the devices divide."""
    cluster: bool = False
    """Join the processes started by SLURM, Open MPI, Kubernetes or a TPU pod."""
    coordinator: str | None = None
    """Address and port of process 0, such as 10.0.0.1:1234, to join processes without a cluster manager."""
    num_processes: int | None = None
    """--devices.coordinator: number of processes."""
    process_id: int | None = None
    """--devices.coordinator: index of this process, from 0."""
    timeout: int = 300
    """Seconds to wait for the other processes at the start."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    workdir: LocalPath
    """Folder of the run; the same command again resumes it."""
    data: Data = dataclasses.field(default_factory=Digits)
    network: Network = dataclasses.field(default_factory=UNet)
    diffusion: Diffusion = Diffusion()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    train: Train = Train()
    sample: Sample = dataclasses.field(default_factory=Ddpm)
    checkpoint: Checkpoint = Checkpoint()
    devices: Devices = Devices()
