"""Objectives that train.py can train, one file per kind."""

from ddpm_jax.objectives.diffusion import diffusion

__all__ = ["diffusion"]
