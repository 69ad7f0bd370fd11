"""The cache of decoded images."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import cache, files, pipeline, sources


class Counted(sources.Source):
    """Ten items, and how often each was read."""

    num_classes = 10
    classes = tuple("0123456789")

    def __init__(self):
        self.reads = np.zeros(10, int)

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"image": np.full((4, 4, 3), 20 * index, np.uint8), "label": np.asarray(index, np.int32)}


@pytest.mark.parametrize(("max_bytes", "reads"), [(10 * (48 + 4), 1), (10 * (48 + 4) - 1, 2)])
def test_images_are_decoded_once_if_all_of_them_fit(max_bytes, reads):
    source = Counted()
    once, numbers = cache.CachedSource(source, max_bytes), np.array([3, 9, 3, 1])
    for _ in range(2):
        taken = once.take(numbers)
        np.testing.assert_array_equal(taken["label"], numbers)
        np.testing.assert_array_equal(taken["image"], (20 * numbers)[:, None, None, None] * np.ones((4, 4, 3)))
        assert taken["image"].dtype == np.uint8
    assert once[5]["label"] == 5
    assert (once.num_classes, once.classes) == (10, source.classes)
    assert source.reads[9] == reads
    assert source.reads[2] == 0


def test_cached_images_reach_all_threads(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
    source = cache.CachedSource(files.folder(tmp_path, 8))
    with contextlib.closing(pipeline.iterate(pipeline.batches(source, 16, seed=0), num_threads=8)) as batches:
        seen = np.concatenate([next(batches)["image"] for _ in range(10)])
    expected = np.stack([source[i]["image"] for i in range(40)])
    for epoch in seen.reshape(4, 40, -1):
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, expected))
