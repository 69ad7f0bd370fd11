"""DDIM: the same marginals as DDPM, with as little noise as one likes (Song, Meng & Ermon 2020, arXiv 2010.02502)."""

from __future__ import annotations

from typing import NamedTuple

import jax

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level


class Coefficients(NamedTuple):
    """x_s = x0_scale * x0 + eps_scale * eps + std * noise, each [N]."""

    level: Level
    x0_scale: Array
    eps_scale: Array
    std: Array


def ddim(eta: float = 0.0) -> base.Sampler:
    """Eq. 12 of Song et al. 2020: keep the estimated noise, or replace part of it.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std * noise
        std = eta sigma_s sqrt(1 - r^2),    r = (alpha_t sigma_s) / (alpha_s sigma_t)              (Eq. 16)

    With eta = 0 nothing is random, x_s is Euler's step on the probability-flow ODE, and grids may go either way. With
    eta = 1 it is ancestral sampling with the small variance, and grids must go towards the data.

    Args:
        eta: The share of noise that is drawn anew, in [0, 1].

    Returns:
        The Sampler.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, received {eta}")

    def plan(levels: Level) -> Coefficients:
        if eta == 0:
            t, s = base.endpoints(levels)
            return Coefficients(t, s.alpha, s.sigma, 0 * s.sigma)
        base.check_decreasing(levels, f"ddim with eta = {eta}")
        t, s, _, gain = base.ratios(levels)
        return Coefficients(t, s.alpha, s.sigma * (1 - eta**2 * gain) ** 0.5, eta * s.sigma * gain**0.5)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised = denoise(x, c.level)
        x_s = c.x0_scale * denoised.x0 + c.eps_scale * denoised.eps
        if eta > 0:
            x_s += c.std * base.normal(keys, x.shape)
        return x_s, state, denoised

    return base.Sampler(plan, lambda x: (), step)
