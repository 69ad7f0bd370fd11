"""Moved to ddpm_jax.data.images; this name goes with the next version."""

from ddpm_jax.data.images import *  # noqa: F403
