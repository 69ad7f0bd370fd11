"""The input pipeline: a source shuffled, repeated and batched, with batches indexed by training step."""

from __future__ import annotations

import functools
import threading

import grain
import numpy as np

from ddpm_jax.data.sources import Source, check_source


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[dict[str, np.ndarray]]:
    """An infinite data set of batches, whose element n is this process's part of the global batch at step n.

    Element n is a pure function of (seed, n). Every epoch contains each example exactly once, in a new order. Epochs follow one
    another without a gap, so a batch may contain the end of one and the start of the next. The parts of all processes,
    concatenated in the order of their indices, are the batch that a single process would read. The orders of two epochs are
    kept in memory, at 8 bytes per example.

    Args:
        source: The images, and their labels if they have any.
        batch_size: Examples in the global batch, over all processes; it may exceed the size of the source.
        seed: The seed of the order, >= 0.
        shuffle: False keeps the order of the source, in every epoch.
        process_index: This process, in 0..process_count-1.
        process_count: The number of processes that share the global batch.

    Returns:
        Batches by step: the arrays of the source with a leading axis, `image` uint8 [batch_size / process_count, H, W, C].
        Elements are read on access.

    Raises:
        TypeError: the source has no method `take`.
        ValueError: a batch_size that is not a positive multiple of process_count; a process_index out of range; a negative
            seed; fewer examples than processes.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size: expected a positive multiple of {process_count} (processes), received {batch_size}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: expected 0..{process_count - 1}, received {process_index}")
    if seed < 0:
        raise ValueError(f"seed: expected an integer >= 0, received {seed}")
    if len(source) < process_count:
        raise ValueError(f"source: expected at least {process_count} examples, one per process, received {len(source)}")
    check_source(source)
    size, lock = batch_size // process_count, threading.Lock()

    @functools.lru_cache(maxsize=2)  # a batch may reach into the next epoch
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(source)) if shuffle else np.arange(len(source))

    def read(step: int) -> dict[str, np.ndarray]:
        first = step * batch_size + process_index * size
        epochs, places = np.divmod(np.arange(first, first + size), len(source))
        with lock:  # or several threads would compute the same order
            orders = {epoch: order(epoch) for epoch in range(epochs[0], epochs[-1] + 1)}
        return source.take(np.concatenate([order[places[epochs == epoch]] for epoch, order in orders.items()]))

    return grain.MapDataset.range(2**62 // batch_size).map(read)  # so that example indices fit in 64 bits


def iterate(
    batches: grain.MapDataset[dict[str, np.ndarray]], start: int = 0, *, num_threads: int = 8, buffer: int = 16
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Iterates over batches from a given step on, prefetched by worker threads.

    Args:
        batches: A data set from `batches`.
        start: The step of the first batch, >= 0; earlier batches are not read.
        num_threads: Worker threads, each of which reads whole batches.
        buffer: Batches that are prefetched, including those in progress; >= num_threads to keep all threads busy.

    Returns:
        An infinite iterator. Exceptions of the source are raised by `next`. `close()` (or `contextlib.closing`) ends the
        threads without waiting for them; they finish at most the batches that are in progress.
    """
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer)
    return iter(batches[start:].to_iter_dataset(options))
