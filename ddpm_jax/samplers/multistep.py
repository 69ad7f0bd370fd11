"""General linear methods (Butcher 2006, Acta Numerica 15): samplers that are nothing but a table of numbers.

A step calls the network once, and all that it computes is linear in what it knows:

    (x_s, kept_s) = matrix (x_t, kept_t, x0, eps) + (std * noise, 0)

`kept` are arrays like x that go from step to step: outputs of earlier steps, or an earlier x. So a multistep method, its
first steps of lower order, its last one, and its corrector are coefficients that the plan computes, and the step has no
branches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level

FARTHEST = 50.0  # stands in for an infinite lambda, in terms that the order of the step then leaves out


class Coefficients(NamedTuple):
    """One row a step.

    Attributes:
        level: Where the network is called, each [N].
        matrix: [N, 1 + K, 1 + K + 2]: from (x, K kept arrays, x0, eps) to (x, K kept arrays).
        std: The scale of the noise added to x [N].
    """

    level: Level
    matrix: Array
    std: Array


def linear_method(plan: Callable[[Level], Coefficients], num_kept: int, stochastic: bool = False) -> base.Sampler:
    """The Sampler that does what its plan says.

    Args:
        plan: (levels [N + 1]) -> Coefficients.
        num_kept: K, how many arrays like x go from step to step; zeros before the first.
        stochastic: Whether it adds noise.

    Returns:
        The Sampler.
    """

    def init(x: jax.Array) -> tuple[jax.Array, ...]:
        return (jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),) * num_kept

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, kept: tuple[jax.Array, ...], c: Coefficients):
        denoised = denoise(x, c.level)
        known = (x, *kept, denoised.x0, denoised.eps)
        x_s, *kept_s = (sum(c.matrix[i, j] * a for j, a in enumerate(known)) for i in range(1 + num_kept))
        if stochastic:
            x_s += c.std * base.normal(keys, x.shape)
        return x_s, tuple(kept_s), denoised

    return base.Sampler(plan, init, step)


def multistep(level: Level, x: Array, past: Array, x0: Array, eps: Array, remembers: str, std: Array) -> Coefficients:
    """The table of a method that remembers the outputs of earlier steps.

        x_s = x * x_t + x0 * x0_t + eps * eps_t + sum_j past[j] * (the output j + 1 steps ago) + std * noise

    Args:
        level: Where the network is called, each [N].
        x, x0, eps, std: Coefficients [N].
        past: Coefficients [N, K].
        remembers: "x0" or "eps", which output is meant.

    Returns:
        The Coefficients, with K kept arrays.
    """
    xp = namespace(x)
    top = xp.concatenate([x[:, None], past, x0[:, None], eps[:, None]], axis=1)
    return Coefficients(level, xp.stack([top, *shifted(xp, past.shape[0], past.shape[1], remembers)], axis=1), std)


def shifted(xp: Any, num_steps: int, num_outputs: int, remembers: str, num_before: int = 1) -> list[Array]:
    """Rows [N, num_before + K + 2] that move K remembered outputs on by one, the newest first.

    Args:
        xp: numpy or jax.numpy.
        num_steps: N.
        num_outputs: K.
        remembers: "x0" or "eps".
        num_before: How many columns come before the outputs: x itself, and whatever else is kept.

    Returns:
        K rows.
    """
    width = num_before + num_outputs + 2
    newest = width - (2 if remembers == "x0" else 1)
    sources = [newest, *range(num_before, num_before + num_outputs - 1)][:num_outputs]
    return [xp.tile(xp.asarray(np.eye(width)[source]), (num_steps, 1)) for source in sources]


def namespace(a: Array) -> Any:
    """numpy for numpy arrays and numbers, else jax.numpy."""
    return jnp if isinstance(a, jax.Array) else np


def half_log_snr(levels: Level) -> Array:
    """lambda = log(alpha / sigma) of Lu et al. 2022, [N + 1]; plus or minus FARTHEST where alpha or sigma is 0."""
    t, s = base.endpoints(levels)
    xp = namespace(t.alpha)
    alpha, sigma = (xp.concatenate([a[:1], b]) for a, b in ((t.alpha, s.alpha), (t.sigma, s.sigma)))
    finite = (alpha > 0) & (sigma > 0)
    ratio = xp.where(finite, alpha, 1.0) / xp.where(finite, sigma, 1.0)
    return xp.where(finite, xp.log(ratio), xp.where(sigma > 0, -FARTHEST, FARTHEST))


def orders(levels: Level, order: int, lower_order_final: bool, end_too: bool = False) -> Array:
    """The order that each step can have, [N]: what its history allows, and 1 next to an end where lambda is infinite.

    Args:
        levels: The grid [N + 1].
        order: The order of the method.
        lower_order_final: Whether the last steps have orders ..., 2, 1, which is steadier with few steps.
        end_too: Whether a step may have its full order also when it goes to the clean end.

    Returns:
        Integers [N] in 1..order.
    """
    num_steps = len(levels.alpha) - 1
    possible = np.minimum(order, 1 + np.arange(num_steps))
    if lower_order_final:
        possible = np.minimum(possible, num_steps - np.arange(num_steps))
    t, s = base.endpoints(levels)
    xp = namespace(t.alpha)
    usable = (s.alpha > 0) & ((s.sigma > 0) | end_too)
    history = (t.alpha > 0) & (t.sigma > 0)
    reached = xp.ones(num_steps, int)
    for _ in range(order - 1):
        usable = usable & history
        history = delayed(history)
        # the step's own start is one level; each order more needs one level further back
        reached = reached + (usable & history)
    return xp.minimum(reached, possible)


def delayed(a: Array, by: int = 1) -> Array:
    """a[i - by] at i; the first values are a[0], which no step of sufficient order reads."""
    xp = namespace(a)
    return xp.concatenate([a[:1]] * by + [a])[: len(a)]
