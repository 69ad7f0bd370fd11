"""The options of a run, and how they are read.

A config file defines `get_config()`, which returns one frozen Config; `--train.num_steps 100` overrides a field of it.
Data, Network and Sample are choices between kinds (see `kinds`). Only this folder, `factory`, `runs.workdir`, `interop` and the
scripts know Config; everything else takes plain arguments.
"""

from ddpm_jax.config.checks import changes, check, check_seed, intervals
from ddpm_jax.config.data import Data, Digits, Folder, Npz, Tfds, Unknown
from ddpm_jax.config.network import DiT, Network, UNet
from ddpm_jax.config.reading import from_dict, read_config, read_json
from ddpm_jax.config.sampling import (
    AnalyticDpm,
    Ddim,
    Ddpm,
    Deis,
    DpmSolverPp,
    DpmSolverPp2S,
    DpmSolverPpSde,
    Euler,
    EulerAncestral,
    Grid,
    Heun,
    Langevin,
    Pndm,
    Restart,
    Sample,
    UniPc,
    Variance,
)
from ddpm_jax.config.schema import Checkpoint, Config, Devices, Diffusion, Ema, Loss, Optimizer, Train

__all__ = [
    "AnalyticDpm", "Checkpoint", "Config", "Data", "Ddim", "Ddpm", "Deis", "Devices", "DiT", "Diffusion", "Digits",
    "DpmSolverPp", "DpmSolverPp2S", "DpmSolverPpSde", "Ema", "Euler", "EulerAncestral", "Folder", "Grid", "Heun",
    "Langevin", "Loss", "Network", "Npz", "Optimizer", "Pndm", "Restart", "Sample", "Tfds", "Train", "UNet", "UniPc",
    "Unknown", "Variance", "changes", "check", "check_seed", "from_dict", "intervals", "read_config", "read_json",
]  # fmt: skip
