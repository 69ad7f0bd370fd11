"""Moved to ddpm_jax.losses.timesteps; this name goes with the next version."""

from ddpm_jax.losses.timesteps import *  # noqa: F403
