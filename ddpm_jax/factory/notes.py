"""What a user should know before a run starts, though nothing is wrong."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.factory.diffusion import make_schedule
from ddpm_jax.factory.optimizer import make_averages

SLIGHT = 0.01
"""Share of signal variance, or of initial parameters, that does not show in samples."""


def notes(config: Config) -> list[str]:
    """One line for each doubt about a run; usually there are none."""
    num_steps, lines = config.train.num_steps, []

    # The learning rate.
    if config.optimizer.warmup_steps >= num_steps:
        reached = num_steps / config.optimizer.warmup_steps
        lines.append(f"the learning rate only reaches {reached:.0%} of its peak by step {num_steps}: "
                     f"--optimizer.warmup_steps is {config.optimizer.warmup_steps}")  # fmt: skip

    # The EMA that is sampled with: the weight of the parameters of step 1 in it.
    name, rate = next(iter(make_averages(config.ema, config.train.batch_size).items()))
    with np.errstate(divide="ignore"):
        kept = np.log1p(-np.asarray(rate(jnp.arange(1, min(num_steps, 100_000))), np.float64)).sum()
    if math.exp(kept) > SLIGHT:
        remedy = "" if config.ema.warmup else "; --ema.warmup True shortens its memory"
        lines.append(f"the initial parameters have a weight of {math.exp(kept):.0%} in the EMA {name} at step {num_steps}, "
                     f"so that its samples are noisy{remedy}")  # fmt: skip

    # The noise schedule.
    schedule = make_schedule(config.diffusion)
    alpha, sigma = (float(scale) for scale in schedule.level(schedule.last)[1:])
    signal = alpha**2 / (alpha**2 + sigma**2)
    if signal > SLIGHT:
        lines.append(f"the last level of --diffusion.schedule {config.diffusion.schedule} has {signal:.0%} signal, but samples "
                     "start from pure noise: more --diffusion.num_steps, a larger --diffusion.beta_end, or cosine")  # fmt: skip
    return lines
