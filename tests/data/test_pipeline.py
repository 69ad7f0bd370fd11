"""The pipeline: a pure function of (seed, step), with exact epochs, for any number of processes."""

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest

from ddpm_jax.data import cache, pipeline, sources


class Numbers(sources.Source):
    """Items that are their own index, and a record of those that were read."""

    num_classes = None

    def __init__(self, size, broken=(), delay=0.0):
        self.size, self.broken, self.delay = size, broken, delay
        self.read = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        time.sleep(self.delay)
        self.read.append(index)
        if index in self.broken:
            raise OSError(f"item {index} is broken")
        return {"image": np.full((1, 1, 1), index % 256, np.uint8), "label": np.asarray(index, np.int32)}


def order(batches, steps):
    """The indices of the examples in the given batches, in order."""
    return np.concatenate([batches[step]["label"] for step in steps]).tolist()


def test_batches_are_dicts_of_arrays_with_a_leading_axis():
    batch = pipeline.batches(sources.digits(), 4, seed=0)[0]
    assert batch["image"].shape == (4, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32


def test_image_and_label_stay_together():
    batch = pipeline.batches(Numbers(100), 32, seed=0)[5]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_a_batch_depends_on_seed_and_step_alone():
    one, two = pipeline.batches(Numbers(50), 8, seed=3), pipeline.batches(Numbers(50), 8, seed=3)
    forwards = [order(one, [step]) for step in range(20)]
    backwards = [order(two, [step]) for step in reversed(range(20))]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("batch_size", [1, 7, 10, 16, 25])
def test_every_epoch_has_every_example_once(batch_size):
    batches = pipeline.batches(Numbers(10), batch_size, seed=1)
    seen = order(batches, range(70 // batch_size + 1))
    for epoch in range(7):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_every_epoch_has_another_order():
    seen = order(pipeline.batches(Numbers(100), 100, seed=0), range(20))
    assert len({tuple(seen[100 * epoch : 100 * epoch + 100]) for epoch in range(20)}) == 20


def test_every_order_is_equally_likely():
    """The six orders of three examples: 3,000 epochs, chi-squared with 5 degrees of freedom, whose 0.999 quantile is 20.5."""
    seen = np.reshape(order(pipeline.batches(Numbers(3), 3000, seed=0), range(3)), (-1, 3))
    _, counts = np.unique(seen, axis=0, return_counts=True)
    assert len(counts) == 6 and ((counts - 500) ** 2 / 500).sum() < 20.5


def test_neighbouring_seeds_share_no_epoch():
    def epochs(seed):
        return {tuple(order(pipeline.batches(Numbers(100), 100, seed), [step])) for step in range(10)}

    assert not epochs(0) & epochs(1)


def test_without_shuffling_the_order_of_the_source_is_kept():
    seen = order(pipeline.batches(Numbers(5), 3, seed=0, shuffle=False), range(4))
    assert seen == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_the_parts_of_all_processes_make_the_batch_of_one(process_count):
    whole = pipeline.batches(Numbers(20), 6, seed=2)
    parts = [
        pipeline.batches(Numbers(20), 6, seed=2, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    for step in [0, 1, 5, 1000]:
        together = np.concatenate([part[step]["label"] for part in parts])
        np.testing.assert_array_equal(together, whole[step]["label"])


def test_a_process_reads_only_its_part():
    source = Numbers(20)
    batches = pipeline.batches(source, 8, seed=0, process_index=1, process_count=2)
    batches[3]
    assert len(source.read) == 4


@pytest.mark.parametrize("batch_size, process_index, process_count", [(0, 0, 1), (-2, 0, 1), (6, 0, 4), (4, 2, 2)])
def test_impossible_batches_are_refused(batch_size, process_index, process_count):
    with pytest.raises(ValueError, match=r"expected .* received"):
        pipeline.batches(Numbers(9), batch_size, 0, process_index=process_index, process_count=process_count)


def test_a_source_may_read_a_batch_at_once():
    class Batched(Numbers):
        def take(self, indices):
            return {"label": indices.astype(np.int32) + 1000}

    source = Batched(9)
    batch = pipeline.batches(source, 4, seed=0, shuffle=False)[1]
    assert batch["label"].tolist() == [1004, 1005, 1006, 1007] and source.read == []


class Bare:
    """A class with the items of a source that does not inherit from it."""

    num_classes = None

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return {"image": np.zeros((1, 1, 1), np.uint8)}


@pytest.mark.parametrize("use", [lambda source: pipeline.batches(source, 4, seed=0), cache.CachedSource])
def test_a_class_without_take_is_refused(use):
    message = r"^source: expected a method take\(indices\), as inherited from sources\.Source, received Bare without it$"
    with pytest.raises(TypeError, match=message):
        use(Bare())


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed: expected an integer >= 0, received -1"):
        pipeline.batches(Numbers(9), 4, seed=-1)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="at least 1 examples"):
        pipeline.batches(Numbers(0), 4, seed=0)


@pytest.mark.parametrize("start", [0, 3, 10**12])
def test_iteration_starts_at_any_step_and_keeps_the_order(start):
    batches = pipeline.batches(Numbers(50, delay=0.001), 4, seed=0)
    with contextlib.closing(pipeline.iterate(batches, start)) as iterator:
        taken = [batch["label"].tolist() for batch in itertools.islice(iterator, 20)]
    assert taken == [batches[step]["label"].tolist() for step in range(start, start + 20)]


def test_iteration_reads_nothing_before_its_start():
    source = Numbers(1000)
    batches = pipeline.batches(source, 4, seed=0, shuffle=False)
    with contextlib.closing(pipeline.iterate(batches, 100, num_threads=2, buffer=2)) as iterator:
        next(iterator)
    assert min(source.read) == 400


def test_iteration_reads_ahead_in_threads():
    source = Numbers(1000)
    with contextlib.closing(pipeline.iterate(pipeline.batches(source, 1, seed=0), num_threads=2, buffer=8)) as iterator:
        next(iterator)
        deadline = time.monotonic() + 5
        while len(source.read) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(source.read) == 9  # the one that was consumed, and a full buffer


def test_an_exception_of_the_source_reaches_the_consumer():
    batches = pipeline.batches(Numbers(10, broken=(5,)), 2, seed=0, shuffle=False)
    with contextlib.closing(pipeline.iterate(batches)) as iterator:
        assert next(iterator)["label"].tolist() == [0, 1]
        assert next(iterator)["label"].tolist() == [2, 3]
        with pytest.raises(OSError, match="item 5 is broken"):
            next(iterator)


def test_closing_ends_the_threads_without_waiting_for_the_buffer():
    before = set(threading.enumerate())
    iterator = pipeline.iterate(pipeline.batches(Numbers(100, delay=0.2), 1, seed=0), num_threads=2, buffer=50)
    next(iterator)
    workers = set(threading.enumerate()) - before
    begun = time.monotonic()
    iterator.close()
    for worker in workers:
        worker.join(timeout=5)
    assert workers and not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - begun < 2  # 50 batches would take 5 seconds
