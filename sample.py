"""Generates images with a trained model: `python sample.py --workdir runs/digits --num 64 --out out/digits`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ddpm_jax import factory, samplers, schedules
from ddpm_jax.config import Config, Sample, check_seed, sampling
from ddpm_jax.config.cli import UsageError, as_usage_error, parse, run_script
from ddpm_jax.config.paths import LocalPath
from ddpm_jax.data import images
from ddpm_jax.devices import compiler, sharding
from ddpm_jax.factory import LoadedRun
from ddpm_jax.pipelines.image import ImageEdit
from ddpm_jax.runs import progress
from ddpm_jax.runs.resumable import fingerprint
from ddpm_jax.runs.sample_folder import SampleFolder
from ddpm_jax.training import memory

FIGURES = pathlib.Path(__file__).parent / "examples" / "paper_figures.py"


@dataclasses.dataclass(frozen=True)
class Options:
    """The samples to generate. Options of sampling default to those of the run."""

    workdir: LocalPath = "runs/digits"
    """Folder of the trained model."""
    out: LocalPath = "out"
    """Folder for samples.npz (`image`, uint8 [N, H, W, C], and `index` [N], their numbers), grid.png (the first 256 of them)
    and settings.json. Samples of the same settings join those that are there, also from several processes at once."""
    png: bool = False
    """Also write each as images/<its index>.png."""
    first: int = 0
    """Index of the first sample; sample i depends on (seed, i) alone, not on first, num or batch_size."""
    batch_size: int = 64
    """Samples generated at once."""
    checkpoint: int | Literal["best"] | None = None
    """Step of the checkpoint, or best for the smallest mean training loss of those kept; the last by default."""
    ema: str | None = None
    """EMA of the parameters: its name, such as power_0.1; raw for the parameters themselves; a number for the EMA of that
    width, reconstructed from snapshots. The run's first by default."""
    sample: Annotated[Sample, tyro.conf.arg(name="")] = dataclasses.field(default_factory=sampling.Ddpm)
    weaker: LocalPath | None = None
    """Autoguidance (Karras et al. 2024): folder of a weaker version of the model, which replaces the unconditional one."""
    weaker_checkpoint: int | None = None
    """Step of its checkpoint; the last by default."""
    weaker_ema: str | None = None
    """EMA of its parameters."""
    init_image: LocalPath | None = None
    """Image to start from instead of noise (SDEdit), or to inpaint; of the model's size."""
    strength: float | None = None
    """SDEdit: how far to depart from the image, 0 to 1; 0.5 by default."""
    inpaint: LocalPath | None = None
    """Mask of --init-image: white where the image is kept, black where it is filled in."""
    resamplings: int | None = None
    """RePaint (Lugmayr et al. 2022): number of passes over each stretch of --jump_length steps of --inpaint."""
    jump_length: int | None = None
    """RePaint: steps per stretch; 10 by default."""


def main(argv: Sequence[str]) -> None:
    """Reads the options and the workdir, generates, and writes the images."""
    if any(word.split("=")[0] in ("--film", "--shared", "--interpolate", "--slerp", "--coding") for word in argv):
        sys.path.insert(0, str(FIGURES.parent))
        importlib.import_module(FIGURES.stem).main(argv)
        return print("figures of the paper have moved: python examples/paper_figures.py takes the same options")
    options = read_options(argv)
    check(options)

    # The model, its sampler, and an image to start from.
    sample, batch_size = options.sample, min(options.batch_size, options.sample.num)
    compiler.divide_cores(batch_size)
    model, weaker = load_models(options)
    config = factory.with_label_indices(dataclasses.replace(model.config, sample=sample), model.classes)
    edit = read_edit(options, model.image_shape)
    check_sizes(options, model, batch_size)
    make_generator = functools.partial(
        factory.make_generator, config, model.network, model.schedule, model.image_shape, edit, weaker
    )
    gamma = None
    if isinstance(sample, sampling.AnalyticDpm):
        make_generator(np.ones(1))  # checks the other options before the work
        gamma = estimate_gamma(sample, model)
    generate = make_generator(gamma)
    params = model.params if weaker is None else (model.params, weaker.params)

    # The samples, batch by batch; those of an interrupted run stay.
    out = pathlib.Path(options.out)
    indices = range(options.first, options.first + sample.num)
    about = {name: getattr(options, name) for name in ("workdir", "weaker", "init_image", "inpaint")}
    settings = settings_of(options, config, model, weaker) | {"weights": fingerprint((params, edit, gamma))}
    with as_usage_error("--out"):
        folder = SampleFolder(out, settings, indices, batch_size, options.png, about)
    missing = folder.missing
    with progress.Progress(len(missing), "batch", "sampling", images=batch_size) as shown:
        generate = compiler.compiled(generate, "the sampler", shown.say, shown.doing)
        shown.begin()
        for batch in missing:
            ids = sharding.put_ids(model.mesh, folder.numbers(batch))
            image = jax.device_get(generate(jax.random.key(sample.seed), params, ids))
            with as_usage_error("--out"):
                folder.add(batch, image)
            shown.advance()
    with progress.doing("writing the samples"), as_usage_error("--out"):
        folder.finish()
    files = f"{out / 'grid.png'}, {out / 'samples.npz'}"
    print(f"{sample.num} images from step {model.step} of {options.workdir}, {model.average}: {files}")


def read_options(argv: Sequence[str]) -> Options:
    """The options; those of sampling default to the run's."""
    run = factory.find_named(argv, Options().workdir)
    sample = sampling.Ddpm() if run is None else run.config.sample
    return parse(Options(sample=dataclasses.replace(sample, num=64, seed=0)), argv, str(__doc__), flat="sample")


def check(options: Options) -> None:
    """Raises UsageError for options that are wrong whatever the model."""
    positive = {"num": options.sample.num, "batch_size": options.batch_size, "jump_length": options.jump_length}
    positive |= {"resamplings": options.resamplings, "gamma_images": vars(options.sample).get("gamma_images")}
    for name, value in positive.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name}: expected at least 1, received {value}")
    if options.first < 0:
        raise UsageError(f"--first: expected 0 or more, received {options.first}")
    check_seed("--seed", options.sample.seed)
    for name in ("strength", "inpaint"):
        if getattr(options, name) is not None and options.init_image is None:
            raise UsageError(f"--{name}: expected with --init-image, received without")
    if options.strength is not None and not 0 <= options.strength <= 1:
        raise UsageError(f"--strength: expected 0 to 1, received {options.strength}")
    if options.strength is not None and options.inpaint is not None:
        raise UsageError("--strength: expected without --inpaint, which starts from noise, received with")
    if options.resamplings is not None and options.inpaint is None:
        raise UsageError("--resamplings: expected with --inpaint, received without")
    if options.jump_length is not None and options.resamplings is None:
        raise UsageError("--jump_length: expected with --resamplings, received without")
    for name in ("weaker_checkpoint", "weaker_ema"):
        if getattr(options, name) is not None and options.weaker is None:
            raise UsageError(f"--{name}: expected with --weaker, received without")


def load_models(options: Options) -> tuple[LoadedRun, LoadedRun | None]:
    """The model, and the weaker one of autoguidance if there is one."""
    with progress.doing("loading the model"):
        model = factory.load_named(options.workdir, options.ema, options.checkpoint)
    if options.weaker is None:
        return model, None
    names = ("--weaker", "--weaker_ema", "--weaker_checkpoint")
    weaker = factory.load_named(options.weaker, options.weaker_ema, options.weaker_checkpoint, names)
    if (pathlib.Path(options.weaker).resolve(), weaker.step, weaker.average) == (
        pathlib.Path(options.workdir).resolve(), model.step, model.average,
    ):  # fmt: skip
        raise UsageError("--weaker: expected another model, checkpoint or EMA than that of --workdir")
    if weaker.image_shape != model.image_shape:
        raise UsageError(f"--weaker: expected a model of images of {model.image_shape}, received {weaker.image_shape}")
    return model, weaker


def check_sizes(options: Options, model: LoadedRun, batch_size: int) -> None:
    """Raises UsageError for batches beyond the memory of a device, or samples beyond the room on the disk."""
    size = math.prod(model.image_shape)
    with as_usage_error("--batch_size"):
        memory.check_fits(batch_size * size * 4 // model.mesh.size, "images")
    out = pathlib.Path(options.out).absolute()
    free = shutil.disk_usage(next(folder for folder in (out, *out.parents) if folder.is_dir())).free
    if options.sample.num * size > free:
        raise UsageError(f"--num: expected at most {free // size:,} images, for which the disk has room, "
                         f"received {options.sample.num:,}")  # fmt: skip


def read_edit(options: Options, image_shape: tuple[int, int, int]) -> ImageEdit | None:
    """The image to start from instead of noise, or None. Raises UsageError for files that do not fit."""
    if options.init_image is None:
        return None
    with as_usage_error("--init-image"):
        image = images.load(options.init_image, image_shape) / np.float32(127.5) - 1
    if options.inpaint is None:
        return ImageEdit(image, strength=0.5 if options.strength is None else options.strength)
    with as_usage_error("--inpaint"):
        mask = images.load(options.inpaint, (*image_shape[:2], 1)) / np.float32(255)
    return ImageEdit(
        image, mask, resamplings=options.resamplings, jump_length=10 if options.jump_length is None else options.jump_length
    )


def estimate_gamma(sample: sampling.AnalyticDpm, model: LoadedRun, batch_size: int = 64) -> np.ndarray:
    """E|eps|^2 at every timestep over images of the training data, for Analytic-DPM.

    Its noise depends on the batch size, which is therefore not that of the samples: they depend on (seed, i) alone.
    """
    with as_usage_error("--sampler"):
        schedule = schedules.require_discrete(model.schedule, "analytic_dpm")
    with progress.doing("reading the data"):
        source = factory.make_source(model.config.data)
    num = min(sample.gamma_images, len(source))

    @jax.jit
    def estimate(key: jax.Array, params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        denoise = factory.bind(model.config, model.network, schedule, params, False, label)
        return samplers.mean_squared_eps(key, schedule, denoise, images.to_float(image))

    total = np.zeros(schedule.num_steps)
    with progress.Progress(num, "image", "estimating E|eps|^2") as shown:
        shown.begin()
        for first in range(0, num, batch_size):
            batch = source.take(np.arange(first, min(first + batch_size, num)))
            label = batch.get("label", np.full(len(batch["image"]), -1, np.int32))
            key = jax.random.fold_in(jax.random.key(sample.seed), first)
            total += len(label) * np.asarray(estimate(key, model.params, batch["image"], label), np.float64)
            shown.advance(len(label))
    return total / num


def settings_of(options: Options, config: Config, model: LoadedRun, weaker: LoadedRun | None) -> dict[str, Any]:
    """The settings that samples depend on, besides their numbers and the arrays; by the names of the options if there are."""
    settings = dataclasses.asdict(config.sample) | {"checkpoint": model.step, "ema": model.average}
    del settings["num"]
    settings |= {"weaker_checkpoint": None, "weaker_ema": None}
    if weaker is not None:
        settings |= {"weaker_checkpoint": weaker.step, "weaker_ema": weaker.average}
    settings |= {name: getattr(options, name) for name in ("strength", "resamplings", "jump_length")}
    return settings | {part: dataclasses.asdict(getattr(config, part)) for part in ("network", "diffusion")}


if __name__ == "__main__":
    run_script(main, section="sample.")
