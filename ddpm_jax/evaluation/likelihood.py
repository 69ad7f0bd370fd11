"""How likely a model finds images: each image once, whatever the batch and the number of devices."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import keys, likelihood
from ddpm_jax.data import images
from ddpm_jax.data.sources import Source
from ddpm_jax.denoiser import Denoise
from ddpm_jax.devices import compiler, sharding
from ddpm_jax.schedules import HasLevels, Schedule, log_snr_range

DenoiseOf = Callable[[jax.Array | None], Denoise]
"""Labels [B], None for images without -> the Denoise that is told of them."""
PerImage = Callable[[jax.Array, jax.Array, jax.Array | None], dict[str, jax.Array]]
"""(uint8 [B, H, W, C], ids [B], labels [B] or None) -> results, each [B, ...]; those of image i depend on what is its own."""


def bound(
    key: jax.Array,
    schedule: Schedule,
    denoise_of: DenoiseOf,
    variance: str,
    image: jax.Array,
    ids: jax.Array,
    labels: jax.Array | None,
):
    """`likelihood.bound` of images, as PerImage: `prior` [B], `terms` [B, T], `mse` [B, T]."""
    return likelihood.bound(key, schedule, denoise_of(labels), images.to_float(image), variance, ids=ids)._asdict()


def ode_nll(
    key: jax.Array,
    schedule: HasLevels,
    denoise_of: DenoiseOf,
    num_steps: int,
    exact: bool,
    image: jax.Array,
    ids: jax.Array,
    labels: jax.Array | None,
):
    """`likelihood.ode_log_likelihood` of dequantised images, as PerImage: `bits_per_dimension` [B].

    As Song et al. 2020 do, the images are given uniform noise over a grey value's width, and taken for the process's least
    noisy level.
    """
    dequantise = keys.per_example(keys.stream(key, "dequantise"), ids)
    x = images.to_float(image) + (keys.draw(jax.random.uniform, dequantise, image.shape[1:]) - 0.5) / 127.5
    noisiest, cleanest = log_snr_range(schedule)
    nats = likelihood.ode_log_likelihood(
        None if exact else key, schedule, denoise_of(labels), x, (cleanest, noisiest), num_steps, ids
    )
    return {"bits_per_dimension": likelihood.bits_per_dimension(nats, math.prod(image.shape[1:]))}


def in_batches(
    per_image: PerImage, source: Source, mesh: Mesh, batch_size: int, num: int, say: Callable[[str], None] = lambda line: None
) -> Callable[[int], dict]:
    """Makes what measures batch number n of the first num images of a source.

    Args:
        per_image: What is measured.
        source: The images.
        mesh: The devices, among which a batch is divided.
        batch_size: Images a batch; the last may hold fewer.
        num: How many images there are.
        say: Told how long it took to compile.

    Returns:
        n -> the results of its images, each [up to batch_size, ...]. What fills a batch up so that all have one shape that
        the devices divide is measured, and left out.
    """
    compiled = compiler.compiled(jax.jit(per_image, compiler_options=compiler.compiler_options()), "the measurement", say)
    filled = math.ceil(batch_size / mesh.size) * mesh.size

    def measure(batch: int) -> dict[str, np.ndarray]:
        ids = np.arange(batch * batch_size, min((batch + 1) * batch_size, num))
        all_ids = np.resize(ids, filled)
        items = [source[int(i)] for i in all_ids]
        placed = sharding.put_batch(
            mesh, {name: np.stack([item[name] for item in items]) for name in items[0]} | {"ids": all_ids.astype(np.int32)}
        )
        measured = compiled(placed["image"], placed["ids"], placed.get("label"))
        return {name: np.asarray(a)[: len(ids)] for name, a in measured.items()}

    return measure


def sums(measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is kept of a batch of `bound`: bits per dimension of every image, and sums over the batch of each term."""
    total = measured["prior"] + measured["terms"].sum(axis=1, dtype=np.float64)
    return {
        "bits_per_dimension": total,
        "prior": measured["prior"].sum(dtype=np.float64),
        "terms": measured["terms"].sum(axis=0, dtype=np.float64),
        "mse": measured["mse"].sum(axis=0, dtype=np.float64),
    }


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of [N] values and its standard error, nan for one value."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
