"""Timestep grids: the noise levels that a sampler visits."""

from ddpm_jax.samplers.grids.log_snr import at_log_snr, exponential, karras, uniform_log_snr
from ddpm_jax.samplers.grids.orders import back_and_forth, restart, reversed, starting_at
from ddpm_jax.samplers.grids.times import CONTINUOUS_STEPS, SPACINGS, at, runge_kutta_start, spaced

__all__ = [
    "CONTINUOUS_STEPS", "SPACINGS", "at", "at_log_snr", "back_and_forth", "exponential", "karras", "restart", "reversed",
    "runge_kutta_start", "spaced", "starting_at", "uniform_log_snr",
]  # fmt: skip
