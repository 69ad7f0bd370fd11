"""Dynamic thresholding, which comes after guidance."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ddpm_jax import diffusion
from ddpm_jax.denoiser import Denoise, Denoised, check_denoise, evaluated
from ddpm_jax.schedules import Level


def dynamic_threshold(
    denoise: Denoise, quantile: float = 0.995, limit: float = float("inf"), rederive_eps: bool = True
) -> Denoise:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3); applied last, instead of `clipped`.

        x0 <- clip(x0, -s, s) / s,    s = min(max(the quantile of |x0| over the example, 1), limit)

    Args:
        denoise: With any guidance already applied.
        quantile: In [0, 1]; the paper uses 0.995 for pixels.
        limit: Upper bound on s, above 0.
        rederive_eps: As for `denoiser.clipped`.

    Returns:
        The Denoise.

    Raises:
        ValueError: quantile or limit out of range.
    """
    check_denoise(denoise)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected 0 to 1, received {quantile}")
    if not limit > 0:
        raise ValueError(f"limit: expected above 0, received {limit}")
    return functools.partial(_thresholded, denoise, quantile, limit, rederive_eps)


def _thresholded(denoise: Denoise, quantile: float, limit: float, rederive_eps: bool, x_t: jax.Array, level: Level) -> Denoised:
    x0, eps, fraction = evaluated(denoise, x_t, level)
    s = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), quantile, axis=1)
    s = diffusion.expand(jnp.clip(s, 1.0, None).clip(None, limit), x0).astype(x0.dtype)
    x0 = jnp.clip(x0, -s, s) / s
    return Denoised(x0, diffusion.eps_from_x0(level, x_t, x0) if rederive_eps else eps, fraction)
