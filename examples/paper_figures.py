"""The figures of section 4 of Ho et al. 2020, and the interpolation of Song et al. 2020, from a trained model.

    python examples/paper_figures.py --workdir runs/digits --film 10 --out out/film

One figure at a time: --film, --shared, --interpolate, --slerp or --coding. Its function below returns rows of images, float32
[rows, columns, H, W, C]; the mathematics is in `samplers.interpolation` and `likelihood.coding`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ddpm_jax import factory, likelihood
from ddpm_jax.config import Sample, check_seed, sampling
from ddpm_jax.config.cli import UsageError, as_usage_error, parse, run_script
from ddpm_jax.config.paths import LocalPath
from ddpm_jax.data import images
from ddpm_jax.denoiser import Denoise
from ddpm_jax.factory import LoadedRun
from ddpm_jax.samplers import Sampler, interpolation
from ddpm_jax.samplers.base import initial_noise
from ddpm_jax.schedules import Level, require_discrete


@dataclasses.dataclass(frozen=True)
class Options:
    """Which figure of which model. Options of sampling default to those of the run."""

    # The figure: one of these.
    film: int | None = None
    """Progressive generation, also as film.gif: the estimates of x0 of up to 16 samples, in this many frames."""
    shared: int | None = None
    """Samples that share x_t at this timestep; with a stochastic sampler."""
    interpolate: int | None = None
    """Up to 8 pairs of training images, mixed at this timestep with weights 0, 0.1, ..., 1 and denoised, between the pair."""
    slerp: int | None = None
    """Up to 8 pairs of samples, with this many in between from interpolated noise; with a deterministic sampler."""
    coding: int | None = None
    """Progressive coding of up to 8 training images: the receiver's estimates at this many stages, then the image."""

    # The model and its sampler, as for sample.py.
    workdir: LocalPath = "runs/digits"
    """Folder of the trained model."""
    out: LocalPath = "out"
    """Folder for the figure."""
    checkpoint: int | Literal["best"] | None = None
    """Step of the checkpoint, or best for the smallest mean training loss of those kept; the last by default."""
    ema: str | None = None
    """EMA of the parameters: its name, such as power_0.1; raw for the parameters themselves; a number for the EMA of that
    width, reconstructed from snapshots. The run's first by default."""
    sample: Annotated[Sample, tyro.conf.arg(name="")] = dataclasses.field(default_factory=sampling.Ddpm)


def main(argv: Sequence[str]) -> None:
    """Reads the options and the workdir, and writes the figure."""
    options = read_options(argv)
    name, value = figure_of(options)
    model = factory.load_named(options.workdir, options.ema, options.checkpoint)
    config = dataclasses.replace(model.config, sample=options.sample)
    model = model._replace(config=factory.with_label_indices(config, model.classes))
    factory.make_generator(model.config, model.network, model.schedule, model.image_shape)  # checks the options of sampling

    with as_usage_error(f"--{name}"):
        rows = jax.device_get(images.to_uint8(FIGURES[name](model, value)))

    out = pathlib.Path(options.out)
    with as_usage_error("--out"):
        out.mkdir(parents=True, exist_ok=True)
    if name == "film":
        images.save_film(out / "film.gif", rows.swapaxes(0, 1))
    columns = None if name == "shared" else rows.shape[1]
    images.save_grid(out / f"{name}.png", rows.reshape(-1, *model.image_shape), columns=columns)
    print(f"step {model.step} of {options.workdir}: {out / name}.png")


# Section 4.3: progressive generation and progressive coding.


def film(model: LoadedRun, num_frames: int) -> jax.Array:
    """Figure 6: one sample per row, as it is estimated from x_T, ..., x_1; `num_frames` of these estimates."""
    sampler, levels = sampler_of(model)
    shape = (min(model.config.sample.num, 16), *model.image_shape)
    frames = np.linspace(0, len(levels.t) - 2, num_frames).round().astype(int)
    denoise = factory.make_denoise_of(model.config, model.network, model.schedule)(model.params, jnp.arange(shape[0]))
    run = jax.jit(lambda: interpolation.progressive(key_of(model), sampler, denoise, levels, shape)[1][frames])
    return run().swapaxes(0, 1)


def shared(model: LoadedRun, t: int) -> jax.Array:
    """Figure 7: samples that share x_t, in one row."""
    require_discrete(model.schedule, "this figure")
    sampler, levels = sampler_of(model)
    shape, denoise = (model.config.sample.num, *model.image_shape), one_class(model)
    return jax.jit(lambda: interpolation.shared(key_of(model), sampler, denoise, levels, t, shape))()[None]


def coding(model: LoadedRun, num_stages: int) -> jax.Array:
    """Figure 5: training images as a receiver sees them after more and more bits, then the images."""
    schedule = require_discrete(model.schedule, "this figure")
    x0, labels = training_images(model, min(model.config.sample.num, 8))
    clip, variance = model.config.sample.clip, model.config.diffusion.variance.removesuffix("_raw")
    denoise = factory.bind(model.config, model.network, schedule, model.params, clip, labels)
    times = np.linspace(0, schedule.num_steps - 1, num_stages).round().astype(int).tolist()
    run = jax.jit(lambda: likelihood.progressive_coding(key_of(model), schedule, denoise, x0, times, variance))
    coded = run()
    for rate, mse in zip(coded.rate.mean(1), coded.mse.mean(1), strict=True):
        print(f"{rate:8.4f} bits/dim  RMSE {127.5 * np.sqrt(mse):7.3f} of 255")
    return jnp.concatenate([coded.x0, x0[None]]).swapaxes(0, 1)


# Section 4.4: interpolation, and that of Song et al. 2020.


def interpolate(model: LoadedRun, t: int) -> jax.Array:
    """Figure 8: pairs of training images, mixed at t and denoised, between the pair."""
    require_discrete(model.schedule, "this figure")
    sampler, levels = sampler_of(model)
    pairs, _ = training_images(model, 2 * min(model.config.sample.num, 8))
    a, b, weights = pairs[::2], pairs[1::2], np.linspace(0, 1, 11).tolist()
    denoise = one_class(model)
    run = jax.jit(lambda: interpolation.interpolate(key_of(model), sampler, denoise, levels, t, a, b, weights))
    return jnp.concatenate([a[None], run(), b[None]]).swapaxes(0, 1)


def slerp(model: LoadedRun, num_between: int) -> jax.Array:
    """Pairs of samples, and between them those of their noise, interpolated on the sphere."""
    sampler, levels = sampler_of(model)
    ids = jnp.arange(max(min(model.config.sample.num, 16) // 2, 1) * 2).reshape(-1, 2)
    shape, weights = (len(ids), *model.image_shape), np.linspace(0, 1, num_between + 2).tolist()
    a, b = (initial_noise(key_of(model), levels, shape, ids[:, end]) for end in (0, 1))
    denoise = one_class(model)
    try:
        rows = jax.jit(lambda: interpolation.slerp(sampler, denoise, levels, a, b, weights))()
    except TypeError:
        received = model.config.sample.sampler
        raise UsageError(f"--slerp: expected a sampler without noise, received {received}") from None
    return rows.swapaxes(0, 1)


FIGURES: dict[str, Callable[[LoadedRun, int], jax.Array]] = {
    "film": film, "shared": shared, "interpolate": interpolate, "slerp": slerp, "coding": coding,
}  # fmt: skip


# The model's parts.


def key_of(model: LoadedRun) -> jax.Array:
    return jax.random.key(model.config.sample.seed)


def sampler_of(model: LoadedRun) -> tuple[Sampler, Level]:
    """The sampler and its timestep grid."""
    parts = model.config.sample, model.config.diffusion, model.schedule
    return factory.make_sampler(*parts), factory.make_levels(*parts)


def one_class(model: LoadedRun) -> Denoise:
    """The denoiser of the first class asked for; the unconditional one if none was."""
    config = model.config
    if config.sample.label is None and config.network.num_classes is not None:
        sample = dataclasses.replace(config.sample, guidance=0.0, guidance_interval=None, guidance_rescale=0.0)
        config = dataclasses.replace(config, sample=sample)
    denoise_of = factory.make_denoise_of(config, model.network, model.schedule)
    return lambda x_t, level: denoise_of(model.params, jnp.zeros(len(x_t), jnp.int32))(x_t, level)


def training_images(model: LoadedRun, num: int) -> tuple[jax.Array, jax.Array]:
    """The first images of the training data, in [-1, 1], and their labels; -1 for unlabelled ones."""
    source = factory.make_source(model.config.data)
    batch = source.take(np.arange(min(num, len(source))))
    labels = batch.get("label", np.full(len(batch["image"]), -1))
    return images.to_float(jnp.asarray(batch["image"])), jnp.asarray(labels)


# The options.


def read_options(argv: Sequence[str]) -> Options:
    """The options; those of sampling default to the run's. Raises UsageError for those that are wrong whatever the model."""
    run = factory.find_named(argv, Options().workdir)
    sample = sampling.Ddpm() if run is None else run.config.sample
    options = parse(Options(sample=dataclasses.replace(sample, num=64, seed=0)), argv, str(__doc__), flat="sample")
    at_least_1 = {"num": options.sample.num, "film": options.film, "slerp": options.slerp, "coding": options.coding}
    for name, value in at_least_1.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name}: expected at least 1, received {value}")
    check_seed("--seed", options.sample.seed)
    return options


def figure_of(options: Options) -> tuple[str, int]:
    """The name of the figure and its value. Raises UsageError unless there is exactly one."""
    asked = {name: getattr(options, name) for name in FIGURES if getattr(options, name) is not None}
    if len(asked) != 1:
        received = ", ".join(f"--{name}" for name in asked) or "none"
        raise UsageError(f"--{next(iter(asked), 'film')}: expected one experiment at a time, received {received}")
    return next(iter(asked.items()))


if __name__ == "__main__":
    run_script(main, section="sample.")
