"""Draws images with a trained model: `python sample.py --workdir runs/digits --num 64 --out out/digits`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ddpm_jax.cli import UsageError, blame, parse, run_script
from ddpm_jax.config import Config, Grid, Method, check_seed

if TYPE_CHECKING:
    from ddpm_jax.training.trained import Trained


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw."""

    workdir: str = "runs/digits"
    """Where the model was trained; its last checkpoint is used."""
    num: int = 64
    """How many images."""
    out: str = "out"
    """The folder for samples.npz (`image`, uint8 [N, H, W, C]) and grid.png (the first 256 of them)."""
    seed: int = 0
    """Image i depends on (seed, i) alone, not on --num or --batch-size."""
    batch_size: int = 64
    """Images drawn at once."""
    ema: str | None = None
    """The average of the parameters to draw with, by its name, such as power_0.1; raw for none; a number for one of this width,
    put together from snapshots. The first that the run has, by default."""
    sampler: Method | None = None
    """As the run's config says, by default; so for all below."""
    steps: int | None = None
    """How many noise levels to visit."""
    eta: float | None = None
    """ddim: the share of noise that is drawn anew, 0 to 1."""
    variance: Literal["fixed_small", "fixed_large", "learned"] | None = None
    """ddpm: the variance of its steps."""
    order: int | None = None
    """dpm_solver_pp, dpm_solver_pp_sde, unipc, deis: the order."""
    grid: Grid | None = None
    """Which noise levels are visited."""
    film: int | None = None
    """Instead, film.png and film.gif: what up to 16 images are believed to be, at this many moments of the way."""
    shared: int | None = None
    """Instead, images that share their x_t at this t and part there; for a sampler that draws noise."""
    interpolate: int | None = None
    """Instead, up to 8 pairs of the data, mixed at this t by 0, 0.1, ..., 1, and denoised; the pair at the ends of each row."""
    coding: int | None = None
    """Instead, up to 8 images of the data as a receiver sees them at this many stages of progressive coding, then the data."""


def main(argv: Sequence[str]) -> None:
    """Reads the options and the workdir, draws, and writes the images."""
    options = parse(Options(), argv, str(__doc__))
    if options.num < 1:
        raise UsageError(f"--num: expected at least 1, received {options.num}")
    if options.batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, received {options.batch_size}")
    check_seed("--seed", options.seed)
    if len(asked := [f"--{name}" for name in EXPERIMENTS if getattr(options, name) is not None]) > 1:
        raise UsageError(f"{asked[0]}: expected one experiment at a time, received {', '.join(asked)}")
    for name in ("film", "coding"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name}: expected at least 1, received {getattr(options, name)}")
    if not (pathlib.Path(options.workdir) / "checkpoints").is_dir():  # told before anything is imported
        raise UsageError(f"--workdir: expected a folder that train.py has saved checkpoints in, received {options.workdir}")

    import jax  # here and below, so that --help and mistakes are answered at once
    import numpy as np
    from tqdm import tqdm

    from ddpm_jax import factory, images, sharding
    from ddpm_jax.training import trained

    with blame("--workdir"):
        model = trained.load(options.workdir, options.ema)
    config = with_options(model.config, options)
    draw = factory.make_draw(config, model.network, model.schedule, model.image_shape)

    out = pathlib.Path(options.out)
    if any(getattr(options, name) is not None for name in EXPERIMENTS):
        experiment(options, config, model, out)
        return
    with blame("--out"):
        out.mkdir(parents=True, exist_ok=True)
    drawn = []
    size = min(options.batch_size, options.num)
    for start in tqdm(range(0, options.num, size), unit="batch", disable=None):
        ids = range(start, start + size)  # the last batch is drawn whole, so that one program serves all
        drawn.append(jax.device_get(draw(jax.random.key(options.seed), model.params, sharding.put_ids(model.mesh, ids))))
    image = np.concatenate(drawn)[: options.num]
    np.savez(out / "samples.npz", image=image)
    images.save_grid(out / "grid.png", image[:256])
    print(f"{options.num} images from step {model.step} of {options.workdir}: {out / 'grid.png'}, {out / 'samples.npz'}")


EXPERIMENTS = ("film", "shared", "interpolate", "coding")


def experiment(options: Options, config: Config, model: Trained, out: pathlib.Path) -> None:
    """One of the paper's experiments, section 4 of Ho et al. 2020, as pictures."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax import experiments, factory, images

    (name,) = (name for name in EXPERIMENTS if getattr(options, name) is not None)
    value, key = getattr(options, name), jax.random.key(options.seed)
    sampler = factory.make_sampler(config.sample, config.diffusion, model.schedule)
    levels = factory.make_levels(config.sample, config.diffusion, model.schedule)
    denoise = factory.bind_denoise(config, model.network, model.schedule, model.params, config.sample.clip)

    def data(num: int) -> jax.Array:
        source = factory.make_source(config.data)
        return images.to_float(jnp.asarray(np.stack([source[i]["image"] for i in range(min(num, len(source)))])))

    with blame(f"--{name}"):
        match name:
            case "film":
                shape = (min(options.num, 16), *model.image_shape)
                moments = np.linspace(0, len(levels.t) - 2, value).round().astype(int)
                run = jax.jit(lambda: experiments.progressive(key, sampler, denoise, levels, shape)[1][moments])
                rows = images.to_uint8(run()).swapaxes(0, 1)
            case "shared":
                shape = (options.num, *model.image_shape)
                run = jax.jit(lambda: experiments.shared(key, sampler, denoise, levels, value, shape))
                rows = images.to_uint8(run())[None]
            case "interpolate":
                pairs = data(2 * min(options.num, 8))
                a, b = pairs[::2], pairs[1::2]
                shares = np.linspace(0, 1, 11).tolist()
                mixed = jax.jit(lambda: experiments.interpolate(key, sampler, denoise, levels, value, a, b, shares))()
                rows = images.to_uint8(jnp.concatenate([a[None], mixed, b[None]])).swapaxes(0, 1)
            case "coding":
                x0 = data(min(options.num, 8))
                times = np.linspace(0, model.schedule.num_steps - 1, value).round().astype(int).tolist()
                variance = config.diffusion.variance.removesuffix("_raw")
                code = jax.jit(lambda: experiments.progressive_coding(key, model.schedule, denoise, x0, times, variance))
                coded = code()
                for stage in range(len(coded.rate)):
                    rate, error = coded.rate[stage].mean(), 127.5 * np.sqrt(coded.mse[stage].mean())
                    print(f"{rate:8.4f} bits/dim  RMSE {error:7.3f} of 255")
                rows = images.to_uint8(jnp.concatenate([coded.x0, x0[None]])).swapaxes(0, 1)
    rows = jax.device_get(rows)
    columns = rows.shape[1] if name != "shared" else None
    with blame("--out"):
        out.mkdir(parents=True, exist_ok=True)
    if name == "film":
        images.save_film(out / "film.gif", rows.swapaxes(0, 1))
    images.save_grid(out / f"{name}.png", rows.reshape(-1, *model.image_shape), columns=columns)
    print(f"step {model.step} of {options.workdir}: {out / name}.png")


def with_options(config: Config, options: Options) -> Config:
    """The run's config, with the sampling that was asked for."""
    given = {name: getattr(options, name) for name in ("sampler", "steps", "eta", "variance", "order", "grid")}
    given = {name: value for name, value in given.items() if value is not None}
    sampler = given.get("sampler", config.sample.sampler)
    of_order = ("dpm_solver_pp", "dpm_solver_pp_sde", "unipc", "deis")
    for option, methods in {"eta": ("ddim",), "variance": ("ddpm",), "order": of_order}.items():
        if option in given and sampler not in methods:
            raise UsageError(f"--{option}: expected with --sampler {' or '.join(methods)}, received with {sampler}")
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, **given))


if __name__ == "__main__":
    run_script(main, section="sample.")
