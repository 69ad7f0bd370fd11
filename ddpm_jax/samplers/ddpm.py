"""Ancestral sampling, Algorithm 2 of Ho et al. 2020, on any grid."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoiser import Denoise, Denoised
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level, safe_divide

VARIANCES = ("fixed_small", "fixed_large", "learned")


class Coefficients(NamedTuple):
    """x_s = x0_scale * x0 + x_scale * x_t + std * exp(fraction * log_range) * noise, each [N]."""

    level: Level
    x0_scale: Array
    x_scale: Array
    std: Array
    log_range: Array


@base.picklable
def ddpm(variance: str = "fixed_large") -> base.Sampler:
    """The reverse process of Ho et al. 2020: the mean of q(x_s | x_t, x0), plus noise.

    On the full grid this is Algorithm 2 with x0 clipped; on a spaced grid the posterior is that of the spaced chain
    (Nichol & Dhariwal 2021, section 4). For a step from t to s, with r = (alpha_t sigma_s) / (alpha_s sigma_t), the ratio of
    the noise-to-signal ratios, Eq. 7 reads

        mean         = alpha_s (1 - r^2) x0 + r (sigma_s / sigma_t) x_t
        fixed_small  = sigma_s^2 (1 - r^2)       the posterior variance, optimal for deterministic data
        fixed_large  = (sigma_t h_s / h_t)^2 (1 - r^2),    h = hypot(alpha, sigma)
                                                 beta of the step if h = 1, optimal for data that are N(0, I)
        learned      = fixed_large^f fixed_small^(1 - f),  f = `denoised.fraction`

    The last step, to sigma_s = 0, adds no noise and returns x0. Grids must go towards the data.

    Args:
        variance: "fixed_large", as in the paper for CIFAR-10; "fixed_small", as for its 256 x 256 images; or "learned", for
            networks with a learned variance (Nichol & Dhariwal 2021, Eq. 15).

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown variance; when it samples, "learned" for a network without one.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance: expected one of {VARIANCES}, received {variance!r}")

    def plan(levels: Level) -> Coefficients:
        base.check_decreasing(levels, "ddpm")
        t, s, r = base.ratios(levels)
        xp = r.__array_namespace__()
        x0_scale, x_scale = s.alpha * (1 - r**2), r * s.sigma / t.sigma
        # a learned std lies between the fixed ones: std of fixed_small, times exp(fraction * log_range)
        large = t.sigma * (xp.hypot(s.alpha, s.sigma) / xp.hypot(t.alpha, t.sigma))
        scale = xp.where(s.sigma > 0, large, 0.0) if variance == "fixed_large" else s.sigma
        log_range = xp.log(safe_divide(large, s.sigma, otherwise=1.0))
        return Coefficients(t, x0_scale, x_scale, scale * (1 - r**2) ** 0.5, log_range)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised: Denoised = denoise(x, c.level)
        mean = c.x0_scale * denoised.x0 + c.x_scale * x
        # the standard deviation, of each pixel if it is learned
        std = c.std
        if variance == "learned":
            if denoised.fraction is None:
                raise ValueError("variance: expected fixed_small or fixed_large, for this network has not learned one")
            std = std * jnp.exp(denoised.fraction * c.log_range)
        return mean + std * base.normal(keys, x.shape), state, denoised

    return base.Sampler(plan, lambda x: (), step)
