"""Samplers: from noise to data along a grid of levels."""

from ddpm_jax.samplers import grids
from ddpm_jax.samplers.analytic_dpm import analytic_dpm, mean_squared_eps
from ddpm_jax.samplers.base import Sampler, sample, sample_path
from ddpm_jax.samplers.churn import Churn
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.ddpm import ddpm
from ddpm_jax.samplers.deis import deis
from ddpm_jax.samplers.dpm_solver import dpm_solver_pp
from ddpm_jax.samplers.dpm_solver_2s import dpm_solver_pp_2s
from ddpm_jax.samplers.euler import euler
from ddpm_jax.samplers.euler_ancestral import euler_ancestral
from ddpm_jax.samplers.heun import heun
from ddpm_jax.samplers.inpaint import inpaint, repaint
from ddpm_jax.samplers.langevin import langevin
from ddpm_jax.samplers.pndm import pndm
from ddpm_jax.samplers.restart import restart
from ddpm_jax.samplers.sdedit import sdedit
from ddpm_jax.samplers.unipc import unipc

__all__ = [
    "Churn", "Sampler", "analytic_dpm", "ddim", "ddpm", "deis", "dpm_solver_pp", "dpm_solver_pp_2s", "euler",
    "euler_ancestral", "grids", "heun", "inpaint", "langevin", "mean_squared_eps", "pndm", "repaint", "restart",
    "sample", "sample_path", "sdedit", "unipc",
]  # fmt: skip
