"""Samplers: from noise to data along a grid of levels."""

from ddpm_jax.samplers import grids
from ddpm_jax.samplers.base import Sampler, sample, sample_path
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.ddpm import ddpm

__all__ = ["Sampler", "ddim", "ddpm", "grids", "sample", "sample_path"]
