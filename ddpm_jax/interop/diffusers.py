"""Folders of Hugging Face's diffusers: a UNet2DModel, alone or in a DDPM or DDIM pipeline. PyTorch is not needed."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any, NamedTuple

from ddpm_jax.devices.files import replacing
from ddpm_jax.interop import ddpm_scheduler, fields, files, folder_weights, names, unet2d
from ddpm_jax.interop.weights import shapes_of
from ddpm_jax.networks import UNet
from ddpm_jax.schedules import Schedule

VERSION = "0.42.1"
"""The version of diffusers whose format is written."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINES = {"ddpm": ("DDPMPipeline", "DDPMScheduler"), "ddim": ("DDIMPipeline", "DDIMScheduler")}


class Model(NamedTuple):
    """A pipeline's model; `network.apply(params, x_t, t)` evaluates it.

    Attributes:
        network: The network.
        params: Its variables, {"params": {...}}, float32.
        schedule: The noise schedule that it was trained on.
        prediction: The parameterization of its output: "eps", "x0" or "v".
        variance: The variance of ancestral steps: "fixed_small", "fixed_large" or "learned".
        clip: Whether the prediction of x0 is clipped to [-1, 1].
        image_size: (height, width) of its images, or None if the config does not say.
        spacing: How a subset of the timesteps is chosen: "leading", "linspace" or "trailing".
        sampler: "ddpm" or "ddim".
        threshold: The (quantile, limit) of dynamic thresholding, as in `guidance.dynamic_threshold`, which replaces clipping;
            None for none.
    """

    network: UNet
    params: Any
    schedule: Schedule
    prediction: str
    variance: str
    clip: bool
    image_size: tuple[int, int] | None
    spacing: str
    sampler: str
    threshold: tuple[float, float] | None = None


def load(folder: files.Path) -> Model:
    """Reads the folder of a pipeline, or of a model alone.

    Args:
        folder: Contains config.json and the weights (safetensors, or the older .bin, which is read without executing anything;
            one file, or parts and an index; a variant such as fp16 if there is only one, and no plain weights), directly or in
            unet/, and optionally scheduler_config.json, directly or in scheduler/. If that is missing, DDPMScheduler's defaults
            hold: 1000 linear betas from 1e-4 to 0.02, "eps", "fixed_small", clipped.

    Returns:
        The Model.

    Raises:
        ValueError: an unknown class, option or field, a missing or unexpected tensor or one of another shape, each by name; a
            damaged file; a model that our UNet cannot represent.
        OSError: a file cannot be read.
    """
    check_folder(folder)
    folder = pathlib.Path(folder)
    _check_index(folder / "model_index.json")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    _, config = fields.read(unet / "config.json", {"UNet2DModel": unet2d.FIELDS})
    described = unet2d.to_network(config)
    process = _read_process(folder)
    network, channels = described.network, described.in_channels
    if process.variance == "learned" and network.out_channels != 2 * channels:
        raise ValueError(f"config.json: out_channels: expected {2 * channels} for variance_type learned_range, "
                         f"received {config['out_channels']}")  # fmt: skip
    params = _read_params(unet, described)
    return Model(
        network, params, process.schedule, process.prediction, process.variance, process.clip,
        described.image_size, process.spacing, process.sampler, process.threshold,
    )  # fmt: skip


def save(
    folder: files.Path,
    network: UNet,
    params: Any,
    schedule: Schedule,
    prediction: str = "eps",
    variance: str = "fixed_small",
    clip: bool = True,
    image_size: tuple[int, int] | None = None,
    spacing: str = "leading",
    sampler: str = "ddpm",
    threshold: tuple[float, float] | None = None,
) -> None:
    """Writes a pipeline's folder, for DDPMPipeline.from_pretrained and DDIMPipeline.from_pretrained.

    The arguments are the fields of a Model, in their order: `save(folder, *model)`.

    Args:
        folder: The folder to create; it must not exist, or be empty.
        network: The network.
        params: Its variables, {"params": {...}}.
        schedule: The noise schedule.
        prediction: "eps", "x0" or "v".
        variance: "fixed_small", "fixed_large" or "learned".
        clip: Whether the prediction of x0 is clipped to [-1, 1].
        image_size: (height, width), required.
        spacing: "leading", "linspace" or "trailing".
        sampler: "ddpm" or "ddim".
        threshold: The (quantile, limit) of dynamic thresholding instead of clipping, or None.

    Raises:
        ValueError: diffusers cannot represent the model (the message names the field), or the folder is not empty. Nothing is
            written then.
        OSError: it cannot be written.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder: expected a new or empty folder, received {folder}")
    if image_size is None:
        raise ValueError("image_size: expected (height, width), received None")
    in_channels = params["params"]["stem"]["kernel"].shape[2]
    process = ddpm_scheduler.Process(schedule, prediction, variance, clip, spacing, sampler, threshold)
    scheduler, scheduler_config = ddpm_scheduler.from_process(process)
    unet_config = unet2d.from_network(network, image_size, in_channels)
    tree = names.entries(names.DIFFUSERS, shapes_of(network, (*image_size, in_channels)), len(network.multipliers))
    tensors = names.encode(tree, params)
    names.decode(tree, tensors, "params")  # checks that the files can be read again
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", scheduler]}

    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        (partial / "unet").mkdir(parents=True)
        (partial / "scheduler").mkdir()
        files.write(partial / "unet" / WEIGHTS, tensors)
        _write_config(partial / "unet" / "config.json", "UNet2DModel", unet_config)
        _write_config(partial / "scheduler" / "scheduler_config.json", scheduler, scheduler_config)
        _write_config(partial / "model_index.json", PIPELINES[sampler][0], index)


def check_folder(folder: files.Path, argument: str = "folder") -> None:
    """Raises ValueError if this is not a folder; the message for a name on the Hugging Face Hub says how to download it."""
    if pathlib.Path(folder).is_dir() and str(folder):
        return
    name = str(folder)
    is_repository = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not pathlib.Path(name).parent.exists()
    download = (
        f"; a model on the Hugging Face Hub is downloaded by: hf download {name} --local-dir {name.split('/')[-1]}"
        if is_repository
        else ""
    )
    raise ValueError(f"{argument}: expected a folder of diffusers, received {name or 'nothing'}{download}")


def _check_index(path: pathlib.Path) -> None:
    """Refuses pipelines of other models, if there is an index."""
    if not path.exists():
        return
    index = fields.read_json(path)
    known = [pipeline for pipeline, _ in PIPELINES.values()]
    if index.get("_class_name") not in known:
        raise ValueError(f"{path.name}: _class_name: expected {' or '.join(known)}, received {index.get('_class_name')}")
    if index.get("unet") != ["diffusers", "UNet2DModel"]:
        raise ValueError(f"{path.name}: unet: expected UNet2DModel of diffusers, received {index.get('unet')}")


def _read_process(folder: pathlib.Path) -> ddpm_scheduler.Process:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.exists():
            return ddpm_scheduler.to_process(*fields.read(path, ddpm_scheduler.CLASSES))
    defaults = {name: field.default for name, field in ddpm_scheduler.CLASSES["DDPMScheduler"].items()}
    given = {
        "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": True,
        "variance_type": "fixed_small",
    }  # fmt: skip
    return ddpm_scheduler.to_process("DDPMScheduler", {**defaults, **given})


def _read_params(folder: pathlib.Path, described: unet2d.Described) -> Any:
    path = folder_weights.find(folder)
    tensors = folder_weights.read(path)
    network = described.network
    old = any(re.search(r"\.attentions\.\d+\.query\.weight$", name) for name in tensors)
    format_names = names.DIFFUSERS_BEFORE_0_13 if old else names.DIFFUSERS
    smallest = 2 ** (len(network.multipliers) - 1)  # attention is given by level here, so any image size will do
    shapes = shapes_of(network, (smallest, smallest, described.in_channels))
    return names.decode(names.entries(format_names, shapes, len(network.multipliers)), tensors, path.name)


def _write_config(path: pathlib.Path, class_name: str, config: dict[str, Any]) -> None:
    whole = {"_class_name": class_name, "_diffusers_version": VERSION, **config}
    path.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
