"""How many CIFAR-10 images a second does the input pipeline give on one core?

    taskset -c 0 python benchmarks/loader.py

The images are random, in CIFAR-10's shape: in memory, as from an .npz file, and as PNG, as TensorFlow Datasets keeps them, in
the first epoch and in those that follow, whose images were kept. Batches of 128, of a shuffled set of 12,800; by the clock and
by the time that the processor spent.
"""

import contextlib
import io
import time

import numpy as np
from PIL import Image

from ddpm_jax.data import cache, pipeline, sources, tfds


def encoded(image: np.ndarray) -> bytes:
    """As PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def measure(source: sources.Source, first: int, num_batches: int) -> tuple[float, float]:
    """Images a second from a batch on, by the clock and by the processor's time."""
    with contextlib.closing(pipeline.iterate(pipeline.batches(source, 128, seed=0), first)) as batches:
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(num_batches):
            next(batches)
        spent = time.perf_counter() - clock, time.process_time() - processor
    return 128 * num_batches / spent[0], 128 * num_batches / spent[1]


def main() -> None:
    """Prints a line a source."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (12_800, 32, 32, 3), np.uint8), rng.integers(0, 10, 12_800)
    smooth = image // 8 + np.arange(32, dtype=np.uint8)[:, None] * 6  # noise alone would not compress
    records = [{"image": encoded(a), "label": b} for a, b in zip(smooth, label, strict=True)]
    png = cache.CachedSource(tfds.TfdsRecords(records, image_size=None, channels=3, num_classes=10))
    for name, source, epoch in (("in memory", sources.Arrays(image, label), 0), ("PNG", png, 0), ("PNG, kept", png, 1)):
        clock, processor = measure(source, 100 * epoch, 100)
        print(f"{name:12}{clock:12,.0f} images/s by the clock{processor:12,.0f} by the processor")


if __name__ == "__main__":
    main()
