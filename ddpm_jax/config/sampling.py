"""How samples are generated: one dataclass per sampler."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ddpm_jax.config.kinds import Choice

Grid = Literal["leading", "linspace", "trailing", "quadratic", "log_snr", "karras", "exponential"]
Variance = Literal["fixed_small", "fixed_large", "learned"]


@dataclasses.dataclass(frozen=True)
class Sample(metaclass=Choice):
    """How samples are generated, in training and by sample.py."""

    sampler: str
    """ddpm: ancestral sampling. ddim: deterministic at eta 0. euler, euler_ancestral, heun, dpm_solver_pp, dpm_solver_pp_sde,
    dpm_solver_pp_2s, unipc, deis, pndm, analytic_dpm, langevin, restart: see docs/samplers.md. Each has its own options; add
    `--help` after its name to list them."""
    steps: int | None = None
    """Sampling steps; all steps of the schedule by default, 100 in continuous time."""
    grid: Grid = "leading"
    """Timestep grid. log_snr, karras and exponential visit non-integer timesteps."""
    rho: float | None = None
    """Exponent of the grids karras (7 by default) and exponential (2 by default)."""
    sigma_range: tuple[float, float] | None = None
    """Smallest and largest sigma / alpha of the grids log_snr, karras and exponential; by default the schedule's."""
    label: tuple[str | int, ...] | None = None
    """Classes to sample, in turn: names, or indices if no class has that name; all by default."""
    guidance: float = 1.0
    """Classifier-free guidance scale. 0: unconditional; 1: conditional; >1: guided (two network evaluations per step)."""
    guidance_interval: tuple[float, float] | None = None
    """Range of log-SNR in which guidance is on; everywhere by default."""
    guidance_rescale: float = 0.0
    """How far guidance is rescaled to the conditional standard deviation, 0 to 1 (Lin et al. 2023)."""
    clip: bool = True
    """Clip the denoiser's estimate of x0 to [-1, 1] at every step."""
    dynamic_threshold: float | None = None
    """Dynamic thresholding instead of clipping: the quantile of |x0|, such as 0.995 (Saharia et al. 2022)."""
    num: int = 64
    """Number of samples."""
    seed: int = 0
    """Random seed of the samples."""


@dataclasses.dataclass(frozen=True)
class Ddpm(Sample):
    """Ancestral sampling (Ho et al. 2020)."""

    sampler: Literal["ddpm"] = "ddpm"
    variance: Variance | None = None
    """Variance of the reverse steps; the model's own by default."""


@dataclasses.dataclass(frozen=True)
class Ddim(Sample):
    """DDIM (Song et al. 2020)."""

    sampler: Literal["ddim"] = "ddim"
    eta: float = 0.0
    """Stochasticity. 0: deterministic; 1: DDPM."""


@dataclasses.dataclass(frozen=True)
class Churned(Sample):
    """A sampler with the churn of Karras et al. 2022, Algorithm 2."""

    churn: float = 0.0
    """S_churn: noise added before each step, divided over the steps; 0 for a deterministic sampler."""
    churn_low: float = 0.0
    """S_tmin: no noise is added below this sigma / alpha."""
    churn_high: float = float("inf")
    """S_tmax: no noise is added above this sigma / alpha."""
    churn_noise: float = 1.0
    """S_noise: scale of the added noise."""


@dataclasses.dataclass(frozen=True)
class Euler(Churned):
    """Euler's method on the probability-flow ODE (Karras et al. 2022)."""

    sampler: Literal["euler"] = "euler"


@dataclasses.dataclass(frozen=True)
class EulerAncestral(Sample):
    """Euler's method with fresh noise at every step (k-diffusion)."""

    sampler: Literal["euler_ancestral"] = "euler_ancestral"
    eta: float = 1.0
    """Stochasticity. 0: deterministic; 1: ancestral."""


@dataclasses.dataclass(frozen=True)
class Heun(Churned):
    """Heun's method, EDM's sampler (Karras et al. 2022)."""

    sampler: Literal["heun"] = "heun"


@dataclasses.dataclass(frozen=True)
class Multistep(Sample):
    """A multistep method."""

    order: int = 2
    """Order of the method."""
    lower_order_final: bool | None = None
    """Let the order of the last steps fall to 1, which is more stable with few steps; with fewer than 15 by default."""


@dataclasses.dataclass(frozen=True)
class DpmSolver(Multistep):
    """DPM-Solver++, multistep (Lu et al. 2022)."""

    variant: Literal["midpoint", "heun"] = "midpoint"
    """Form of the second-order step."""
    second_difference: Literal["corrected", "published"] = "corrected"
    """Second difference at order 3: of third order, or as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class DpmSolverPp(DpmSolver):
    """DPM-Solver++, multistep, for the probability-flow ODE (Lu et al. 2022)."""

    sampler: Literal["dpm_solver_pp"] = "dpm_solver_pp"


@dataclasses.dataclass(frozen=True)
class DpmSolverPpSde(DpmSolver):
    """DPM-Solver++, multistep, for the reverse SDE (Lu et al. 2022)."""

    sampler: Literal["dpm_solver_pp_sde"] = "dpm_solver_pp_sde"


@dataclasses.dataclass(frozen=True)
class DpmSolverPp2S(Sample):
    """DPM-Solver++(2S), singlestep (Lu et al. 2022)."""

    sampler: Literal["dpm_solver_pp_2s"] = "dpm_solver_pp_2s"
    variant: Literal["midpoint", "heun"] = "midpoint"
    """Form of the second-order step."""
    ratio: float = 0.5
    """Position of the intermediate level within a step in log-SNR, between 0 and 1."""


@dataclasses.dataclass(frozen=True)
class UniPc(Multistep):
    """UniPC (Zhao et al. 2023)."""

    sampler: Literal["unipc"] = "unipc"
    variant: Literal["bh1", "bh2"] = "bh2"
    """B(h): h, or 1 - exp(-h)."""
    corrector: bool = True
    """Apply the corrector UniC."""


@dataclasses.dataclass(frozen=True)
class Deis(Multistep):
    """DEIS (Zhang & Chen 2022)."""

    sampler: Literal["deis"] = "deis"
    variable: Literal["log_rho", "rho"] = "log_rho"
    """Variable in which eps is extrapolated by a polynomial."""


@dataclasses.dataclass(frozen=True)
class Pndm(Sample):
    """PNDM (Liu et al. 2022)."""

    sampler: Literal["pndm"] = "pndm"
    start: Literal["multistep", "runge_kutta"] = "multistep"
    """First steps: multistep of lower order, or pseudo Runge-Kutta (9 more network evaluations)."""
    lower_order_final: bool = False
    """Let the order of the last steps fall to 1."""


@dataclasses.dataclass(frozen=True)
class AnalyticDpm(Sample):
    """Ancestral sampling with the optimal isotropic variance (Bao et al. 2022); sample.py only."""

    sampler: Literal["analytic_dpm"] = "analytic_dpm"
    gamma_images: int = 256
    """Training images from which E|eps|^2 is estimated at every timestep, before sampling."""


@dataclasses.dataclass(frozen=True)
class Langevin(Sample):
    """Predictor-corrector sampling: Langevin steps before each step of ddpm (Song et al. 2021)."""

    sampler: Literal["langevin"] = "langevin"
    variance: Variance | None = None
    """Variance of the predictor's reverse steps; the model's own by default."""
    snr: float = 0.16
    """Signal-to-noise ratio of the corrector's steps."""
    num_corrections: int = 1
    """Langevin steps per level."""


@dataclasses.dataclass(frozen=True)
class Restart(Sample):
    """Heun's method with restarts (Xu et al. 2023)."""

    sampler: Literal["restart"] = "restart"
    num_restarts: int = 1
    """How often the grid returns to the noisy end of the restart interval."""
    restart_interval: tuple[float, float] = (0.1, 0.4)
    """The restart interval, as fractions of the noisiest timestep: its clean and its noisy end."""
