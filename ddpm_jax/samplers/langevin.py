"""Predictor and corrector: Langevin steps at a level before a step to the next (Song et al. 2021, arXiv 2011.13456)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level


class Coefficients(NamedTuple):
    """The predictor's own, and where the corrector works [N]."""

    predictor: Any
    level: Level
    noisy: Array


def langevin(predictor: base.Sampler, snr: float = 0.16, num_corrections: int = 1) -> base.Sampler:
    """Predictor-corrector sampling, Algorithms 3 and 5 of the paper (appendix G).

        x <- x + step score + sqrt(2 step) noise,    step = 2 (snr |noise| / |score|)^2,    score = -eps / sigma

    `num_corrections` times at level t, then the predictor's step from t to s. The correction comes first, as in the
    authors' code, so that nothing is called at the clean end. Norms are those of each sample, where the authors' code
    takes their mean over the batch: sample i must not depend on its batch mates. The paper's step for DDPM's process has a
    factor 1 - beta besides, which is 1 to a few per cent and not known to a grid.

    num_corrections network calls a step, and the predictor's. Grids go as the predictor's.

    Args:
        predictor: A sampler without history, such as `ddpm` or `ddim`: the corrections move x between its steps.
        snr: The signal-to-noise ratio r of the corrector's steps, above 0; 0.16 is the paper's for CIFAR-10.
        num_corrections: Langevin steps at each level, at least 1.

    Returns:
        The Sampler.

    Raises:
        ValueError: an snr or num_corrections out of range.
    """
    if not snr > 0:
        raise ValueError(f"snr: expected above 0, received {snr}")
    if num_corrections < 1:
        raise ValueError(f"num_corrections: expected at least 1, received {num_corrections}")

    def plan(levels: Level) -> Coefficients:
        t, _ = base.endpoints(levels)
        return Coefficients(predictor.plan(levels), t, t.sigma > 0)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: Any, c: Coefficients):
        ours, theirs = base.split(keys, 2)

        def correct(i: jax.Array, x: jax.Array) -> jax.Array:
            noise_keys = None if ours is None else jax.vmap(jax.random.fold_in, (0, None))(ours, i)
            noise = base.normal(noise_keys, x.shape).astype(x.dtype)
            return jnp.where(c.noisy, langevin_step(x, denoise(x, c.level).eps, noise, c.level, snr), x)

        x = jax.lax.fori_loop(0, num_corrections, correct, x)
        return predictor.step(theirs, denoise, x, state, c.predictor)

    return base.Sampler(plan, predictor.init, step)


def langevin_step(x: jax.Array, eps: jax.Array, noise: jax.Array, level: Level, snr: float) -> jax.Array:
    """One step of Algorithm 5, each sample with its own step size; x where its score is 0."""
    squared = squared_norm(eps)
    ratio = squared_norm(noise) / jnp.where(squared > 0, squared, 1.0)
    step = jnp.where(squared > 0, 2 * snr**2 * level.sigma**2 * ratio, 0.0)  # |score| = |eps| / sigma
    root = jnp.where(step > 0, jnp.sqrt(jnp.where(step > 0, 2 * step, 1.0)), 0.0)
    sigma = jnp.where(level.sigma > 0, level.sigma, 1.0)
    return (x - step * eps / sigma + root * noise).astype(x.dtype)


def squared_norm(a: jax.Array) -> jax.Array:
    """|a_i|^2 of every sample, [B, 1, ...], in float32 at least."""
    a = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    return jnp.sum(a**2, axis=tuple(range(1, a.ndim)), keepdims=True)
