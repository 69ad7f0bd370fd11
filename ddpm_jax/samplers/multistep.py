"""Multistep methods: each step also uses the outputs of the steps before it.

    x_s = c.x x_t + c.x0 x0_t + c.eps eps_t + sum_j c.past[j] (the output j + 1 steps before) + c.std noise

A step evaluates the network once and is linear in x and in the network's outputs, present and past. So a method is defined by
its coefficients: the lower order of the first steps and the special ends are part of the plan, and the step has no branches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level

FARTHEST = 50.0
"""Stands in for an infinite lambda, in terms that a step of order 1 leaves out."""


class Coefficients(NamedTuple):
    """Those of the equation above, one row per step.

    Attributes:
        level: The level at which the network is evaluated, each [N].
        x, x0, eps, std: [N].
        past: [N, K], the newest of the past outputs first.
    """

    level: Level
    x: Array
    x0: Array
    eps: Array
    past: Array
    std: Array


def multistep(
    plan: Callable[[Level], Coefficients],
    output: Literal["x0", "eps"],
    num_past: int,
    order: int,
    stochastic: bool = False,
) -> base.Sampler:
    """The Sampler that takes the steps of a plan.

    Args:
        plan: (levels [N + 1]) -> Coefficients.
        output: The output of earlier steps that it uses.
        num_past: K, how many of them; zeros before the first step.
        order: The order of the method.
        stochastic: Whether it adds noise.

    Returns:
        The Sampler.
    """

    def init(x: jax.Array) -> tuple[jax.Array, ...]:
        return no_past(x, num_past)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, past: tuple[jax.Array, ...], c: Coefficients):
        denoised = denoise(x, c.level)
        x_s = c.x * x + c.x0 * denoised.x0 + c.eps * denoised.eps + weighted_sum(c.past, past)
        if stochastic:
            x_s += c.std * base.normal(keys, x.shape)
        return x_s, append(getattr(denoised, output), past), denoised

    return base.Sampler(plan, init, step, order)


def no_past(x: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """Zeros like x for `num` past outputs, in float32 at least, in which the steps compute."""
    return (jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),) * num


def append(output: jax.Array, past: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The past outputs at the next step, the newest first; the oldest is dropped."""
    return tuple(a.astype(b.dtype) for a, b in zip((output, *past[:-1]), past, strict=True)) if past else ()


def weighted_sum(weights: Array, arrays: tuple[jax.Array, ...]) -> jax.Array | float:
    """sum_j weights[j] arrays[j], and 0 if there are none."""
    return sum((weights[j] * a for j, a in enumerate(arrays)), start=0.0)


def half_log_snr(levels: Level) -> Array:
    """lambda = log(alpha / sigma) of Lu et al. 2022, [N + 1]; plus or minus FARTHEST if alpha or sigma is 0."""
    t, alpha, sigma = base.in_float64(levels)
    xp = alpha.__array_namespace__()
    finite = (alpha > 0) & (sigma > 0)
    inside = Level(t, xp.where(finite, alpha, 1.0), xp.where(finite, sigma, 1.0))
    return xp.where(finite, inside.log_snr / 2, xp.where(sigma > 0, -FARTHEST, FARTHEST))


def orders(levels: Level, order: int, lower_order_final: bool, end_too: bool = False) -> Array:
    """The order that each step can have, [N]: limited by the steps before it, and 1 next to an infinite lambda.

    Args:
        levels: The grid [N + 1].
        order: The order of the method.
        lower_order_final: Whether the last steps have orders ..., 2, 1, which is more stable with few steps.
        end_too: Whether a step to the clean end may have its full order too.

    Returns:
        Integers [N] in 1..order.
    """
    # a step of order k needs k - 1 steps before it
    num_steps = len(levels.alpha) - 1
    possible = np.minimum(order, 1 + np.arange(num_steps))
    if lower_order_final:
        possible = np.minimum(possible, num_steps - np.arange(num_steps))

    # and finite lambda at the k levels that it interpolates, and at the level it goes to
    t, s = base.endpoints(levels)
    xp = t.alpha.__array_namespace__()
    start = (t.alpha > 0) & (t.sigma > 0)
    usable = start & (s.alpha > 0) & ((s.sigma > 0) | end_too)
    reached = xp.ones(num_steps, int)
    for k in range(2, order + 1):
        usable = usable & delayed(start, k - 1)
        reached = reached + usable
    return xp.minimum(reached, possible)


def delayed(a: Array, by: int = 1) -> Array:
    """a[i - by] at i, and a[0] for the first i, at which no step is of an order that uses it."""
    xp = a.__array_namespace__()
    return xp.concatenate([a[:1]] * by + [a])[: len(a)]
