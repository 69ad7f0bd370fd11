"""How many CIFAR-10 images per second does the input pipeline deliver on one core?

    taskset -c 0 python benchmarks/loader.py

The images are random, in CIFAR-10's shape: in memory, as from an .npz file, and as PNG, as in TensorFlow Datasets, in the
first epoch and in later ones, when the decoded images are cached. Batches of 128 from a shuffled set of 12,800, by wall-clock
and by processor time.
"""

import contextlib
import io
import time

import numpy as np
from PIL import Image

from ddpm_jax.data import cache, pipeline, sources, tfds


def encoded(image: np.ndarray) -> bytes:
    """The image as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def measure(source: sources.Source, first: int, num_batches: int) -> tuple[float, float]:
    """Images per second from batch `first` on, by wall-clock and by processor time."""
    with contextlib.closing(pipeline.iterate(pipeline.batches(source, 128, seed=0), first)) as batches:
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(num_batches):
            next(batches)
        spent = time.perf_counter() - clock, time.process_time() - processor
    return 128 * num_batches / spent[0], 128 * num_batches / spent[1]


def main() -> None:
    """Prints one line per source."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (12_800, 32, 32, 3), np.uint8), rng.integers(0, 10, 12_800)
    smooth = image // 8 + np.arange(32, dtype=np.uint8)[:, None] * 6  # noise alone would not compress
    records = [{"image": encoded(a), "label": b} for a, b in zip(smooth, label, strict=True)]
    png = cache.CachedSource(tfds.TfdsRecords(records, image_size=None, channels=3, num_classes=10))
    for name, source, epoch in (("in memory", sources.Arrays(image, label), 0), ("PNG", png, 0), ("PNG, cached", png, 1)):
        clock, processor = measure(source, 100 * epoch, 100)
        print(f"{name:12}{clock:12,.0f} images/s of wall-clock time{processor:12,.0f} of processor time")


if __name__ == "__main__":
    main()
