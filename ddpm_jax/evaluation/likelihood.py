"""Likelihood of held-out images, each evaluated once, independently of the batch size and the number of devices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

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
"""Labels [B], or None for unlabelled images -> the Denoise conditioned on them."""
PerImage = Callable[[jax.Array, jax.Array, jax.Array | None], dict[str, jax.Array]]
"""(uint8 [B, H, W, C], ids [B], labels [B] or None) -> results [B, ...], each of which depends on its own inputs alone."""


def bound(
    key: jax.Array,
    schedule: Schedule,
    denoise_of: DenoiseOf,
    variance: str,
    image: jax.Array,
    ids: jax.Array,
    labels: jax.Array | None,
):
    """`likelihood.bound` as a PerImage: `prior` [B], `terms` [B, T], `mse` [B, T]."""
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
    """`likelihood.ode_log_likelihood` of dequantised images as a PerImage: `bits_per_dimension` [B].

    As in Song et al. 2020, the images get uniform noise of one intensity level's width, and are treated as samples at the
    least noisy level of the process.
    """
    dequantise = keys.per_example(keys.stream(key, "dequantise"), ids)
    x = images.to_float(image) + (keys.draw(jax.random.uniform, dequantise, image.shape[1:]) - 0.5) / 127.5
    noisiest, cleanest = log_snr_range(schedule)
    nats = likelihood.ode_log_likelihood(
        None if exact else key, schedule, denoise_of(labels), x, (cleanest, noisiest), num_steps, ids
    )
    return {"bits_per_dimension": likelihood.bits_per_dimension(nats, math.prod(image.shape[1:]))}


def in_batches(
    per_image: PerImage,
    source: Source,
    mesh: Mesh,
    batch_size: int,
    num: int,
    say: Callable[[str], None] = lambda line: None,
    doing: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Callable[[int], dict]:
    """Makes a function that evaluates batch number n of the first num images of a source.

    Args:
        per_image: The function to evaluate.
        source: The images.
        mesh: The devices, over which a batch is sharded.
        batch_size: Images per batch; the last may have fewer.
        num: Number of images.
        say: Prints the compile time.
        doing: Announces the compilation, which runs within its context.

    Returns:
        n -> the results of its images, each [up to batch_size, ...]. Batches are padded to one shape that the devices divide,
        and the results of the padding are dropped.
    """
    jitted = jax.jit(per_image, compiler_options=compiler.compiler_options())
    compiled = compiler.compiled(jitted, "the measurement", say, doing)
    padded = math.ceil(batch_size / mesh.size) * mesh.size

    def measure(batch: int) -> dict[str, np.ndarray]:
        ids = np.arange(batch * batch_size, min((batch + 1) * batch_size, num))
        all_ids = np.resize(ids, padded)
        items = [source[int(i)] for i in all_ids]
        placed = sharding.put_batch(
            mesh, {name: np.stack([item[name] for item in items]) for name in items[0]} | {"ids": all_ids.astype(np.int32)}
        )
        measured = compiled(placed["image"], placed["ids"], placed.get("label"))
        return {name: np.asarray(a)[: len(ids)] for name, a in measured.items()}

    return measure


def sums(measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Summarizes a batch of `bound`: bits per dimension of every image, and the sum of each term over the batch."""
    total = measured["prior"] + measured["terms"].sum(axis=1, dtype=np.float64)
    return {
        "bits_per_dimension": total,
        "prior": measured["prior"].sum(dtype=np.float64),
        "terms": measured["terms"].sum(axis=0, dtype=np.float64),
        "mse": measured["mse"].sum(axis=0, dtype=np.float64),
    }


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of values [N] and its standard error, which is nan for one value."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
