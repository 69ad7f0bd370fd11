"""Import models into workdirs, and export them.

    python -m ddpm_jax.interop import FOLDER --workdir runs/imported
    python -m ddpm_jax.interop export FOLDER --workdir runs/digits

`import` converts a folder of diffusers to a workdir: `python sample.py --workdir runs/imported` generates samples, and
`python train.py --config runs/imported/config.json --data.source folder --data.path ...` trains the model further.
`export` writes a folder for DDPMPipeline.from_pretrained, or a safetensors file with our own parameter names.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast, get_args, get_type_hints

import numpy as np
from tyro.conf import Positional

from ddpm_jax.config import Config, Diffusion, Sample, UNet, Unknown, kinds
from ddpm_jax.config.cli import UsageError, as_usage_error, parse, run_script
from ddpm_jax.config.paths import LocalPath
from ddpm_jax.runs.workdir import checkpoint_metadata, claim, write_config

if TYPE_CHECKING:
    from ddpm_jax import networks
    from ddpm_jax.interop.diffusers import Model

SCHEDULES = [name for name in get_args(get_type_hints(Diffusion)["schedule"]) if not Diffusion(name).is_continuous]
"""The schedules of train.py in discrete time."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Options of `import`."""

    folder: Positional[LocalPath] = ""
    """The folder of a pipeline of diffusers, or of a UNet2DModel alone."""
    workdir: LocalPath = "runs/imported"
    """The workdir to create."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Options of `export`."""

    folder: Positional[LocalPath] = ""
    """The folder to create; or a file, if it ends in .safetensors."""
    workdir: LocalPath = "runs/digits"
    """The workdir of the model, whose last checkpoint is used."""
    weights: Literal["ema", "raw"] = "ema"
    """The EMA of the parameters, or the raw parameters."""
    label: int | None = None
    """The class that a folder's model generates, since diffusers' pipelines have no labels. Default: unconditional."""


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    match list(argv):
        case ["import", *rest]:
            import_model(rest)
        case ["export", *rest]:
            export_model(rest)
        case ["-h" | "--help"]:
            print(__doc__)
        case _:
            raise UsageError(f"command: expected import or export, received {argv[0] if argv else 'nothing'}")


def import_model(argv: Sequence[str]) -> None:
    """Creates a workdir: the config, and a checkpoint of step 0 with a new optimizer state."""
    given = parse(Import(), argv, str(__doc__))
    workdir = pathlib.Path(given.workdir)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UsageError(f"--workdir: expected a new or empty folder, received {workdir}")

    from ddpm_jax import factory  # here and below: the checkpoint and data libraries take seconds to import
    from ddpm_jax.interop import diffusers
    from ddpm_jax.runs.checkpoints import Checkpoints
    from ddpm_jax.training.state import num_params, state_from_params

    try:
        diffusers.check_folder(given.folder, "FOLDER")
    except ValueError as error:
        raise UsageError(str(error)) from error
    with as_usage_error("FOLDER"):
        model = diffusers.load(given.folder)
    config = config_of(model, given.workdir)
    assert model.image_size is not None
    image_shape = [*model.image_size, model.params["params"]["stem"]["kernel"].shape[2]]
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer = factory.make_optimizer(config.optimizer, learning_rate)
    state = state_from_params(model.params, optimizer)
    with claim(config), Checkpoints(workdir / "checkpoints", config.checkpoint.keep) as checkpoints:
        checkpoints.save(0, state.parts(), checkpoint_metadata(config, image_shape))
        write_config(workdir, config)
    if checkpoints.failed:
        raise UsageError(f"--workdir: expected a folder that can be written to, received {workdir}")
    print(f"{num_params(model.params):,} parameters, images of shape {tuple(image_shape)}: {workdir}")


def config_of(model: Model, workdir: str) -> Config:
    """The config of an imported model.

    Raises:
        UsageError: a workdir cannot represent the model; the message names diffusers' field.
    """
    network, diffusion = model.network, _diffusion_of(model)
    if model.image_size is None:
        raise UsageError("FOLDER: sample_size: expected the image size, received null")
    if network.num_classes is not None:
        raise UsageError(f"FOLDER: num_class_embeds: expected null in a workdir, received {network.num_classes}")
    if network.out_channels is not None and model.variance != "learned":
        raise UsageError(f"FOLDER: out_channels: expected in_channels in a workdir, received {network.out_channels}")
    fields = {name: getattr(network, name) for name in kinds.defaults(UNet) if name not in ("kind", "dtype")}
    return Config(
        workdir=workdir,
        data=Unknown(),
        network=UNet(**fields),
        diffusion=diffusion,
        sample=Sample(
            sampler=model.sampler,
            grid=model.spacing,  # type: ignore[arg-type]
            clip=model.clip,
            dynamic_threshold=_quantile(model),
        ),
    )


def _diffusion_of(model: Model) -> Diffusion:
    """The config of the forward process: the first schedule of train.py with the model's betas."""
    from ddpm_jax import factory, schedules
    from ddpm_jax.interop import ddpm_scheduler

    described = ddpm_scheduler.describe(model.schedule)
    for name in SCHEDULES:
        diffusion = Diffusion(
            schedule=name,
            num_steps=model.schedule.num_steps,
            beta_start=described["beta_start"],
            beta_end=described["beta_end"],
            zero_terminal_snr=described["rescale_betas_zero_snr"],
            prediction=model.prediction,  # type: ignore[arg-type]
            variance=model.variance,  # type: ignore[arg-type]
        )
        try:
            schedule = schedules.require_discrete(factory.make_schedule(diffusion), "diffusers")
        except UsageError:  # it cannot have these betas
            continue
        if np.allclose(schedule.beta, model.schedule.beta, rtol=2e-6, atol=0):
            return diffusion
    received = described["beta_schedule"] if described["trained_betas"] is None else "trained_betas"
    raise UsageError(f"FOLDER: beta_schedule: expected the betas of a schedule of train.py, received {received}")


def _quantile(model: Model) -> float | None:
    if model.threshold is None:
        return None
    quantile, limit = model.threshold
    if limit < math.inf:
        raise UsageError(f"FOLDER: sample_max_value: expected 1, or 1e6 for no limit, in a workdir, received {limit}")
    return quantile


def export_model(argv: Sequence[str]) -> None:
    """Writes the last checkpoint of a workdir as a folder of diffusers, or as a file of weights."""
    given = parse(Export(), argv, str(__doc__))
    folder = pathlib.Path(given.folder)
    if not given.folder or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"FOLDER: expected a new or empty folder, received {given.folder or 'nothing'}")
    if not (pathlib.Path(given.workdir) / "checkpoints").is_dir():
        raise UsageError(f"--workdir: expected a folder that train.py has saved checkpoints in, received {given.workdir}")

    from ddpm_jax import factory, schedules
    from ddpm_jax.interop import diffusers, weights
    from ddpm_jax.networks import with_label

    with as_usage_error("--workdir"):
        model = factory.load(given.workdir, "raw" if given.weights == "raw" else None)
    if model.config.network.kind != "unet":
        raise UsageError(f"--workdir: expected a UNet, received {model.config.network.kind}")
    network, params, num_classes = cast("networks.UNet", model.network), model.params, model.config.network.num_classes
    if num_classes is None and given.label is not None:
        raise UsageError(f"--label: expected none for an unconditional model, received {given.label}")
    if num_classes is not None and folder.suffix != ".safetensors":
        with as_usage_error("--label"):
            network, params = with_label(network, params, num_classes if given.label is None else given.label)
    with as_usage_error("FOLDER"):
        if folder.suffix == ".safetensors":
            weights.save(folder, network, params)
        else:
            diffusion, sample = model.config.diffusion, model.config.sample
            schedule = schedules.require_discrete(model.schedule, "diffusers")
            diffusers.save(
                folder, network, params, schedule, diffusion.prediction,
                vars(sample).get("variance") or diffusion.variance, sample.clip, model.image_shape[:2], sample.grid,
                threshold=None if sample.dynamic_threshold is None else (sample.dynamic_threshold, math.inf),
            )  # fmt: skip
    print(f"{'EMA at ' if given.weights == 'ema' else ''}step {model.step} of {given.workdir}: {folder}")


if __name__ == "__main__":
    sys.argv[0] = "ddpm_jax.interop"
    run_script(main)
