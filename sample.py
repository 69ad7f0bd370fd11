"""Draws images with a trained model: `python sample.py --workdir runs/digits --num 64 --out out/digits`."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddpm_jax import factory, likelihood, schedules
from ddpm_jax.config import Config, Grid, Method, check_seed
from ddpm_jax.config.cli import UsageError, as_usage_error, parse, run_script
from ddpm_jax.data import images
from ddpm_jax.denoiser import Denoise
from ddpm_jax.devices import compiler, sharding
from ddpm_jax.factory import LoadedRun
from ddpm_jax.pipelines.image import ImageEdit
from ddpm_jax.runs.sample_folder import SampleFolder
from ddpm_jax.samplers import Sampler, interpolation
from ddpm_jax.samplers.base import initial_noise
from ddpm_jax.schedules import Level


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw."""

    workdir: str = "runs/digits"
    """Where the model was trained."""
    num: int = 64
    """How many images."""
    first: int = 0
    """The number of the first of them."""
    out: str = "out"
    """The folder for samples.npz (`image`, uint8 [N, H, W, C]) and grid.png (the first 256 of them)."""
    png: bool = False
    """Also write each as images/<its number>.png."""
    seed: int = 0
    """Image i depends on (seed, i) alone, not on --first, --num or --batch-size."""
    batch_size: int = 64
    """Images drawn at once."""
    checkpoint: int | Literal["best"] | None = None
    """Which to draw with, by its step, or best for the smallest mean training loss of those kept; the last by default."""
    ema: str | None = None
    """The average of the parameters to draw with, by its name, such as power_0.1; raw for none; a number for one of this width,
    put together from snapshots. The first that the run has, by default."""
    sampler: Method | None = None
    """As the run's config says, by default; so for all below."""
    steps: int | None = None
    """Sampling steps."""
    eta: float | None = None
    """ddim: the share of noise that is drawn anew, 0 to 1."""
    variance: Literal["fixed_small", "fixed_large", "learned"] | None = None
    """ddpm: the variance of its steps."""
    order: int | None = None
    """dpm_solver_pp, dpm_solver_pp_sde, unipc, deis: the order."""
    grid: Grid | None = None
    """Which noise levels are visited."""
    label: tuple[int, ...] | None = None
    """Classes to draw, in turn: image i is of label i modulo their number."""
    guidance: float | None = None
    """0: whatever the class. 1: of the class. Above: more typical of it, at two network calls a step."""
    init_image: str | None = None
    """An image of the model's size to start from in place of noise."""
    strength: float | None = None
    """How far to depart from it, 0 to 1; 0.5 by default."""
    inpaint: str | None = None
    """Fill in parts of --init-image: a mask of the same size, white where the image stays, black where it is drawn."""
    film: int | None = None
    """Instead, film.png and film.gif: what up to 16 images are believed to be, at this many moments of the way."""
    shared: int | None = None
    """Instead, images that share their x_t at this t and part there; for a sampler that draws noise."""
    interpolate: int | None = None
    """Instead, up to 8 pairs of the data, mixed at this t by 0, 0.1, ..., 1, and denoised; the pair at the ends of each row."""
    slerp: int | None = None
    """Instead, up to 8 pairs of images and this many between the noise they come from; for a sampler that draws none."""
    coding: int | None = None
    """Instead, up to 8 images of the data as a receiver sees them at this many stages of progressive coding, then the data."""


def main(argv: Sequence[str]) -> None:
    """Reads the options and the workdir, draws, and writes the images."""
    options = parse(Options(), argv, str(__doc__))
    check(options)

    batch_size = min(options.batch_size, options.num)
    is_experiment = any(getattr(options, name) is not None for name in EXPERIMENTS)
    if not is_experiment:
        compiler.divide_cores(batch_size)
    with as_usage_error("--workdir"):
        model = factory.load(options.workdir, options.ema, options.checkpoint)
    config = with_options(model.config, options)
    edit = read_edit(options, model.image_shape)
    draw = factory.make_generator(config, model.network, model.schedule, model.image_shape, edit)
    out = pathlib.Path(options.out)
    if is_experiment:
        experiment(options, config, model, out)
        return

    # Batch after batch, from where it was.
    numbers = range(options.first, options.first + options.num)
    decides: dict[str, Any] = {part: dataclasses.asdict(getattr(config, part)) for part in ("network", "diffusion", "sample")}
    decides |= {"seed": options.seed, "weights": fingerprint((model.params, edit))}
    with as_usage_error("--out"):
        gallery = SampleFolder(out, decides, numbers, batch_size)
    draw = compiler.compiled(draw, "the sampler", tqdm.write)
    for batch in tqdm(gallery.missing, unit="batch", disable=None):
        ids = sharding.put_ids(model.mesh, gallery.numbers(batch))
        image = jax.device_get(draw(jax.random.key(options.seed), model.params, ids))
        with as_usage_error("--out"):
            gallery.add(batch, image)
    with as_usage_error("--out"):
        gallery.finish(options.png)
    files = f"{out / 'grid.png'}, {out / 'samples.npz'}"
    print(f"{options.num} images from step {model.step} of {options.workdir}, {model.average}: {files}")


EXPERIMENTS = ("film", "shared", "interpolate", "slerp", "coding")


class Experiment:
    """The figures of section 4 of Ho et al. 2020, and the interpolation of Song et al. 2020, from a trained model.

    Each method returns rows of images, float32 [rows, columns, H, W, C].
    """

    def __init__(self, options: Options, config: Config, model: LoadedRun):
        self.options, self.config, self.model = options, config, model
        self.key: jax.Array = jax.random.key(options.seed)
        self.sampler: Sampler = factory.make_sampler(config.sample, config.diffusion, model.schedule)
        self.levels: Level = factory.make_levels(config.sample, config.diffusion, model.schedule)
        self.labels = factory.make_labels(config.sample, config.network)

    def denoise(self, labels: jax.Array | None, guidance: float | None = None) -> Denoise:
        """The model, conditioned on labels [B], or on one for all."""
        model, sample = self.model, self.config.sample
        scale = sample.guidance if guidance is None else guidance
        return factory.bind(self.config, model.network, model.schedule, model.params, sample.clip, labels, scale)

    def one_label(self) -> jax.Array | None:
        """The first label asked for, for all samples; None if none was."""
        label = self.config.sample.label
        return None if label is None else jnp.int32(label[0])

    def data(self, num: int) -> tuple[jax.Array, jax.Array]:
        """The first images of the training data, in [-1, 1], and their labels."""
        source = factory.make_source(self.config.data)
        items = [source[i] for i in range(min(num, len(source)))]
        labels = np.stack([item.get("label", -1) for item in items])
        return images.to_float(jnp.asarray(np.stack([item["image"] for item in items]))), jnp.asarray(labels)

    def film(self, num_frames: int) -> jax.Array:
        """Progressive generation: the estimates of x0 at this many moments, one sample per row."""
        shape = (min(self.options.num, 16), *self.model.image_shape)
        moments = np.linspace(0, len(self.levels.t) - 2, num_frames).round().astype(int)
        denoise = self.denoise(self.labels(jnp.arange(shape[0])))
        run = jax.jit(lambda: interpolation.progressive(self.key, self.sampler, denoise, self.levels, shape)[1][moments])
        return run().swapaxes(0, 1)

    def shared(self, t: int) -> jax.Array:
        """Samples that share x_t."""
        num = self.options.num
        shape, denoise = (num, *self.model.image_shape), self.denoise(self.one_label())
        return jax.jit(lambda: interpolation.shared(self.key, self.sampler, denoise, self.levels, t, shape))()[None]

    def interpolate(self, t: int) -> jax.Array:
        """Pairs of the data, mixed at t and denoised, the pair at the ends of each row."""
        pairs, _ = self.data(2 * min(self.options.num, 8))
        a, b = pairs[::2], pairs[1::2]
        shares, denoise = np.linspace(0, 1, 11).tolist(), self.denoise(self.one_label())
        run = jax.jit(lambda: interpolation.interpolate(self.key, self.sampler, denoise, self.levels, t, a, b, shares))
        return jnp.concatenate([a[None], run(), b[None]]).swapaxes(0, 1)

    def slerp(self, num_between: int) -> jax.Array:
        """Pairs of samples, and this many between the noise they come from."""
        ids = jnp.arange(max(min(self.options.num, 16) // 2, 1) * 2).reshape(-1, 2)
        shape = (len(ids), *self.model.image_shape)
        a, b = (initial_noise(self.key, self.levels, shape, ids[:, end]) for end in (0, 1))
        shares, denoise = np.linspace(0, 1, num_between + 2).tolist(), self.denoise(self.one_label())
        try:
            run = jax.jit(lambda: interpolation.slerp(self.sampler, denoise, self.levels, a, b, shares))()
        except TypeError:
            sampler = self.config.sample.sampler
            raise UsageError(f"--slerp: expected a sampler without noise, received {sampler}") from None
        return run.swapaxes(0, 1)

    def coding(self, num_stages: int) -> jax.Array:
        """Images of the data as a receiver sees them at this many stages of progressive coding, then the data."""
        x0, labels = self.data(min(self.options.num, 8))
        schedule, denoise = schedules.require_discrete(self.model.schedule, "--coding"), self.denoise(labels, 1.0)
        times = np.linspace(0, schedule.num_steps - 1, num_stages).round().astype(int).tolist()
        variance = self.config.diffusion.variance.removesuffix("_raw")
        run = jax.jit(lambda: likelihood.progressive_coding(self.key, schedule, denoise, x0, times, variance))
        coded = run()
        for stage in range(len(coded.rate)):
            rate, error = coded.rate[stage].mean(), 127.5 * np.sqrt(coded.mse[stage].mean())
            print(f"{rate:8.4f} bits/dim  RMSE {error:7.3f} of 255")
        return jnp.concatenate([coded.x0, x0[None]]).swapaxes(0, 1)


def experiment(options: Options, config: Config, model: LoadedRun, out: pathlib.Path) -> None:
    """Writes the figure that was asked for."""
    (name,) = (name for name in EXPERIMENTS if getattr(options, name) is not None)
    figure: Callable[[int], jax.Array] = getattr(Experiment(options, config, model), name)
    with as_usage_error(f"--{name}"):
        if name in ("shared", "interpolate", "coding"):
            schedules.require_discrete(model.schedule, "this figure")
        rows = jax.device_get(images.to_uint8(figure(getattr(options, name))))
    with as_usage_error("--out"):
        out.mkdir(parents=True, exist_ok=True)
    if name == "film":
        images.save_film(out / "film.gif", rows.swapaxes(0, 1))
    columns = None if name == "shared" else rows.shape[1]
    images.save_grid(out / f"{name}.png", rows.reshape(-1, *model.image_shape), columns=columns)
    print(f"step {model.step} of {options.workdir}: {out / name}.png")


def check(options: Options) -> None:
    """Raises UsageError for what is wrong whatever the model."""
    for name in ("num", "batch_size", "film", "slerp", "coding"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, received {getattr(options, name)}")
    if options.first < 0:
        raise UsageError(f"--first: expected 0 or more, received {options.first}")
    check_seed("--seed", options.seed)
    if len(asked := [f"--{name}" for name in EXPERIMENTS if getattr(options, name) is not None]) > 1:
        raise UsageError(f"{asked[0]}: expected one experiment at a time, received {', '.join(asked)}")
    for name in ("strength", "inpaint"):
        if getattr(options, name) is not None and options.init_image is None:
            raise UsageError(f"--{name}: expected with --init-image, received without")
    if options.strength is not None and not 0 <= options.strength <= 1:
        raise UsageError(f"--strength: expected 0 to 1, received {options.strength}")
    if options.strength is not None and options.inpaint is not None:
        raise UsageError("--strength: expected without --inpaint, which fills in from noise alone, received with")
    if options.init_image is not None and asked:
        raise UsageError(f"--init-image: expected without {asked[0]}, received with")
    if not (pathlib.Path(options.workdir) / "checkpoints").is_dir():
        raise UsageError(f"--workdir: expected a folder that train.py has saved checkpoints in, received {options.workdir}")


def read_edit(options: Options, image_shape: tuple[int, int, int]) -> ImageEdit | None:
    """What to start from in place of noise, or None. Raises UsageError for files that do not fit."""
    if options.init_image is None:
        return None
    with as_usage_error("--init-image"):
        image = images.load(options.init_image, image_shape) / np.float32(127.5) - 1
    if options.inpaint is None:
        return ImageEdit(image, strength=0.5 if options.strength is None else options.strength)
    with as_usage_error("--inpaint"):
        return ImageEdit(image, images.load(options.inpaint, (*image_shape[:2], 1)) / np.float32(255))


def fingerprint(tree: Any) -> str:
    """A hash of all arrays and numbers in a tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def with_options(config: Config, options: Options) -> Config:
    """The run's config, with the sampling that was asked for."""
    names = ("sampler", "steps", "eta", "variance", "order", "grid", "label", "guidance")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    sampler = given.get("sampler", config.sample.sampler)
    of_order = ("dpm_solver_pp", "dpm_solver_pp_sde", "unipc", "deis")
    for option, methods in {"eta": ("ddim",), "variance": ("ddpm",), "order": of_order}.items():
        if option in given and sampler not in methods:
            raise UsageError(f"--{option}: expected with --sampler {' or '.join(methods)}, received with {sampler}")
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, **given))


if __name__ == "__main__":
    run_script(main, section="sample.")
