"""Noise schedules: the signal and noise scales of x_t, in discrete time (`discrete`) and in continuous time (`continuous`)."""

from ddpm_jax.schedules import continuous
from ddpm_jax.schedules.discrete import (
    Schedule,
    checked_num_steps,
    constant,
    cosine,
    from_betas,
    from_log_snr,
    jsd,
    linear,
    quadratic,
    require_discrete,
    sigmoid,
    warmup,
    zero_terminal_snr,
)
from ddpm_jax.schedules.flow import FlowSchedule, flow
from ddpm_jax.schedules.level import Array, HasLevels, Level, log_snr_range, lookup, safe_divide, signal_and_noise

__all__ = [
    "Array", "FlowSchedule", "HasLevels", "Level", "Schedule", "checked_num_steps", "constant", "continuous", "cosine", "flow",
    "from_betas", "from_log_snr", "jsd", "linear", "log_snr_range", "lookup", "quadratic", "require_discrete", "safe_divide",
    "sigmoid", "signal_and_noise", "warmup", "zero_terminal_snr",
]  # fmt: skip
