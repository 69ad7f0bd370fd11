"""Inpainting with an unconditional model: known pixels are replaced after every step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import arguments
from ddpm_jax.denoiser import Denoise, warn_beyond_clip
from ddpm_jax.diffusion import add_noise
from ddpm_jax.samplers import base
from ddpm_jax.samplers.restart import restart
from ddpm_jax.schedules import Array, Level


@base.picklable
def inpaint(sampler: base.Sampler, known: jax.Array, mask: Array, noise: jax.Array | None = None) -> base.Sampler:
    """Replacement (Song et al. 2021, arXiv 2011.13456, appendix I.2): known pixels are sampled from q(x_s | known).

        x_s <- mask (alpha_s known + sigma_s noise) + (1 - mask) x_s

    On a grid that ends at the clean level the known pixels of a sample are exactly those given. The wrapped sampler's number
    of network evaluations per step; stochastic, unless the wrapped sampler is deterministic and `noise` is given. Grids go
    towards the data.

    Args:
        sampler: The sampler to wrap.
        known: The known data [B, ...]; finite values where unknown.
        mask: 1 (or True) where known and 0 elsewhere, in between to blend, [B, ...]; its last axis may be 1.
        noise: The noise of the known pixels [B, ...], the same at every step, as suits a deterministic sampler; by default
            new noise at every step.

    Returns:
        The Sampler.

    Raises:
        TypeError: no Sampler, or known data that are not floating-point.
        ValueError: a mask of another shape, outside [0, 1] or all zero; noise of another shape; and, when it samples, x
            of another shape.

    Warns:
        UserWarning: when it samples, known data outside the range to which the denoiser clips.
    """
    base.check_sampler(sampler)
    arguments.check_floating("known", known)
    mask = checked_mask(mask, known)
    if noise is not None:
        arguments.check_shape("noise", noise, known.shape, "shape")

    def plan(levels: Level) -> tuple[Any, Level]:
        base.check_decreasing(levels, "inpaint")
        return sampler.plan(levels), base.endpoints(levels)[1]

    def init(x: jax.Array) -> Any:
        if x.shape != known.shape:
            raise ValueError(f"shape: expected that of the known data, {known.shape}, received {x.shape}")
        return sampler.init(x)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: Any, coefficients: tuple[Any, Level]):
        warn_beyond_clip(denoise, "known", known)
        ours, theirs = base.split(keys, 2)
        c, s = coefficients
        x_s, state, denoised = sampler.step(theirs, denoise, x, state, c)
        # replace the known pixels
        eps = base.normal(ours, x.shape) if noise is None else noise
        known_s = add_noise(s, jnp.asarray(known, x_s.dtype), eps.astype(x_s.dtype))
        return mask * known_s + (1 - mask) * x_s, state, denoised

    return base.Sampler(plan, init, step, sampler.order, sampler.nfe)


@base.picklable
def repaint(sampler: base.Sampler, known: jax.Array, mask: Array) -> base.Sampler:
    """RePaint, Algorithm 1 of Lugmayr et al. 2022 (arXiv 2201.09865): replacement, on a grid that goes back and forth.

    It is `restart(inpaint(sampler, known, mask))`: steps to the data are the wrapped sampler's, followed by replacement; steps
    to noise evaluate no network. Always stochastic. Grids need not be monotone, such as those of `grids.back_and_forth`.

    Args:
        sampler: The sampler to wrap; the paper's is `ddpm`.
        known, mask: Same as for `inpaint`.

    Returns:
        The Sampler.

    Raises:
        ValueError: Same as `inpaint`.
    """
    return restart(inpaint(sampler, known, mask))


def checked_mask(mask: Array, known: jax.Array) -> jax.Array:
    """The mask in the shape and dtype of the data; ValueError as in `inpaint`."""
    if np.shape(mask) not in (known.shape, (*known.shape[:-1], 1)):
        raise ValueError(f"mask: expected shape {known.shape}, its last axis perhaps 1, received {np.shape(mask)}")
    if not isinstance(mask, jax.core.Tracer):
        values = np.asarray(mask, np.float32)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"mask: expected values from 0 to 1, received {values.min()} to {values.max()}")
        if not np.any(values):
            raise ValueError("mask: expected 1 where pixels are known, received zeros alone")
    return jnp.broadcast_to(jnp.asarray(mask), known.shape).astype(known.dtype)
