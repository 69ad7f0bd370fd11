"""Diffusion models in JAX: pure functions for research, and a trainer.

The names below need only jax and numpy; networks, data and training are imported by name, as `ddpm_jax.networks`.

>>> import jax, ddpm_jax
>>> schedule = ddpm_jax.schedules.linear(1000)
>>> denoise = ddpm_jax.make_denoise(schedule, lambda x_t, t: x_t)  # an untrained network
>>> levels = ddpm_jax.samplers.grids.spaced(schedule, 10)
>>> ddpm_jax.sample(jax.random.key(0), ddpm_jax.samplers.ddim(), denoise, levels, (4, 8, 8, 1)).shape
(4, 8, 8, 1)
"""

from ddpm_jax import denoiser, diffusion, guidance, latents, likelihood, losses, preconditioning, samplers, schedules
from ddpm_jax._version import __version__
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.diffusion import q_sample
from ddpm_jax.samplers import sample
from ddpm_jax.schedules import Level, Schedule

__all__ = [
    "Denoised", "Level", "Schedule", "__version__", "denoiser", "diffusion", "guidance", "latents", "likelihood", "losses",
    "make_denoise", "preconditioning", "q_sample", "sample", "samplers", "schedules",
]  # fmt: skip
