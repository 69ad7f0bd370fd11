"""DDIM: the same marginals as DDPM, with adjustable stochasticity (Song, Meng & Ermon 2020, arXiv 2010.02502)."""

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


@base.picklable
def ddim(eta: float = 0.0) -> base.Sampler:
    """Eq. 12 of Song et al. 2020: keep the estimated noise, or replace part of it with new noise.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std * noise
        std = eta sigma_s sqrt(1 - r^2),    r = (alpha_t sigma_s) / (alpha_s sigma_t)              (Eq. 16)

    With eta = 0 it is deterministic, Euler's method on the probability-flow ODE, and grids need not be monotone. With eta = 1
    it is ancestral sampling with the small variance. With eta > 0 grids go towards the data.

    Args:
        eta: 0: deterministic; 1: DDPM; in [0, 1].

    Returns:
        The Sampler.

    Raises:
        ValueError: eta outside [0, 1].

    Example:
        With eta = 0 the sample is a function of the initial noise, and the grid in reverse recovers the noise. For data that
        are N(0, 1/4), the optimal network predicts eps = sigma x_t / (alpha^2 / 4 + sigma^2), and a sample is half its noise:

        >>> import jax
        >>> from ddpm_jax import samplers, schedules
        >>> from ddpm_jax.denoiser import make_denoise
        >>> schedule = schedules.linear(1000)
        >>> scale = schedule.sigma / (schedule.alpha**2 / 4 + schedule.sigma**2)
        >>> denoise = make_denoise(schedule, lambda x_t, t: scale[t][:, None] * x_t, clip=False)
        >>> levels, noise = samplers.grids.spaced(schedule, 500), jax.random.normal(jax.random.key(0), (4, 2))
        >>> x0 = samplers.sample(None, samplers.ddim(), denoise, levels, noise.shape, x_init=noise)
        >>> found = samplers.sample(None, samplers.ddim(), denoise, samplers.grids.reversed(levels), x0.shape, x_init=x0)
        >>> round(float(abs(x0 - noise / 2).max()), 1), round(float(abs(found - noise).max()), 1)
        (0.0, 0.0)
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, received {eta}")

    def plan(levels: Level) -> Coefficients:
        if eta == 0:
            t, s = base.endpoints(levels)
            return Coefficients(t, x0_scale=s.alpha, eps_scale=s.sigma, std=0 * s.sigma)
        base.check_decreasing(levels, f"ddim with eta = {eta}")
        t, s, r = base.ratios(levels)
        std = eta * s.sigma * (1 - r**2) ** 0.5
        return Coefficients(t, x0_scale=s.alpha, eps_scale=(s.sigma**2 - std**2) ** 0.5, std=std)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised = denoise(x, c.level)
        x_s = c.x0_scale * denoised.x0 + c.eps_scale * denoised.eps
        if eta > 0:
            x_s += c.std * base.normal(keys, x.shape)
        return x_s, state, denoised

    return base.Sampler(plan, lambda x: (), step)
