"""Diffusion models in JAX: pure functions for research, and a trainer.

What is imported here needs jax and numpy alone; networks, data and training are imported by name, as `ddpm_jax.networks`.
"""

from ddpm_jax import denoiser, diffusion, guidance, likelihood, losses, samplers, schedules
from ddpm_jax._version import __version__

__all__ = ["__version__", "denoiser", "diffusion", "guidance", "likelihood", "losses", "samplers", "schedules"]
