"""The interface between the training loop and the model it trains: a diffusion model, an autoencoder, a student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Sums and counts by name, scalars: they are added over microbatches and steps, and logged as sum / count."""
Losses = Callable[[Any, jax.Array, jax.Array, Batch, jax.Array, Any, Any], tuple[jax.Array, jax.Array, Metrics, Any]]
"""(params, key, step, batch, ids, frozen, memory) -> (losses [B], weights [B], metrics, observed)."""
Preview = Callable[[Any, jax.Array, Any], jax.Array]
"""(params, key, frozen) -> uint8 [N, H, W, C]."""


def _forget(memory: Any, observed: Any) -> Any:
    return memory


def _no_preview(params: Any, key: jax.Array, frozen: Any) -> Any:
    return None


class Objective(NamedTuple):
    """The objective of a training run. `training` compiles it and minimises it, and knows nothing else about the model.

    Attributes:
        init: (key) -> the initial parameters.
        losses: (params, key, step, batch, ids, frozen, memory) -> (losses [B], weights [B], metrics, observed). The mean of
            weights * losses is minimised; `observed`, a pytree of arrays [B, ...], is passed to `remember`. The batch is one
            microbatch of the global batch, and ids are the global indices of its examples. All randomness follows from
            (key, step, ids), so that the number of devices and of microbatches changes nothing.
        preview: (params, key, frozen) -> samples for inspection, uint8 [N, H, W, C], or None; params are the EMA for sampling.
        remember: (memory, observed of the global batch) -> memory, called after each finite step.
        frozen: Arrays that are read but never trained or saved, such as a teacher's parameters.
        memory: The initial memory, a pytree of arrays; it is saved as part of the training state.
    """

    init: Callable[[jax.Array], Any]
    losses: Losses
    preview: Preview = _no_preview
    remember: Callable[[Any, Any], Any] = _forget
    frozen: Any = ()
    memory: Any = ()
