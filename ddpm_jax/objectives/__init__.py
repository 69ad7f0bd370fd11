"""What train.py trains, as Objectives: one file per kind."""

from ddpm_jax.objectives.diffusion import diffusion

__all__ = ["diffusion"]
