"""Moved to ddpm_jax.losses.weightings; this name goes with the next version."""

from ddpm_jax.losses.weightings import *  # noqa: F403
