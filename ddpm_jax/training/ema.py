"""Exponential and power-function moving averages of the parameters, used for sampling.

An average moves towards the newest parameters at a rate that depends on n, the number of earlier updates, and starts at 1:

    ema <- ema + rate(n) (params - ema)

Power functions (Karras et al. 2024, arXiv 2312.02696, section 3.1) weight the parameters of step k by k^gamma, so that their
memory grows with the run. An average of any other width can be reconstructed from snapshots of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Rate = Callable[[jax.Array], jax.Array]
"""The schedule of 1 - decay: (n, the number of earlier updates) -> the rate, in [0, 1], in float32."""

MAX_WIDTH = 12**-0.5
"""The width at gamma = 0, the mean of all parameters."""


def exponential(decay: float, warmup: bool = False) -> Rate:
    """EMA with a fixed decay.

    Args:
        decay: In [0, 1).
        warmup: Whether to cap the decay at (1 + n) / (10 + n), so that the average of a short run forgets its start.
    """
    return _exponential(1 - decay, warmup)


def half_life(num_images: float, batch_size: int, warmup: bool = False) -> Rate:
    """EMA with a half-life of num_images.

    Args:
        num_images: The half-life, positive.
        batch_size: Images per update.
        warmup: Same as for `exponential`.

    Raises:
        ValueError: the half-life is not positive.
    """
    if not 0 < num_images < math.inf:
        raise ValueError(f"half_life: expected a positive number of images, received {num_images}")
    return _exponential(-math.expm1(-math.log(2) * batch_size / num_images), warmup)


def _exponential(rate: float, warmup: bool) -> Rate:
    def rate_at(num_updates: jax.Array) -> jax.Array:
        first_is_copy = jnp.where(num_updates == 0, 1.0, rate)
        return jnp.maximum(first_is_copy, 9 / (10 + num_updates)) if warmup else first_is_copy

    return rate_at


def power(width: float) -> Rate:
    """Power-function EMA, with decay (1 - 1 / (n + 1))^(gamma + 1): section 3.1 of Karras et al. 2024.

    Args:
        width: sigma_rel, the standard deviation of the profile relative to the length of the run, in (0, 12^-1/2].

    Raises:
        ValueError: the width is out of range.
    """
    exponent = exponent_of(width) + 1
    return lambda num_updates: -jnp.expm1(exponent * jnp.log1p(-1 / (num_updates + 1)))


def exponent_of(width: float) -> float:
    """The gamma of a width: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), section 3.1 of Karras et al. 2024.

    Raises:
        ValueError: the width is outside (0, 12^-1/2].
    """
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"width: expected above 0 and at most {MAX_WIDTH:.4f}, received {width}")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return max(float(roots.real.max()), 0.0)


def update(average: Any, params: Any, num_updates: jax.Array, rate: Rate) -> Any:
    """The average after one more update; the first is a copy.

    Args:
        average: A tree of float32 arrays.
        params: The newest parameters, a tree of the same shapes.
        num_updates: n, the number of earlier updates.
        rate: The schedule of 1 - decay.
    """
    r = rate(num_updates)
    return jax.tree.map(lambda old, new: jnp.where(r < 1, old + r * (new - old), new), average, params)


def coefficients(steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> np.ndarray:
    """The weights of snapshots whose sum best approximates another average: section 3.2 of Karras et al. 2024.

    The profile of a snapshot over the run is p(k) = (gamma + 1) k^gamma / n^(gamma + 1) for k <= n. The weights minimise the
    integral of the squared difference of the profiles, by least squares over their inner products.

    Args:
        steps: n of each snapshot [N], positive.
        widths: The width of each snapshot [N]; no two have the same step and width.
        step: n of the average to reconstruct.
        width: Its width.

    Returns:
        float64 [N], with sum 1.

    Raises:
        ValueError: a width is out of range, or there are no snapshots.
    """
    if not len(steps):
        raise ValueError("steps: expected at least one snapshot, received none")
    n, gamma = np.asarray(steps, np.float64), np.array([exponent_of(w) for w in widths])
    gram = _inner(n[:, None], gamma[:, None], n[None], gamma[None])
    target = _inner(n, gamma, float(step), exponent_of(width))
    weights = np.linalg.lstsq(gram, target, rcond=None)[0]
    return weights / weights.sum()


def profile_error(steps: Sequence[int], widths: Sequence[float], weights: np.ndarray, step: int, width: float) -> float:
    """The relative error of a reconstruction's profile: |sum_i w_i p_i - p| / |p|, with the norms of the profiles.

    Args:
        steps: n of each snapshot [N].
        widths: The width of each snapshot [N].
        weights: From `coefficients`, [N].
        step: n of the reconstructed average.
        width: Its width.
    """
    n, gamma = np.asarray(steps, np.float64), np.array([exponent_of(w) for w in widths])
    target = float(step), exponent_of(width)
    sum_squared = weights @ _inner(n[:, None], gamma[:, None], n[None], gamma[None]) @ weights
    target_squared = _inner(*target, *target)
    return math.sqrt(max(sum_squared - 2 * weights @ _inner(n, gamma, *target) + target_squared, 0.0) / target_squared)


def thin(steps: Sequence[int], every: int, most: int) -> list[int]:
    """The snapshots to keep: at most `most`, evenly spaced, wherever the run was interrupted.

    Args:
        steps: The steps of the existing snapshots.
        every: Steps between snapshots at first; doubled until there are few enough.
        most: Maximum number of snapshots.
    """
    spacing = every
    while max(steps, default=0) // spacing > most:
        spacing *= 2
    return [step for step in steps if step % spacing == 0]


def _inner(n_a: Any, gamma_a: Any, n_b: Any, gamma_b: Any) -> np.ndarray:
    """The integral of the product of two profiles."""
    overlap = (n_a / n_b) ** np.where(n_a < n_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * overlap / ((gamma_a + gamma_b + 1) * np.maximum(n_a, n_b))
