"""Ancestral sampling, Algorithm 2 of Ho et al. 2020, on any grid."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoiser import Denoise, Denoised
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level

VARIANCES = ("fixed_small", "fixed_large", "learned")


class Coefficients(NamedTuple):
    """x_s = x0_scale * x0 + x_scale * x_t + std * exp(fraction * log_range) * noise, each [N]."""

    level: Level
    x0_scale: Array
    x_scale: Array
    std: Array
    log_range: Array


def ddpm(variance: str = "fixed_large") -> base.Sampler:
    """The reverse process of Ho et al. 2020: the mean of q(x_s | x_t, x0), and noise.

    On the full grid this is Algorithm 2 with x0 clipped; on a spaced grid the posterior is that of the spaced chain
    (Nichol & Dhariwal 2021, section 4). With r = (alpha_t sigma_s) / (alpha_s sigma_t), the ratio of the noise-to-signal
    ratios, and s the less noisy end of a step, Eq. 7 reads

        mean         = alpha_s (1 - r^2) x0 + r (sigma_s / sigma_t) x_t
        fixed_small  = sigma_s^2 (1 - r^2)       the posterior variance, right for data that are one point
        fixed_large  = sigma_t^2 (1 - r^2)       beta of the step, right for standard normal data
        learned      = fixed_large^f fixed_small^(1 - f),  f = `denoised.fraction`

    The last step, to sigma_s = 0, adds no noise and returns x0. Grids must go towards the data.

    Args:
        variance: "fixed_large", the paper's for CIFAR-10; "fixed_small", its for 256 x 256 images; or "learned", for networks
            that have learned one (Nichol & Dhariwal 2021, Eq. 15).

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown variance; when it samples, a learned one where the network has none.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance: expected one of {VARIANCES}, received {variance!r}")

    def plan(levels: Level) -> Coefficients:
        base.check_decreasing(levels, "ddpm")
        t, s, r, gain = base.ratios(levels)
        scale = t.sigma * (s.sigma > 0) if variance == "fixed_large" else s.sigma
        xp = jnp if isinstance(r, jax.Array) else np
        log_range = xp.log(t.sigma / xp.where(s.sigma > 0, s.sigma, t.sigma))
        return Coefficients(t, s.alpha * gain, r * s.sigma / t.sigma, scale * gain**0.5, log_range)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised: Denoised = denoise(x, c.level)
        mean = c.x0_scale * denoised.x0 + c.x_scale * x
        std = c.std
        if variance == "learned":
            if denoised.fraction is None:
                raise ValueError("variance: expected fixed_small or fixed_large, for this network has not learned one")
            std = std * jnp.exp(denoised.fraction * c.log_range)
        return mean + std * base.normal(keys, x.shape), state, denoised

    return base.Sampler(plan, lambda x: (), step)
