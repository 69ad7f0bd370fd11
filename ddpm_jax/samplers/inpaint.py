"""Inpainting with a model that knows nothing of it: known pixels are put in their place after every step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoiser import Denoise
from ddpm_jax.diffusion import add_noise
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level


class Coefficients(NamedTuple):
    """RePaint's.

    Attributes:
        sampler: The wrapped sampler's coefficients.
        end: The level that the step ends at, each [N].
        to_noise: Whether the step goes to a noisier level [N].
        x_scale: For such a step, x_s = x_scale * x_t + std * noise, each [N].
        std: See there.
    """

    sampler: Any
    end: Level
    to_noise: Array
    x_scale: Array
    std: Array


def inpaint(sampler: base.Sampler, known: jax.Array, mask: Array, noise: jax.Array | None = None) -> base.Sampler:
    """Replacement (Song et al. 2021, arXiv 2011.13456, appendix I.2): known pixels are drawn from q(x_s | known).

        x_s <- mask (alpha_s known + sigma_s noise) + (1 - mask) x_s

    On a grid that ends at the clean level the known pixels are those given, exactly. As many network calls as the wrapped
    sampler's; stochastic, unless that is not and `noise` is given. Grids go towards the data.

    Args:
        sampler: The sampler to wrap.
        known: The data where they are known [B, ...]; finite elsewhere.
        mask: 1 (or True) where known and 0 elsewhere, in between to blend, [B, ...]; its last axis may be 1.
        noise: The noise of the known pixels [B, ...], the same at every step, as suits a sampler without noise; drawn
            anew at every step by default.

    Returns:
        The Sampler.

    Raises:
        ValueError: a mask of another shape, outside [0, 1] or all zero; noise of another shape; and, when it samples, x
            of another shape.
    """
    mask = checked_mask(mask, known)
    if noise is not None and noise.shape != known.shape:
        raise ValueError(f"noise: expected shape {known.shape}, received {noise.shape}")

    def plan(levels: Level) -> tuple[Any, Level]:
        base.check_decreasing(levels, "inpaint")
        return sampler.plan(levels), base.endpoints(levels)[1]

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: Any, coefficients: tuple[Any, Level]):
        ours, theirs = base.split(keys, 2)
        x_s, state, denoised = sampler.step(theirs, denoise, x, state, coefficients[0])
        eps = base.normal(ours, x.shape) if noise is None else noise
        return put(known, mask, x_s, coefficients[1], eps), state, denoised

    return base.Sampler(plan, checking_shape(sampler, known), step)


def repaint(sampler: base.Sampler, known: jax.Array, mask: Array) -> base.Sampler:
    """RePaint, Algorithm 1 of Lugmayr et al. 2022 (arXiv 2201.09865): replacement, on a grid that goes back and forth.

    Steps to the data are the wrapped sampler's, with known pixels put in their place; steps to noise call no network and
    draw from q(x_s | x_t) = N(alpha_s / alpha_t x_t, sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2). What such a step
    believed is reported as zeros. A sampler with a history starts it anew after each of them.

    Always stochastic. Grids may go any way, such as those of `grids.back_and_forth`.

    Args:
        sampler: The sampler to wrap; the paper's is `ddpm`.
        known: The data where they are known [B, ...]; finite elsewhere.
        mask: 1 (or True) where known and 0 elsewhere, in between to blend, [B, ...]; its last axis may be 1.

    Returns:
        The Sampler.

    Raises:
        ValueError: As `inpaint`.
    """
    mask = checked_mask(mask, known)

    def plan(levels: Level) -> Coefficients:
        base.check_distinct(levels, "repaint")
        t, s = base.endpoints(levels)
        if not isinstance(t.alpha, np.ndarray):
            raise TypeError("levels: repaint expected a grid of known values, received traced ones")
        to_noise = np.arctan2(s.sigma, s.alpha) > np.arctan2(t.sigma, t.alpha)
        if np.any(to_noise & (t.alpha == 0)):
            raise ValueError("levels: repaint expected no step from pure noise to noise, received one")
        x_scale = np.where(to_noise, s.alpha / np.where(to_noise, t.alpha, 1.0), 1.0)
        variance = np.where(to_noise, s.sigma**2 - (x_scale * t.sigma) ** 2, 0.0)
        return Coefficients(plan_stretches(sampler, levels, to_noise), s, to_noise, x_scale, variance**0.5)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: Any, c: Coefficients):
        ours, theirs = base.split(keys, 2)
        eps = base.normal(ours, x.shape)

        def to_data(x: jax.Array, state: Any):
            x_s, state, denoised = sampler.step(theirs, denoise, x, state, c.sampler)
            return put(known, mask, x_s, c.end, eps).astype(x.dtype), state, denoised

        believed = jax.eval_shape(to_data, x, state)[2]

        def to_noise(x: jax.Array, state: Any):
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), believed)
            return (c.x_scale * x + c.std * eps).astype(x.dtype), state, nothing

        return jax.lax.cond(c.to_noise, to_noise, to_data, x, state)

    return base.Sampler(plan, checking_shape(sampler, known), step)


def plan_stretches(sampler: base.Sampler, levels: Level, to_noise: np.ndarray) -> Any:
    """The sampler's coefficients for each stretch of steps to the data; those of a step to noise are never used."""
    starts = np.flatnonzero(~to_noise & np.append(True, to_noise[:-1]))
    if len(starts) == 0:
        raise ValueError("levels: repaint expected steps towards the data, received none")
    rows: dict[int, Any] = {}
    for start in starts:
        num_steps = int(np.argmax(np.append(to_noise[start:], True)))
        plan = sampler.plan(Level(*(np.asarray(a)[start : start + num_steps + 1] for a in levels)))
        rows |= {int(start) + i: jax.tree.map(lambda a, i=i: np.asarray(a)[i], plan) for i in range(num_steps)}
    any_row = rows[int(starts[0])]
    return jax.tree.map(lambda *a: np.stack(a), *(rows.get(i, any_row) for i in range(len(to_noise))))


def put(known: jax.Array, mask: jax.Array, x: jax.Array, level: Level, eps: jax.Array) -> jax.Array:
    """x with the known pixels, noised to the level, in their place."""
    return mask * add_noise(level, jnp.asarray(known, x.dtype), eps.astype(x.dtype)) + (1 - mask) * x


def checked_mask(mask: Array, known: jax.Array) -> jax.Array:
    """The mask in the shape and dtype of the data; ValueError as `inpaint` has it."""
    if mask.shape not in (known.shape, (*known.shape[:-1], 1)):
        raise ValueError(f"mask: expected shape {known.shape}, its last axis perhaps 1, received {mask.shape}")
    if not isinstance(mask, jax.core.Tracer):
        values = np.asarray(mask, np.float32)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"mask: expected values from 0 to 1, received {values.min()} to {values.max()}")
        if not np.any(values):
            raise ValueError("mask: expected 1 where pixels are known, received zeros alone")
    return jnp.broadcast_to(jnp.asarray(mask), known.shape).astype(known.dtype)


def checking_shape(sampler: base.Sampler, known: jax.Array) -> Any:
    """The sampler's `init`, which refuses an x that does not fit the known data."""

    def init(x: jax.Array) -> Any:
        if x.shape != known.shape:
            raise ValueError(f"shape: expected that of the known data, {known.shape}, received {x.shape}")
        return sampler.init(x)

    return init
