"""Moved to ddpm_jax.training.ema; this name goes with the next version."""

from ddpm_jax.training.ema import *  # noqa: F403
