"""Images that are decoded once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ddpm_jax.data.sources import Source


class CachedSource:
    """A source whose items, taken in batches, are decoded once and kept in memory where all of them find room.

    Args:
        source: Such as `Files` or `Records`.
        most: Bytes of room.

    Attributes:
        num_classes: The source's.
    """

    def __init__(self, source: Source, most: int = 2**30):
        self.num_classes = source.num_classes
        self._source, self._most = source, most
        self._known = np.zeros(len(source), bool)
        self._arrays: dict[str, np.ndarray] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[index]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The items of these numbers [B], stacked: `image` uint8 [B, H, W, C], `label` int32 [B]."""
        arrays = self._room()
        if not arrays:
            return stacked(self._source, indices)
        for index in indices[~self._known[indices]]:
            for name, value in self._source[int(index)].items():
                arrays[name][index] = value
            self._known[index] = True
        return {name: array[indices] for name, array in arrays.items()}

    def _room(self) -> dict[str, np.ndarray]:
        """An array for each part of the items, whose memory is taken as it is filled; none where they would be too large."""
        with self._lock:
            if self._arrays is None:
                first = self._source[0]
                fits = len(self) * sum(value.nbytes for value in first.values()) <= self._most
                kept = first if fits else {}
                self._arrays = {name: np.empty((len(self), *value.shape), value.dtype) for name, value in kept.items()}
            return self._arrays


def stacked(source: Source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The items of these numbers [B] from a source that gives them one by one, stacked: `image` uint8 [B, H, W, C], ..."""
    items = [source[int(index)] for index in indices]
    return {name: np.stack([item[name] for item in items]) for name in items[0]}
