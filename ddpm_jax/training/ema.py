"""Moving averages of the parameters, with which samples are drawn.

An average moves towards the newest parameters by a share that depends on how many updates came before, and is 1 at the first:

    ema <- ema + share(n) (params - ema)

Power functions (Karras et al. 2024, arXiv 2312.02696, section 3.1) weigh the parameters of step k by k^gamma: as a run grows
longer, so does their memory. An average of any other width can be put together from snapshots of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Rate = Callable[[jax.Array], jax.Array]
"""n, how many updates came before -> how far the average moves, in [0, 1], counted in float32."""

MAX_WIDTH = 12**-0.5
"""The width of gamma = 0, the mean of all parameters."""


def exponential(decay: float, warmup: bool = False) -> Rate:
    """Keeps the share `decay` of the average at each update.

    Args:
        decay: In [0, 1).
        warmup: Whether it is at most (1 + n) / (10 + n), so that the average of a short run forgets where it started.
    """
    return _exponential(1 - decay, warmup)


def half_life(num_images: float, batch_size: int, warmup: bool = False) -> Rate:
    """Halves the weight of what the average holds by every num_images images.

    Args:
        num_images: The half-life, positive.
        batch_size: Images an update.
        warmup: As for `exponential`.

    Raises:
        ValueError: a half-life that is not positive.
    """
    if not 0 < num_images < math.inf:
        raise ValueError(f"half_life: expected a positive number of images, received {num_images}")
    return _exponential(-math.expm1(-math.log(2) * batch_size / num_images), warmup)


def _exponential(share: float, warmup: bool) -> Rate:
    def of(num_updates: jax.Array) -> jax.Array:
        start = jnp.where(num_updates == 0, 1.0, share)
        return jnp.maximum(start, 9 / (10 + num_updates)) if warmup else start

    return of


def power(width: float) -> Rate:
    """A power function: the average keeps (1 - 1 / (n + 1))^(gamma + 1), section 3.1 of Karras et al. 2024.

    Args:
        width: sigma_rel, the standard deviation of the profile as a share of the run so far, in (0, 12^-1/2].

    Raises:
        ValueError: a width out of range.
    """
    exponent = exponent_of(width) + 1
    return lambda num_updates: -jnp.expm1(exponent * jnp.log1p(-1 / (num_updates + 1)))


def exponent_of(width: float) -> float:
    """Gamma of a width: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), section 3.1 of Karras et al. 2024.

    Raises:
        ValueError: a width outside (0, 12^-1/2].
    """
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"width: expected above 0 and at most {MAX_WIDTH:.4f}, received {width}")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return max(float(roots.real.max()), 0.0)


def update(average: Any, params: Any, num_updates: jax.Array, share: Rate) -> Any:
    """The average after one more update; the first is a copy.

    Args:
        average: A tree of float32 arrays.
        params: The newest parameters, a tree of the same shapes.
        num_updates: n, how many updates came before.
        share: How far it moves.
    """
    by = share(num_updates)
    return jax.tree.map(lambda old, new: jnp.where(by < 1, old + by * (new - old), new), average, params)


def coefficients(steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> np.ndarray:
    """How to sum snapshots of power functions so that they come closest to another one, section 3.2 of Karras et al. 2024.

    The profile of a snapshot over the run is p(k) = (gamma + 1) k^gamma / n^(gamma + 1) for k <= n. What is minimised is the
    integral of the squared difference of profiles, which makes a linear system of their inner products.

    Args:
        steps: n of each snapshot [N], positive.
        widths: Of each snapshot [N]; no two have both the same step and width.
        step: n of the average to make.
        width: Its width.

    Returns:
        float64 [N], of sum 1.

    Raises:
        ValueError: a width out of range, or no snapshots.
    """
    if not len(steps):
        raise ValueError("steps: expected at least one snapshot, received none")
    n, gamma = np.asarray(steps, np.float64), np.array([exponent_of(w) for w in widths])
    gram = _inner(n[:, None], gamma[:, None], n[None], gamma[None])
    wanted = _inner(n, gamma, float(step), exponent_of(width))
    found = np.linalg.lstsq(gram, wanted, rcond=None)[0]
    return found / found.sum()


def profile_error(steps: Sequence[int], widths: Sequence[float], shares: np.ndarray, step: int, width: float) -> float:
    """How far a sum of snapshots is from the profile that is wanted: the norm of the difference, as a share of its own."""
    n, gamma = np.asarray(steps, np.float64), np.array([exponent_of(w) for w in widths])
    wanted = float(step), exponent_of(width)
    made = shares @ _inner(n[:, None], gamma[:, None], n[None], gamma[None]) @ shares
    own = _inner(*wanted, *wanted)
    return math.sqrt(max(made - 2 * shares @ _inner(n, gamma, *wanted) + own, 0.0) / own)


def thin(steps: Sequence[int], every: int, most: int) -> list[int]:
    """Which snapshots of a run are kept: at most so many, evenly apart, whenever the run was broken off.

    Args:
        steps: Of those that there are.
        every: Steps between snapshots at first; doubled as often as there would be too many.
        most: How many there may be.
    """
    apart = every
    while max(steps, default=0) // apart > most:
        apart *= 2
    return [step for step in steps if step % apart == 0]


def _inner(n_a: Any, gamma_a: Any, n_b: Any, gamma_b: Any) -> np.ndarray:
    """The integral of the product of two profiles."""
    overlap = (n_a / n_b) ** np.where(n_a < n_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * overlap / ((gamma_a + gamma_b + 1) * np.maximum(n_a, n_b))
