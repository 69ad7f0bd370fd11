"""Config -> the sampler, its grid, the labels of the samples, and the function that generates images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import networks, samplers
from ddpm_jax.config import Config, Diffusion, Network, Sample
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.denoiser import Denoise
from ddpm_jax.factory.network import bind
from ddpm_jax.pipelines import image
from ddpm_jax.samplers import Sampler, grids
from ddpm_jax.schedules import HasLevels, Level, log_snr_range


def make_sampler(sample: Sample, diffusion: Diffusion, schedule: HasLevels) -> Sampler:
    """The sampling method. Raises UsageError for an eta or order out of range, or a variance that is not learned."""
    match sample.sampler:
        case "ddpm":
            if sample.variance == "learned" and not diffusion.variance.startswith("learned"):
                raise UsageError("--sample.variance: expected fixed_small or fixed_large, for this model has not learned one")
            return samplers.ddpm((sample.variance or diffusion.variance).removesuffix("_raw"))
        case "ddim":
            with as_usage_error("--sample.eta"):
                return samplers.ddim(sample.eta)
        case "euler":
            return samplers.euler()
        case "euler_ancestral":
            return samplers.euler_ancestral()
        case "heun":
            return samplers.heun()
        case "pndm":
            return samplers.pndm()
        case "dpm_solver_pp_2s":
            return samplers.dpm_solver_pp_2s(schedule)
    few = sample.steps is not None and sample.steps < 15  # where the last steps are steadier at lower orders
    with as_usage_error("--sample.order"):
        match sample.sampler:
            case "dpm_solver_pp":
                return samplers.dpm_solver_pp(sample.order, lower_order_final=few)
            case "dpm_solver_pp_sde":
                return samplers.dpm_solver_pp(sample.order, sde=True, lower_order_final=few)
            case "unipc":
                return samplers.unipc(sample.order, lower_order_final=few)
            case "deis":
                return samplers.deis(sample.order, lower_order_final=few)
    raise UsageError(f"--sample.sampler: expected a sampler such as ddpm or ddim, received {sample.sampler}")


def make_levels(sample: Sample, diffusion: Diffusion, schedule: HasLevels) -> Level:
    """The grid of noise levels to visit. Raises UsageError if the schedule or the model does not have them."""
    fractional = sample.grid in ("log_snr", "karras", "exponential") or sample.sampler == "dpm_solver_pp_2s"
    if fractional and (diffusion.prediction == "mean" or diffusion.variance == "learned_raw"):
        raise UsageError("--sample.grid: expected whole times, for this model knows its schedule's own alone")
    with as_usage_error("--sample.steps"):
        if sample.grid in grids.SPACINGS:
            return grids.spaced(schedule, sample.steps, sample.grid)
        of_schedule = grids.CONTINUOUS_STEPS if schedule.num_steps is None else schedule.num_steps
        num_steps = of_schedule if sample.steps is None else sample.steps
        log_snr = log_snr_range(schedule) if schedule.num_steps is None else None
        match sample.grid:
            case "log_snr":
                return grids.uniform_log_snr(schedule, num_steps, log_snr)
            case "karras":
                return grids.karras(schedule, num_steps, log_snr=log_snr)
            case "exponential":
                return grids.exponential(schedule, num_steps, power=2.0, log_snr=log_snr)
    raise UsageError(f"--sample.grid: expected a grid such as leading or karras, received {sample.grid}")


def make_labels(sample: Sample, network: Network) -> Callable[[jax.Array], jax.Array | None]:
    """What says which class image number i is drawn of: those asked for, in turn.

    Returns:
        ids [B] -> labels [B], or None where the network knows no classes.

    Raises:
        UsageError: classes or guidance for a network without, or a class out of range.
    """
    if network.num_classes is None:
        if sample.label is not None:
            raise UsageError(f"--sample.label: expected none, for this model knows no classes, received {sample.label}")
        if sample.guidance != 1:
            raise UsageError(f"--sample.guidance: expected 1, for this model knows no classes, received {sample.guidance}")
        return lambda ids: None
    if not math.isfinite(sample.guidance):
        raise UsageError(f"--sample.guidance: expected a finite number, received {sample.guidance}")
    chosen = tuple(range(network.num_classes)) if sample.label is None else sample.label
    if not chosen or not all(0 <= label < network.num_classes for label in chosen):
        raise UsageError(f"--sample.label: expected classes in 0..{network.num_classes - 1}, received {chosen}")
    return lambda ids: jnp.asarray(chosen, jnp.int32)[ids % len(chosen)]


def make_generator(
    config: Config,
    network: networks.Network,
    schedule: HasLevels,
    image_shape: Sequence[int],
    edit: image.ImageEdit | None = None,
) -> image.Generate:
    """The function that generates images with the config's sampler.

    Args:
        config: Its `sample`, and the prediction of its `diffusion`.
        network: The network.
        schedule: The schedule that it was trained on.
        image_shape: (H, W, C).
        edit: What to start from, the same for all images.

    Returns:
        (key, params, ids [B]) -> uint8 [B, H, W, C]; image i depends on (key, ids[i]) alone.

    Raises:
        UsageError: an eta, a number of steps or a label out of range, or labels or guidance for an unconditional network.
    """
    sampler = make_sampler(config.sample, config.diffusion, schedule)
    levels = make_levels(config.sample, config.diffusion, schedule)
    labels = make_labels(config.sample, config.network)
    with as_usage_error("--sample.steps"):
        sampler.plan(levels)
    if edit is not None:
        with as_usage_error("--inpaint" if edit.mask is not None else "--strength"):
            image.check_edit(edit, sampler, levels)

    def denoise_of(params: Any, ids: jax.Array) -> Denoise:
        return bind(config, network, schedule, params, config.sample.clip, labels(ids), config.sample.guidance)

    return image.generator(denoise_of, sampler, levels, image_shape, edit)
