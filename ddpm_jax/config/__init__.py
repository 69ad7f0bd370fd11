"""What can be set, and how it is read.

A config file defines `get_config()`, which returns one frozen Config; `--train.num_steps 100` overrides a field of it.
Only this folder, `factory`, `runs.workdir` and the scripts know Config; everything else takes plain arguments.
"""

from ddpm_jax.config.checks import changes, check, check_seed, intervals
from ddpm_jax.config.reading import from_dict, read_config
from ddpm_jax.config.schema import (
    Checkpoint,
    Config,
    Data,
    Devices,
    Diffusion,
    Ema,
    Grid,
    Loss,
    Method,
    Network,
    Optimizer,
    Sample,
    Train,
)

__all__ = [
    "Checkpoint",
    "Config",
    "Data",
    "Devices",
    "Diffusion",
    "Ema",
    "Grid",
    "Loss",
    "Method",
    "Network",
    "Optimizer",
    "Sample",
    "Train",
    "changes",
    "check",
    "check_seed",
    "from_dict",
    "intervals",
    "read_config",
]  # fmt: skip
