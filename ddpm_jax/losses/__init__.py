"""Training losses, one per example, and the laws by which their noise levels are drawn and weighted."""

from ddpm_jax.losses import timesteps, weightings
from ddpm_jax.losses.denoising import DISTANCES, LossOf, hybrid, simple, vlb

__all__ = ["DISTANCES", "LossOf", "hybrid", "simple", "timesteps", "vlb", "weightings"]
