"""Restart sampling: noise is added, and the steps are taken again (Xu et al. 2023, arXiv 2306.14878)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.schedules import Array, Level, safe_divide


class Coefficients(NamedTuple):
    """The wrapped sampler's; and for steps to noise, x_s = x_scale * x_t + std * noise, each [N].

    Attributes:
        sampler: The wrapped sampler's coefficients.
        to_noise: Whether the step goes to a noisier level [N].
        x_scale, std: [N].
    """

    sampler: Any
    to_noise: Array
    x_scale: Array
    std: Array


@base.picklable
def restart(sampler: base.Sampler) -> base.Sampler:
    """Restart sampling: a sampler on a grid that repeatedly goes back to noise and returns to the data.

        q(x_s | x_t) = N(alpha_s / alpha_t x_t, sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2)     for s noisier than t

    Steps to the data are the wrapped sampler's, planned separately for each stretch between steps to noise, so that a
    multistep method starts again after each. Steps to noise sample q(x_s | x_t), evaluate no network, and report zeros as
    their prediction. In the paper the noise contracts the errors of earlier steps, while an ODE solver adds few new ones.

    The wrapped sampler's number of network evaluations per step to the data; stochastic. Grids need not be monotone, such as
    those of `grids.restart` and `grids.back_and_forth`; their values must be known.

    Args:
        sampler: The sampler to wrap; the paper's is `heun`.

    Returns:
        The Sampler.

    Raises:
        TypeError: no Sampler; when it samples, traced levels.
        ValueError: when it samples, a grid that stays at a level, or stretches that the wrapped sampler does not accept.
    """
    base.check_sampler(sampler)

    def plan(levels: Level) -> Coefficients:
        base.check_distinct(levels, "restart")
        if base.is_traced(levels):
            raise TypeError("levels: restart expected a grid of known values, received traced ones")
        t, s = base.endpoints(levels)
        to_noise = np.arctan2(s.sigma, s.alpha) > np.arctan2(t.sigma, t.alpha)

        # the mean and the standard deviation of q(x_s | x_t)
        x_scale = np.where(to_noise, safe_divide(s.alpha, t.alpha), 1.0)
        variance = np.where(to_noise, s.sigma**2 - (x_scale * t.sigma) ** 2, 0.0)
        return Coefficients(plan_stretches(sampler, levels, to_noise), to_noise, x_scale, variance**0.5)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: Any, c: Coefficients):
        def to_data(x: jax.Array, state: Any):
            x_s, state, denoised = sampler.step(keys, denoise, x, state, c.sampler)
            return x_s.astype(x.dtype), state, denoised

        prediction = jax.eval_shape(to_data, x, state)[2]
        (noise_keys,) = base.split(keys, 1)

        def to_noise(x: jax.Array, state: Any):
            x_s = c.x_scale * x + c.std * base.normal(noise_keys, x.shape)
            return x_s.astype(x.dtype), state, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), prediction)

        return jax.lax.cond(c.to_noise, to_noise, to_data, x, state)

    return base.Sampler(plan, sampler.init, step, sampler.order, sampler.nfe)


def plan_stretches(sampler: base.Sampler, levels: Level, to_noise: np.ndarray) -> Any:
    """The sampler's coefficients for each stretch of steps to the data; those of a step to noise are never used.

    Raises:
        ValueError: no steps to the data, or a stretch that the sampler does not accept.
    """
    starts = np.flatnonzero(~to_noise & np.append(True, to_noise[:-1]))
    if len(starts) == 0:
        raise ValueError("levels: restart expected steps towards the data, received none")

    # one row per step to the data, by its position
    rows: dict[int, Any] = {}
    for start in starts:
        num_steps = int(np.argmax(np.append(to_noise[start:], True)))
        plan = sampler.plan(Level(*(np.asarray(a)[start : start + num_steps + 1] for a in levels)))
        rows |= {int(start) + i: jax.tree.map(lambda a, i=i: np.asarray(a)[i], plan) for i in range(num_steps)}

    # any row fills the gaps at the steps to noise
    any_row = rows[int(starts[0])]
    return jax.tree.map(lambda *a: np.stack(a), *(rows.get(i, any_row) for i in range(len(to_noise))))
