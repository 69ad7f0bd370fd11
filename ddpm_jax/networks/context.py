"""What a generator is conditioned on besides labels: the output of a text encoder, or of any other."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Context(NamedTuple):
    """A condition for each example of a batch.

    Attributes:
        tokens: [B, L, D].
        mask: Booleans [B, L], False for padding; None: all tokens count.
        pooled: One vector per example, [B, E]; None if there is none.
    """

    tokens: jax.Array
    mask: jax.Array | None = None
    pooled: jax.Array | None = None
