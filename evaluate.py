"""Measures a trained model: `python evaluate.py --workdir runs/digits --metric bpd`. The same command again resumes it."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax import factory, schedules
from ddpm_jax.config import Data, Diffusion, check_seed
from ddpm_jax.config.cli import UsageError, as_usage_error, parse, run_script
from ddpm_jax.data.sources import Source
from ddpm_jax.devices import compiler
from ddpm_jax.evaluation import likelihood, plots
from ddpm_jax.factory import LoadedRun
from ddpm_jax.likelihood import rate_distortion
from ddpm_jax.runs.resumable import resumable


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    workdir: str = "runs/digits"
    """Where the model was trained; results go to its folder evaluation."""
    metric: Literal["bpd", "rate_distortion", "ode_nll"] = "bpd"
    """bpd: the variational bound, bits/dim. rate_distortion: its curve. ode_nll: bits/dim by the probability-flow ODE."""
    checkpoint: int | Literal["best"] | None = None
    """Which to measure, by its step, or best for the smallest mean training loss of those kept; the last by default."""
    ema: str | None = None
    """The average of the parameters to measure, by its name, such as power_0.1; raw for none; a number for one of this width,
    put together from snapshots. The first that the run has, by default."""
    split: str = "test"
    """digits, tfds: which images."""
    path: str | None = None
    """npz, folder: the images, a file or a folder; those of training by default."""
    num: int | None = None
    """How many images, from the first on; all by default."""
    batch_size: int = 64
    """Images measured at once."""
    variance: Literal["fixed_small", "fixed_large", "learned"] | None = None
    """bpd, rate_distortion: the variance of the model's steps; its own by default."""
    seed: int = 0
    """Of the noise; the result of image i depends on (seed, i) alone."""
    ode_steps: int = 100
    """ode_nll: steps of the solver, each of which runs the network four times."""
    exact: bool = False
    """ode_nll: the exact divergence instead of Hutchinson's estimate, one derivative for every pixel."""


def main(argv: Sequence[str]) -> None:
    """Reads the options and the workdir, measures, and writes the figures."""
    options = parse(Options(), argv, str(__doc__))
    check(options)

    # The model and the images.
    compiler.divide_cores(options.batch_size)
    with as_usage_error("--workdir"):
        model = factory.load(options.workdir, options.ema, options.checkpoint)
    data = held_out(model.config.data, options, model.image_shape)
    source = factory.make_source(data)
    with as_usage_error("--path"):
        if source[0]["image"].shape != model.image_shape:
            raise ValueError(f"expected images of {model.image_shape}, as in training, received {source[0]['image'].shape}")
    if source.num_classes is not None:
        factory.check_labels(model.config.network, source)
    num = len(source) if options.num is None else min(options.num, len(source))

    # Batch after batch, from where it was.
    name, measure, settings = measurement(options, model, source, num)
    settings = {"step": model.step, "ema": options.ema, "data": dataclasses.asdict(data), "num": num} | settings
    folder, found = pathlib.Path(options.workdir) / "evaluation", []
    with as_usage_error("--workdir"):
        folder.mkdir(exist_ok=True)
    with tqdm(total=num, unit="image", disable=None) as bar:
        batches = range(-(-num // options.batch_size))
        for results in resumable(folder / f"{name}.jsonl", settings, batches, measure):
            found.append(results)
            bar.update(len(results["bits_per_dimension"]))
    bits = np.concatenate([results["bits_per_dimension"] for results in found])
    means = {name: sum(results[name] for results in found) / num for name in found[0] if name != "bits_per_dimension"}
    report(options.metric, folder, settings, bits, means)


def check(options: Options) -> None:
    """Raises UsageError for what is wrong whatever the model."""
    for name in ("num", "batch_size", "ode_steps"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, received {getattr(options, name)}")
    check_seed("--seed", options.seed)
    if not (pathlib.Path(options.workdir) / "checkpoints").is_dir():
        raise UsageError(f"--workdir: expected a folder that train.py has saved checkpoints in, received {options.workdir}")


def measurement(
    options: Options, model: LoadedRun, source: Source, num: int
) -> tuple[str, Callable[[int], dict[str, np.ndarray]], dict[str, Any]]:
    """What is measured of each batch.

    Returns:
        The name of its file, the function of the batch's number, and the settings that decide its results.
    """
    key, is_ode = jax.random.key(options.seed), options.metric == "ode_nll"
    variance = checked_variance(options, model.config.diffusion)

    def denoise_of(labels: Any) -> Any:
        return factory.bind(model.config, model.network, model.schedule, model.params, not is_ode, labels)

    def in_batches(per_image: likelihood.PerImage) -> Callable[[int], dict[str, np.ndarray]]:
        return likelihood.in_batches(per_image, source, model.mesh, options.batch_size, num, tqdm.write)

    settings: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed}
    if is_ode:
        ode_nll = functools.partial(likelihood.ode_nll, key, model.schedule, denoise_of, options.ode_steps, options.exact)
        return "ode_nll", in_batches(ode_nll), settings | {"ode_steps": options.ode_steps, "exact": options.exact}
    # bpd and rate_distortion are two readings of the same terms
    schedule = schedules.require_discrete(model.schedule, "the bound")
    terms = in_batches(functools.partial(likelihood.bound, key, schedule, denoise_of, variance))
    return "bound", lambda batch: likelihood.sums(terms(batch)), settings | {"variance": variance}


def held_out(data: Data, options: Options, image_shape: Sequence[int]) -> Data:
    """Where the images to measure come from."""
    if data.source is None:  # weights from elsewhere
        if options.path is None:
            raise UsageError("--path: expected the images to measure, an .npz file or a folder, received nothing")
        source: Literal["npz", "folder"] = "folder" if pathlib.Path(options.path).is_dir() else "npz"
        data = dataclasses.replace(data, source=source, image_size=image_shape[0])
    if options.path is not None and data.source not in ("npz", "folder"):
        raise UsageError(f"--path: expected with a run on npz or folder data, this one is on {data.source}")
    if options.path is None and data.source in ("npz", "folder"):
        print("measuring the images of training; give others by --path")
    return dataclasses.replace(data, split=options.split, path=options.path or data.path, random_flip=False)


def checked_variance(options: Options, diffusion: Diffusion) -> str:
    """The variance of the steps, as `likelihood` names it. Raises UsageError where the model has none for the metric."""
    learned = diffusion.variance.startswith("learned")
    if options.variance == "learned" and not learned:
        raise UsageError("--variance: expected fixed_small or fixed_large, for this model has not learned one")
    if options.metric == "ode_nll" and (diffusion.prediction == "mean" or diffusion.variance == "learned_raw"):
        raise UsageError("--metric: expected bpd or rate_distortion, for this model knows its schedule's own times alone")
    if options.metric != "ode_nll" and diffusion.schedule.startswith("continuous"):
        raise UsageError("--metric: expected ode_nll for a model in continuous time, whose bound has no steps")
    return options.variance or diffusion.variance.removesuffix("_raw")


def report(metric: str, folder: pathlib.Path, settings: dict[str, Any], bits: Any, means: dict[str, Any]) -> None:
    """Prints the figures, and writes them as JSON and as a plot."""
    bpd, error = likelihood.mean_and_error(bits)
    result: dict[str, Any] = {"metric": metric, **settings, "bpd": bpd, "standard_error": error}
    print(f"{bpd:.4f} +- {error:.4f} bits/dim on {len(bits)} images, step {settings['step']}")
    match metric:
        case "bpd":
            result |= {"prior": float(means["prior"]), "terms": means["terms"].tolist()}
            draw = plots.terms
        case "rate_distortion":
            rate, distortion = rate_distortion(means["prior"], means["terms"], means["mse"])
            result |= {"rate": rate.tolist(), "distortion": distortion.tolist()}
            draw = plots.rate_distortion
            print("reverse steps   rate (bits/dim)   distortion (RMSE, 0 to 255)")
            for step in range(0, len(rate), max(len(rate) // 10, 1)):
                print(f"{len(rate) - step:13d}   {rate[step]:15.5f}   {distortion[step]:27.5f}")
        case _:
            result["bits_per_dimension"] = bits.tolist()
            draw = plots.histogram
    (folder / f"{metric}.json").write_text(json.dumps(result, indent=1) + "\n")
    try:
        plots.save(folder / f"{metric}.png", lambda figure: draw(figure, result))
    except ImportError:
        print('no plot: it needs matplotlib, pip install -e ".[plot]"')
    print(f"written to {folder / metric}.json")


if __name__ == "__main__":
    run_script(main)
