"""Ancestral sampling, Algorithm 2 of Ho et al. 2020, on any grid."""

from __future__ import annotations

from typing import NamedTuple

import jax

from ddpm_jax.denoiser import Denoise, Denoised
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level

VARIANCES = ("fixed_small", "fixed_large")


class Coefficients(NamedTuple):
    """x_s = x0_scale * x0 + x_scale * x_t + std * noise, each [N]."""

    level: Level
    x0_scale: Array
    x_scale: Array
    std: Array


def ddpm(variance: str = "fixed_large") -> base.Sampler:
    """The reverse process of Ho et al. 2020: the mean of q(x_s | x_t, x0), and noise.

    On the full grid this is Algorithm 2 with x0 clipped; on a spaced grid the posterior is that of the spaced chain
    (Nichol & Dhariwal 2021, section 4). With r = (alpha_t sigma_s) / (alpha_s sigma_t), the ratio of the noise-to-signal
    ratios, and s the less noisy end of a step, Eq. 7 reads

        mean         = alpha_s (1 - r^2) x0 + r (sigma_s / sigma_t) x_t
        fixed_small  = sigma_s^2 (1 - r^2)       the posterior variance, right for data that are one point
        fixed_large  = sigma_t^2 (1 - r^2)       beta of the step, right for standard normal data

    The last step, to sigma_s = 0, adds no noise and returns x0. Grids must go towards the data.

    Args:
        variance: "fixed_large", the paper's for CIFAR-10, or "fixed_small", its for 256 x 256 images.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown variance.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance: expected one of {VARIANCES}, received {variance!r}")

    def plan(levels: Level) -> Coefficients:
        base.refuse_noisier_steps(levels, "ddpm")
        t, s, r, gain = base.pairs(levels)
        scale = s.sigma if variance == "fixed_small" else t.sigma * (s.sigma > 0)
        return Coefficients(t, s.alpha * gain, r * s.sigma / t.sigma, scale * gain**0.5)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised: Denoised = denoise(x, c.level)
        mean = c.x0_scale * denoised.x0 + c.x_scale * x
        return mean + c.std * base.normal(keys, x.shape), state, denoised

    return base.Sampler(plan, lambda x: (), step)
