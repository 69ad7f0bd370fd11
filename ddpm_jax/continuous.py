"""Moved to ddpm_jax.schedules.continuous; this name goes with the next version."""

from ddpm_jax.schedules.continuous import *  # noqa: F403
