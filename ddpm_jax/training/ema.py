"""The exponential moving average of the parameters, with which samples are drawn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def update(ema: Any, params: Any, num_updates: jax.Array, decay: float, warmup: bool = False) -> Any:
    """Ema <- d ema + (1 - d) params; the first update is a copy.

    Args:
        ema: The average, a tree of float32 arrays.
        params: The parameters, a tree of the same shapes.
        num_updates: n, how many updates came before.
        decay: d, in [0, 1).
        warmup: Whether d is at most (1 + n) / (10 + n), so that the average of a short run forgets where it started.

    Returns:
        The new average.
    """
    d = jnp.minimum(decay, (1 + num_updates) / (10 + num_updates)) if warmup else decay
    d = jnp.where(num_updates == 0, 0.0, d)
    return jax.tree.map(lambda average, new: d * average + (1 - d) * new, ema, params)
