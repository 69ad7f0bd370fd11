"""An in-memory cache of decoded images."""

from __future__ import annotations

import threading

import numpy as np

from ddpm_jax.data.sources import Source, check_source


class CachedSource(Source):
    """A source whose items are decoded once and kept in memory, if all of them fit. Only `take` uses the cache.

    Args:
        source: A source that decodes its images, such as `ImageFiles` or `TfdsRecords`.
        max_bytes: Size limit of the cache; a larger source is not cached at all.

    Attributes:
        num_classes, classes: Those of the source.
    """

    def __init__(self, source: Source, max_bytes: int = 2**30):
        check_source(source)
        self.num_classes, self.classes = source.num_classes, getattr(source, "classes", None)
        self._source, self._max_bytes = source, max_bytes
        self._known = np.zeros(len(source), bool)
        self._arrays: dict[str, np.ndarray] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[index]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        arrays = self._buffers()
        if not arrays:
            return self._source.take(indices)
        for index in np.unique(indices[~self._known[indices]]):
            for name, value in self._source[int(index)].items():
                arrays[name][index] = value
            self._known[index] = True
        return {name: array[indices] for name, array in arrays.items()}

    def _buffers(self) -> dict[str, np.ndarray]:
        """One array per key of the items, allocated lazily by the operating system; empty if the items do not fit."""
        with self._lock:
            if self._arrays is None:
                first = self._source[0]
                fits = len(self) * sum(value.nbytes for value in first.values()) <= self._max_bytes
                kept = first if fits else {}
                self._arrays = {name: np.empty((len(self), *value.shape), value.dtype) for name, value in kept.items()}
            return self._arrays
