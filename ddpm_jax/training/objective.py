"""The seam between the training loop and whatever it trains: a diffusion model, an autoencoder, a student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Sums and counts by name, scalars: they add up over microbatches and steps, and are written down as sum / count."""
Losses = Callable[[Any, jax.Array, jax.Array, Batch, jax.Array, Any, Any], tuple[jax.Array, jax.Array, Metrics, Any]]
"""(params, key, step, batch, ids, frozen, memory) -> (losses [B], weights [B], metrics, noted)."""
Preview = Callable[[Any, jax.Array, Any], jax.Array]
"""(params, key, frozen) -> uint8 [N, H, W, C]."""


def _forget(memory: Any, noted: Any) -> Any:
    return memory


def _no_preview(params: Any, key: jax.Array, frozen: Any) -> Any:
    return None


class Objective(NamedTuple):
    """What is minimised. `training` compiles it and takes steps on it, and knows nothing else of it.

    Attributes:
        init: (key) -> the parameters before training.
        losses: (params, key, step, batch, ids, frozen, memory) -> the losses [B] and their weights [B], whose products' mean
            is minimised; metrics; and what `remember` is given, a pytree of arrays [B, ...]. The batch is one microbatch of
            the global batch, ids the global indices of its examples. All randomness follows from (key, step, ids), so that
            devices and microbatches change nothing.
        preview: (params, key, frozen) -> images to look at, uint8 [N, H, W, C], or None; params are the average to sample with.
        remember: (memory, noted of the global batch) -> memory, after each step that was finite.
        frozen: Arrays that are read, never trained or saved, such as a teacher's parameters.
        memory: What the first step remembers, a pytree of arrays; it is saved as part of the training state.
    """

    init: Callable[[jax.Array], Any]
    losses: Losses
    preview: Preview = _no_preview
    remember: Callable[[Any, Any], Any] = _forget
    frozen: Any = ()
    memory: Any = ()
