"""Training losses, one per example, and the sampling and weighting of their noise levels."""

from ddpm_jax.losses import timesteps, weightings
from ddpm_jax.losses.denoising import DISTANCES, LossOf, hybrid, simple, vlb
from ddpm_jax.losses.edm import edm

__all__ = ["DISTANCES", "LossOf", "edm", "hybrid", "simple", "timesteps", "vlb", "weightings"]
