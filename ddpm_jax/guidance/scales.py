"""The scale of guidance, and the range of noise levels in which it applies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion
from ddpm_jax.schedules import Level

Interval = tuple[float, float]
"""The smallest and the largest log(alpha^2 / sigma^2) at which guidance is on."""


def checked_scale(scale: ArrayLike) -> jax.Array:
    """The scale as an array () or [B].

    Raises:
        TypeError: no numbers.
        ValueError: two dimensions or more, or concrete numbers that are not finite.
    """
    if not isinstance(scale, (int, float, list, tuple)) and not hasattr(scale, "dtype"):
        raise TypeError(f"scale: expected a number or [B], received {arguments.described(scale)}")
    if jnp.ndim(scale) > 1:
        raise ValueError(f"scale: expected a number or [B], received shape {jnp.shape(scale)}")
    if not arguments.is_traced(scale) and not np.all(np.isfinite(np.asarray(scale, np.float64))):
        raise ValueError(f"scale: expected finite numbers, received {scale}")
    return jnp.asarray(scale)


def checked_interval(interval: Interval | None) -> Interval:
    """The interval; all real numbers by default."""
    interval = interval or (-np.inf, np.inf)
    if not interval[0] < interval[1]:
        raise ValueError(f"interval: expected (low, high) in log_snr, low below high, received {interval}")
    return interval


def scale_at(scale: jax.Array, x_t: jax.Array, level: Level | None = None, interval: Interval | None = None) -> jax.Array:
    """The scale at a level, to broadcast against x_t; 1 outside the interval."""
    if scale.ndim and scale.shape != x_t.shape[:1]:
        raise ValueError(f"scale: expected a number or shape {x_t.shape[:1]}, received shape {scale.shape}")
    if level is not None and interval is not None:
        scale = jnp.where((level.log_snr >= interval[0]) & (level.log_snr <= interval[1]), scale, 1.0)
    return diffusion.expand(scale, x_t).astype(jnp.promote_types(x_t.dtype, jnp.float32))
