"""Predictor-corrector sampling: Langevin steps before each step to the next level (Song et al. 2021, arXiv 2011.13456)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoiser import Denoise
from ddpm_jax.diffusion import score_from_eps
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Level, safe_divide


class Coefficients(NamedTuple):
    """The predictor's, and the level of the corrector, each [N]."""

    predictor: Any
    level: Level


@base.picklable
def langevin(predictor: base.Sampler, snr: float = 0.16, num_corrections: int = 1) -> base.Sampler:
    """Predictor-corrector sampling, Algorithms 3 and 5 of the paper (appendix G).

        x <- x + step score + sqrt(2 step) noise,    step = 2 (snr |noise| / |score|)^2,    score = -eps / sigma

    `num_corrections` times at level t, then the predictor's step from t to s. The correction comes first, as in the
    authors' code, so that the clean level needs none. Norms are per sample, while the authors' code averages them over the
    batch: here sample i must not depend on the rest of its batch. For DDPM's process the paper's step has another factor,
    1 - beta, which is within a few per cent of 1 and which a grid does not give.

    num_corrections network evaluations per step, plus the predictor's. Grids are those of the predictor.

    Args:
        predictor: A single-step sampler, such as `ddpm` or `ddim`, because the corrections change x between its steps.
        snr: The signal-to-noise ratio of the corrector's steps, above 0; 0.16 is the paper's for CIFAR-10.
        num_corrections: Langevin steps at each level, at least 1.

    Returns:
        The Sampler.

    Raises:
        TypeError: predictor is no Sampler.
        ValueError: an snr or num_corrections out of range.
    """
    base.check_sampler(predictor, "predictor")
    if not 0 < snr < float("inf"):
        raise ValueError(f"snr: expected a finite number above 0, received {snr}")
    if num_corrections < 1:
        raise ValueError(f"num_corrections: expected at least 1, received {num_corrections}")

    def plan(levels: Level) -> Coefficients:
        t, _ = base.endpoints(levels)
        return Coefficients(predictor.plan(levels), t)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: Any, c: Coefficients):
        ours, theirs = base.split(keys, 2)

        def correct(i: jax.Array, x: jax.Array) -> jax.Array:
            noise_keys = None if ours is None else jax.vmap(jax.random.fold_in, (0, None))(ours, i)
            noise = base.normal(noise_keys, x.shape).astype(x.dtype)
            return langevin_step(x, denoise(x, c.level).eps, noise, c.level, snr)

        # correct at t, then step to s
        x = jax.lax.fori_loop(0, num_corrections, correct, x)
        return predictor.step(theirs, denoise, x, state, c.predictor)

    return base.Sampler(plan, predictor.init, step, predictor.order, num_corrections + predictor.nfe)


def langevin_step(x: jax.Array, eps: jax.Array, noise: jax.Array, level: Level, snr: float) -> jax.Array:
    """One step of Algorithm 5, each sample with its own step size; x if its score is 0, as it is at the clean level."""
    score = score_from_eps(level, eps)
    step = 2 * snr**2 * safe_divide(squared_norm(noise), squared_norm(score))
    root = jnp.where(step > 0, jnp.sqrt(jnp.where(step > 0, 2 * step, 1.0)), 0.0)  # with a finite gradient at 0
    return (x + step * score + root * noise).astype(x.dtype)


def squared_norm(a: jax.Array) -> jax.Array:
    """|a_i|^2 of each sample, [B, 1, ...], in float32 at least."""
    a = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    return jnp.sum(a**2, axis=tuple(range(1, a.ndim)), keepdims=True)
