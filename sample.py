"""Draws images with a trained model: `python sample.py --workdir runs/digits --num 64 --out out/digits`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal

from ddpm_jax.cli import UsageError, blame, parse, run_script
from ddpm_jax.config import Config, check_seed


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
    sampler: Literal["ddpm", "ddim"] | None = None
    """As the run's config says, by default; so for all below."""
    steps: int | None = None
    """How many noise levels to visit."""
    eta: float | None = None
    """ddim: the share of noise that is drawn anew, 0 to 1."""
    variance: Literal["fixed_small", "fixed_large", "learned"] | None = None
    """ddpm: the variance of its steps."""
    spacing: Literal["leading", "linspace", "trailing", "quadratic"] | None = None
    """Which noise levels are visited."""


def main(argv: Sequence[str]) -> None:
    """Reads the options and the workdir, draws, and writes the images."""
    options = parse(Options(), argv, str(__doc__))
    if options.num < 1:
        raise UsageError(f"--num: expected at least 1, received {options.num}")
    if options.batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, received {options.batch_size}")
    check_seed("--seed", options.seed)
    if not (pathlib.Path(options.workdir) / "checkpoints").is_dir():  # told before anything is imported
        raise UsageError(f"--workdir: expected a folder that train.py has saved checkpoints in, received {options.workdir}")

    import jax  # here and below, so that --help and mistakes are answered at once
    import numpy as np
    from tqdm import tqdm

    from ddpm_jax import factory, images, sharding
    from ddpm_jax.training import trained

    with blame("--workdir"):
        model = trained.load(options.workdir)
    config = with_options(model.config, options)
    draw = factory.make_draw(config, model.network, model.schedule, model.image_shape)
    with blame("--out"):
        out = pathlib.Path(options.out)
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


def with_options(config: Config, options: Options) -> Config:
    """The run's config, with the sampling that was asked for."""
    given = {name: getattr(options, name) for name in ("sampler", "steps", "eta", "variance", "spacing")}
    given = {name: value for name, value in given.items() if value is not None}
    sampler = given.get("sampler", config.sample.sampler)
    for option, method in (("eta", "ddim"), ("variance", "ddpm")):
        if option in given and sampler != method:
            raise UsageError(f"--{option}: expected with --sampler {method}, received with {sampler}")
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, **given))


if __name__ == "__main__":
    run_script(main, section="sample.")
