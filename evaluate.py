"""Measures a trained model: `python evaluate.py --workdir runs/digits --metric bpd`. The same command again resumes it."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ddpm_jax import factory, schedules
from ddpm_jax.config import Data, Diffusion, Digits, Folder, Npz, Tfds, Unknown, check_seed
from ddpm_jax.config.cli import UsageError, as_usage_error, parse, run_script, take_option
from ddpm_jax.config.paths import LocalPath
from ddpm_jax.data.sources import Source
from ddpm_jax.devices import compiler
from ddpm_jax.devices.files import atomic_write
from ddpm_jax.evaluation import likelihood, plots
from ddpm_jax.factory import LoadedRun
from ddpm_jax.likelihood import rate_distortion
from ddpm_jax.runs import progress
from ddpm_jax.runs.failures import cause
from ddpm_jax.runs.resumable import fingerprint, resumable, stored


@dataclasses.dataclass(frozen=True)
class Options:
    """The metric and the images to measure. Options of the data default to those of the run, with the split test."""

    workdir: LocalPath = "runs/digits"
    """Folder of the trained model."""
    out: LocalPath | None = None
    """Folder for the results, their plot and settings; by default evaluation/STEP_EMA in the workdir. Results of other settings
    that are there are kept, and the new ones refused."""
    metric: Literal["bpd", "rate_distortion", "ode_nll"] = "bpd"
    """bpd: the variational bound in bits/dim. rate_distortion: its curve. ode_nll: bits/dim by the probability-flow ODE."""
    checkpoint: int | Literal["best"] | None = None
    """Step of the checkpoint, or best for the smallest mean training loss of those kept; the last by default."""
    ema: str | None = None
    """EMA of the parameters: its name, such as power_0.1; raw for the parameters themselves; a number for the EMA of that
    width, reconstructed from snapshots. The run's first by default."""
    data: Annotated[Data, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Digits)
    num: int | None = None
    """Number of images, from the first on; all by default."""
    batch_size: int = 64
    """Images measured at once."""
    variance: Literal["fixed_small", "fixed_large", "learned"] | None = None
    """bpd, rate_distortion: variance of the reverse steps; the model's own by default."""
    seed: int = 0
    """Random seed of the noise; the result of image i depends on (seed, i) alone."""
    ode_steps: int = 100
    """ode_nll: steps of the solver, four network evaluations each."""
    exact: bool = False
    """ode_nll: exact divergence instead of Hutchinson's estimate: one derivative per pixel."""


def main(argv: Sequence[str]) -> None:
    """Reads the options and the workdir, measures, and writes the figures."""
    options = read_options(argv)
    check(options)

    # The model and the images.
    compiler.divide_cores(options.batch_size)
    with progress.doing("loading the model"):
        model = factory.load_named(options.workdir, options.ema, options.checkpoint)
    with progress.doing("reading the data"):
        source = factory.make_source(options.data)
    with as_usage_error("--path"):
        if source[0]["image"].shape != model.image_shape:
            raise ValueError(f"expected images of {model.image_shape}, as in training, received {source[0]['image'].shape}")
    if source.num_classes is not None:
        factory.check_labels(model.config.network, source)
    num = len(source) if options.num is None else min(options.num, len(source))

    # Batch after batch, from where it was.
    found: list[dict[str, np.ndarray]] = []
    own = pathlib.Path(options.workdir) / "evaluation" / f"{model.step}_{model.average}"
    folder = own if options.out is None else pathlib.Path(options.out)
    with progress.Progress(num, "image", "measuring") as shown:
        name, measure, settings = measurement(options, model, source, num, shown)
        settings = {"step": model.step, "ema": options.ema, "data": dataclasses.asdict(options.data), "num": num} | settings
        settings["weights"] = fingerprint(model.params)
        with as_usage_error("--out"):
            folder.mkdir(parents=True, exist_ok=True)
            known = stored(folder / f"{name}.jsonl", settings)
        shown.begin(min(len(known) * options.batch_size, num))
        batches = range(-(-num // options.batch_size))
        with as_usage_error("--out"):
            for batch, results in zip(batches, resumable(folder / f"{name}.jsonl", settings, batches, measure), strict=True):
                found.append(results)
                shown.advance(0 if batch in known else len(results["bits_per_dimension"]))
    bits = np.concatenate([results["bits_per_dimension"] for results in found])
    means = {name: sum(results[name] for results in found) / num for name in found[0] if name != "bits_per_dimension"}
    report(options.metric, folder, settings, bits, means)


def read_options(argv: Sequence[str]) -> Options:
    """The options; those of the data default to the run's, with its held-out images if it has a split."""
    run = factory.find_named(argv, Options().workdir)
    if run is None:
        return parse(Options(), argv, str(__doc__), flat="data")
    data, path = run.config.data, take_option(argv, "--path")[0]
    if isinstance(data, Unknown) and take_option(argv, "--source")[0] is None:  # imported weights
        if path is None and not {"-h", "--help"} & set(argv):
            raise UsageError("--path: expected the images to measure, an .npz file or a folder, received nothing")
        is_folder = path is not None and pathlib.Path(path).expanduser().is_dir()
        data = Folder(image_size=run.image_shape[0]) if is_folder else Npz()
    options = parse(Options(data=dataclasses.replace(data, random_flip=False)), argv, str(__doc__), flat="data")
    if isinstance(options.data, Digits | Tfds) and take_option(argv, "--split")[0] is None:
        options = dataclasses.replace(options, data=dataclasses.replace(options.data, split="test"))
    if options.data.random_flip:
        raise UsageError("--random_flip: expected False, images are measured as they are")
    if isinstance(options.data, Npz | Folder) and options.data == dataclasses.replace(run.config.data, random_flip=False):
        print("measuring the training images; choose others by --path")
    return options


def check(options: Options) -> None:
    """Raises UsageError for options that are wrong whatever the model."""
    for name in ("num", "batch_size", "ode_steps"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name}: expected at least 1, received {getattr(options, name)}")
    check_seed("--seed", options.seed)
    if not (pathlib.Path(options.workdir) / "checkpoints").is_dir():
        raise UsageError(f"--workdir: expected a folder that train.py has saved checkpoints in, received {options.workdir}")


def measurement(
    options: Options, model: LoadedRun, source: Source, num: int, shown: progress.Progress
) -> tuple[str, Callable[[int], dict[str, np.ndarray]], dict[str, Any]]:
    """The measurement of a batch.

    Returns:
        The name of its file, the function of the batch's number, and the settings that decide its results.
    """
    key, is_ode = jax.random.key(options.seed), options.metric == "ode_nll"
    variance = checked_variance(options, model.config.diffusion)

    def denoise_of(labels: Any) -> Any:
        return factory.bind(model.config, model.network, model.schedule, model.params, not is_ode, labels)

    def in_batches(per_image: likelihood.PerImage) -> Callable[[int], dict[str, np.ndarray]]:
        return likelihood.in_batches(per_image, source, model.mesh, options.batch_size, num, shown.say, shown.doing)

    settings: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed}
    if is_ode:
        ode_nll = functools.partial(likelihood.ode_nll, key, model.schedule, denoise_of, options.ode_steps, options.exact)
        return "ode_nll", in_batches(ode_nll), settings | {"ode_steps": options.ode_steps, "exact": options.exact}
    # bpd and rate_distortion are two readings of the same terms
    schedule = schedules.require_discrete(model.schedule, "the bound")
    terms = in_batches(functools.partial(likelihood.bound, key, schedule, denoise_of, variance))
    return "bound", lambda batch: likelihood.sums(terms(batch)), settings | {"variance": variance}


def checked_variance(options: Options, diffusion: Diffusion) -> str:
    """The variance of the steps, as `likelihood` names it. Raises UsageError if the model has none for the metric."""
    if options.metric == "ode_nll":
        factory.require_every_time(diffusion, "--metric")
    elif diffusion.is_continuous:
        raise UsageError("--metric: expected ode_nll for a model in continuous time, whose bound has no steps")
    return factory.step_variance(options.variance, diffusion, "--variance")


def report(metric: str, folder: pathlib.Path, settings: dict[str, Any], bits: Any, means: dict[str, Any]) -> None:
    """Prints the figures, and writes them as JSON and as a plot."""
    bpd, error = likelihood.mean_and_error(bits)
    result: dict[str, Any] = {"metric": metric, **settings, "bpd": bpd, "standard_error": error}
    lines = [f"{bpd:.4f} +- {error:.4f} bits/dim on {len(bits)} images, step {settings['step']}"]
    match metric:
        case "bpd":
            result |= {"prior": float(means["prior"]), "terms": means["terms"].tolist()}
            draw = plots.terms
        case "rate_distortion":
            rate, distortion = rate_distortion(means["prior"], means["terms"], means["mse"])
            result |= {"rate": rate.tolist(), "distortion": distortion.tolist()}
            draw = plots.rate_distortion
            lines.append("reverse steps   rate (bits/dim)   distortion (RMSE, 0 to 255)")
            for step in range(0, len(rate), max(len(rate) // 10, 1)):
                lines.append(f"{len(rate) - step:13d}   {rate[step]:15.5f}   {distortion[step]:27.5f}")
        case _:
            result["bits_per_dimension"] = bits.tolist()
            draw = plots.histogram
    with as_usage_error("--out"):
        atomic_write(folder / f"{metric}.json", lambda file: file.write(f"{json.dumps(result, indent=1)}\n".encode()))
    print("\n".join(lines))  # after the file, so that a closed pipe loses nothing
    try:
        plots.save(folder / f"{metric}.png", lambda figure: draw(figure, result))
    except ImportError:
        print('no plot: it needs matplotlib, pip install -e ".[plot]"')
    except OSError as error:
        print(f"no plot: {cause(error)}")
    print(f"written to {folder / metric}.json")


if __name__ == "__main__":
    run_script(main, section="data.")
