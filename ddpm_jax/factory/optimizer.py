"""Config -> the optimizer, its learning rate, and the EMAs of the parameters."""

from __future__ import annotations

import math

import jax.numpy as jnp
import optax

from ddpm_jax.config import Ema, Optimizer
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.training import ema
from ddpm_jax.training.optimizers import adamw, clip


def make_learning_rate(optimizer: Optimizer, num_steps: int) -> optax.Schedule:
    """The learning rate per update: linear warm-up (appendix B of Ho et al. 2020), then constant or decaying."""
    warmup = optax.linear_schedule(0.0, optimizer.learning_rate, max(optimizer.warmup_steps, 1))
    match optimizer.decay:
        case "constant":
            after = optax.constant_schedule(optimizer.learning_rate)
        case "cosine":
            steps = max(num_steps - optimizer.warmup_steps, 1)
            after = optax.cosine_decay_schedule(optimizer.learning_rate, steps)
        case "inverse_sqrt":  # continuous at the end of warm-up
            start = max(optimizer.warmup_steps, 1)
            after = lambda step: optimizer.learning_rate * jnp.sqrt(start / (start + step))  # noqa: E731
        case _:
            raise UsageError(f"--optimizer.decay: expected constant, cosine or inverse_sqrt, received {optimizer.decay}")
    return optax.join_schedules([warmup, after], [optimizer.warmup_steps])


def make_optimizer(optimizer: Optimizer, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Gradient clipping by the global norm, then Adam (section 4 and appendix B of Ho et al. 2020), or AdamW."""
    limit = math.inf if optimizer.clip_norm is None else optimizer.clip_norm
    return optax.chain(clip(limit), adamw(learning_rate, optimizer.betas, optimizer.weight_decay))


def make_averages(averages: Ema, batch_size: int) -> dict[str, ema.Rate]:
    """The EMAs of the parameters by name, the one that samples use first. Raises UsageError for options out of range."""
    made = {}
    if averages.decay is not None:
        made["decay"] = ema.exponential(averages.decay, averages.warmup)
    with as_usage_error("--ema.half_life"):
        made |= {f"half_life_{n:.10g}": ema.half_life(n, batch_size, averages.warmup) for n in averages.half_life}
    with as_usage_error("--ema.power"):
        made |= {power_name(width): ema.power(width) for width in averages.power}
    if not made:
        raise UsageError("--ema.decay: expected a number where there is no other average, received None")
    return made


def power_name(width: float) -> str:
    """The name of a power-function EMA."""
    return f"power_{width:.10g}"
