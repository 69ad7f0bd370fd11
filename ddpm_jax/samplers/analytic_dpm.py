"""Analytic-DPM: ancestral sampling with the optimal isotropic variance (Bao et al. 2022)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, keys
from ddpm_jax.denoiser import Denoise, evaluated
from ddpm_jax.diffusion import add_noise
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level, Schedule, require_discrete, safe_divide


class Coefficients(NamedTuple):
    """x_s = x0_scale * x0 + x_scale * x_t + std * noise, each [N]."""

    level: Level
    x0_scale: Array
    x_scale: Array
    std: Array


def mean_squared_eps(key: jax.Array, schedule: Schedule, denoise: Denoise, x0: jax.Array) -> jax.Array:
    """Gamma_t = E |eps|^2 / d over data, for every t: the one statistic of a model that Analytic-DPM needs.

    It is estimated with one noise sample per t and example (section 3 of Bao et al. 2022; score = -eps / sigma).

    Args:
        key: A typed key.
        schedule: The schedule of the model, T steps.
        denoise: The model, not clipped, so that eps is the network's.
        x0: Clean data [B, ...]; a few hundred examples suffice.

    Returns:
        Gamma [T]; in [0, 1] for an exact model.

    Raises:
        TypeError: no key, no schedule or no Denoise, or an x0 that is not floating-point.
        ValueError: a schedule in continuous time.
    """
    schedule = require_discrete(schedule, "Analytic-DPM")
    arguments.check_x0(x0)

    def at(t: jax.Array) -> jax.Array:
        noise_keys = keys.per_example(jax.random.fold_in(keys.stream(key, "gamma"), t), jnp.arange(len(x0)))
        level = schedule.level(t)
        x_t = add_noise(level, x0, base.normal(noise_keys, x0.shape).astype(x0.dtype))
        return jnp.mean(jnp.square(evaluated(denoise, x_t, level).eps.astype(jnp.float32)))

    return jax.lax.map(at, jnp.arange(schedule.num_steps))


@base.picklable
def analytic_dpm(gamma: ArrayLike, clip: bool = True) -> base.Sampler:
    """Theorem 1 of Bao et al. 2022 (arXiv 2201.06503), with their estimate of E |eps|^2.

    With r = (alpha_t sigma_s) / (alpha_s sigma_t), the mean is that of `ddpm` and the variance

        sigma_s^2 (1 - r^2) + (alpha_s (1 - r^2))^2 (sigma_t / alpha_t)^2 (1 - Gamma_t)

    the posterior's, plus the variance of x0 given x_t. It lies between "fixed_small" and "fixed_large", and is exact for
    Gaussian data. One network evaluation per step; the last step, to sigma_s = 0, adds no noise. Grids go towards the data.

    Args:
        gamma: Gamma_t [T] from `mean_squared_eps`; interpolated at fractional t.
        clip: Whether to clip the variance of x0 to [0, 1], its range for data in [-1, 1] (section 3.1).

    Returns:
        The Sampler.

    Raises:
        ValueError: gamma is not one-dimensional, not finite, or negative.
        TypeError: gamma is traced.
    """
    table = arguments.known("gamma", gamma).astype(np.float64)
    if table.ndim != 1 or not np.all(np.isfinite(table) & (table >= 0)):
        raise ValueError(f"gamma: expected finite numbers of at least 0, [T], received shape {table.shape}: {table}")

    def plan(levels: Level) -> Coefficients:
        base.check_decreasing(levels, "analytic_dpm")
        t, s, r = base.ratios(levels)
        xp = r.__array_namespace__()
        # the variance of x0 given x_t; 1 if x_t is pure noise
        gamma_t = xp.interp(t.t, np.arange(len(table)), table)
        x0_variance = safe_divide(t.sigma, t.alpha) ** 2 * (1 - gamma_t)
        x0_variance = xp.where(t.alpha > 0, xp.clip(x0_variance, 0.0, 1.0 if clip else np.inf), 1.0)
        # the posterior's mean and variance, plus the variance of alpha_s (1 - r^2) x0
        x0_scale, x_scale = s.alpha * (1 - r**2), r * s.sigma / t.sigma
        variance = s.sigma**2 * (1 - r**2) + x0_scale**2 * x0_variance
        return Coefficients(t, x0_scale, x_scale, xp.where(s.sigma > 0, variance, 0.0) ** 0.5)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        denoised = denoise(x, c.level)
        mean = c.x0_scale * denoised.x0 + c.x_scale * x
        return mean + c.std * base.normal(keys, x.shape), state, denoised

    return base.Sampler(plan, lambda x: (), step)
