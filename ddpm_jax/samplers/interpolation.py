"""Progressive generation, shared latents and interpolation (section 4 of Ho et al. 2020; Song et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion, keys
from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers.base import Sampler, initial_noise, sample, sample_path
from ddpm_jax.schedules import Level


def progressive(
    key: jax.Array, sampler: Sampler, denoise: Denoise, levels: Level, shape: Sequence[int], ids: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """Progressive generation, figure 6: the estimate of x0 at every step.

    Args:
        key, sampler, denoise, levels, shape, ids: Same as for `samplers.sample`.

    Returns:
        The samples [B, ...], and the estimates of x0 at each step [N, B, ...], the first from the initial noise.
    """
    return sample_path(key, sampler, denoise, levels, shape, ids, keep=lambda x, denoised: denoised.x0)


def tail(levels: Level, t: int) -> Level:
    """The sub-grid from the first level at time t or below to the end.

    Args:
        levels: A grid [N + 1] towards the data.
        t: At least the time of the last level but one.

    Raises:
        ValueError: no step is left, or levels are no grid.
        TypeError: levels are no Level.
    """
    arguments.check_grid(levels)
    start = int(np.argmax(np.asarray(levels.t) <= t))
    if levels.t[start] > t or start == len(levels.t) - 1:
        raise ValueError(f"t: expected at least {levels.t[-2]}, the last time of the grid, received {t}")
    return Level(*(a[start:] for a in levels))


def shared(
    key: jax.Array, sampler: Sampler, denoise: Denoise, levels: Level, t: int, shape: Sequence[int], first_id: int = 0
) -> jax.Array:
    """Images that share their x_t, figure 7: the larger t, the less they have in common.

    Args:
        key: A typed key.
        sampler: A stochastic method; with a deterministic one all images are the same.
        denoise: The denoiser.
        levels: A grid [N + 1] towards the data.
        t: The time of the shared x_t: that of sample first_id at the first level of the grid at t or below.
        shape: [B, ...].
        first_id: Index of the sample whose x_t they share.

    Returns:
        The samples [B, ...].

    Raises:
        ValueError: t below the last time of the grid.
    """
    rest = tail(levels, t)
    begun, one, ids = len(levels.t) - len(rest.t), (1, *shape[1:]), jnp.array([first_id])
    head = Level(*(a[: begun + 1] for a in levels))
    x_t = sample(key, sampler, denoise, head, one, ids) if begun > 0 else initial_noise(key, levels, one, ids)
    parted = keys.stream(key, "parted")
    return sample(parted, sampler, denoise, rest, shape, x_init=jnp.broadcast_to(x_t, tuple(shape)))


def interpolate(
    key: jax.Array,
    sampler: Sampler,
    denoise: Denoise,
    levels: Level,
    t: int,
    a: jax.Array,
    b: jax.Array,
    fractions: Sequence[float],
) -> jax.Array:
    """Interpolation between images, figure 8: samples from (1 - l) x_t + l x'_t, with x_t ~ q(x_t | a), x'_t ~ q(x_t | b).

    The noise is the same for all fractions l.

    Args:
        key: A typed key.
        sampler: The method.
        denoise: The denoiser.
        levels: A grid [N + 1] towards the data.
        t: The time of the mixture: the first level of the grid at t or below. The paper shows 500 of 1000.
        a, b: Clean data [B, ...], in [-1, 1].
        fractions: l, each in [0, 1].

    Returns:
        [len(fractions), B, ...].

    Raises:
        ValueError: t below the last time of the grid, or a fraction outside [0, 1].
    """
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions: expected values in [0, 1], received {fractions}")
    arguments.check_floating("a", a)
    arguments.check_shape("b", b, a.shape, "the shape of a")
    rest = tail(levels, t)
    level = Level(*(jnp.asarray(part[0]) for part in rest))
    ids = jnp.arange(len(a))
    eps_a, eps_b = (keys.draw(jax.random.normal, keys.per_example(keys.stream(key, end), ids), a.shape[1:]) for end in "ab")
    x_a, x_b = diffusion.add_noise(level, a, eps_a), diffusion.add_noise(level, b, eps_b)

    def at(fraction: jax.Array) -> jax.Array:
        return sample(key, sampler, denoise, rest, a.shape, x_init=(1 - fraction) * x_a + fraction * x_b)

    return jax.lax.map(at, jnp.asarray(fractions))


def slerp(
    sampler: Sampler, denoise: Denoise, levels: Level, a: jax.Array, b: jax.Array, fractions: Sequence[float]
) -> jax.Array:
    """Spherical interpolation between the initial noise of two images: Eq. 67 of Song et al. 2020 (arXiv 2010.02502).

        x_T = sin((1 - l) theta) / sin(theta) a + sin(l theta) / sin(theta) b,    theta the angle between a and b

    Fraction 0 is the sample from a, and 1 the sample from b.

    Args:
        sampler: A deterministic method.
        denoise: The denoiser.
        levels: A grid [N + 1] towards the data.
        a: Noise [B, ...], from `samplers.base.initial_noise` or from inversion.
        b: Same as a, and no multiple of it.
        fractions: l, each in [0, 1].

    Returns:
        [len(fractions), B, ...].

    Raises:
        TypeError: a stochastic sampler.
        ValueError: a fraction outside [0, 1].
    """
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions: expected values in [0, 1], received {fractions}")
    arguments.check_floating("a", a)
    arguments.check_shape("b", b, a.shape, "the shape of a")
    axes = tuple(range(1, a.ndim))
    lengths = jnp.sqrt(jnp.sum(a**2, axes, keepdims=True) * jnp.sum(b**2, axes, keepdims=True))
    theta = jnp.arccos(jnp.sum(a * b, axes, keepdims=True) / lengths)

    def at(fraction: jax.Array) -> jax.Array:
        x = (jnp.sin((1 - fraction) * theta) * a + jnp.sin(fraction * theta) * b) / jnp.sin(theta)
        return sample(None, sampler, denoise, levels, a.shape, x_init=x)

    return jax.lax.map(at, jnp.asarray(fractions))
