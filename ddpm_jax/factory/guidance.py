"""Config -> the labels of the samples, and the guided Denoise that generates them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from ddpm_jax import guidance, networks, schedules
from ddpm_jax.config import Config, Network, Sample
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.denoiser import Denoise, clipped, make_denoise
from ddpm_jax.factory.load import LoadedRun
from ddpm_jax.factory.network import bind
from ddpm_jax.schedules import HasLevels


def with_label_indices(config: Config, classes: Sequence[str] | None) -> Config:
    """The config with the labels to sample as indices instead of names.

    Args:
        config: The run's, with its `sample`.
        classes: The names of the classes, by label; None if they have none.

    Raises:
        UsageError: a label that is neither the name of a class nor an integer.
    """
    labels = config.sample.label
    if labels is None or config.network.num_classes is None:
        return config
    indices = tuple(_label_index(label, classes) for label in labels)
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, label=indices))


def _label_index(label: str | int, classes: Sequence[str] | None) -> int:
    if classes is not None and str(label) in classes:
        return classes.index(str(label))
    try:
        return int(label)
    except ValueError:
        expected = "indices, because the classes have no names" if classes is None else f"one of {', '.join(classes)}"
        near = difflib.get_close_matches(str(label), () if classes is None else classes, n=1)
        perhaps = f", perhaps {near[0]}" if near else ""
        raise UsageError(f"--sample.label: expected {expected}, received {label}{perhaps}") from None


def make_labels(sample: Sample, network: Network) -> Callable[[jax.Array], jax.Array | None]:
    """Maps sample indices to labels: the classes asked for, in turn, by index; see `with_label_indices` for names.

    Returns:
        ids [B] -> labels [B], or None if the network is unconditional.

    Raises:
        UsageError: classes for an unconditional network, or a class out of range.
    """
    if network.num_classes is None:
        if sample.label is not None:
            raise UsageError(f"--sample.label: expected none for an unconditional model, received {sample.label}")
        return lambda ids: None
    labels = range(network.num_classes) if sample.label is None else sample.label
    chosen = tuple(_label_index(label, None) for label in labels)
    if not chosen or not all(0 <= label < network.num_classes for label in chosen):
        raise UsageError(f"--sample.label: expected classes in 0..{network.num_classes - 1}, received {chosen}")
    return lambda ids: jnp.asarray(chosen, jnp.int32)[ids % len(chosen)]


def make_denoise_of(
    config: Config, network: networks.Network, schedule: HasLevels, weaker: LoadedRun | None = None
) -> Callable[[Any, jax.Array], Denoise]:
    """The denoiser with its labels and guidance, then clipped.

    Args:
        config: The run's, with its `sample`.
        network, schedule: The model.
        weaker: A weaker version of it, for autoguidance; its parameters are taken beside the model's.

    Returns:
        (params, ids [B]) -> Denoise; params is a pair with autoguidance.

    Raises:
        UsageError: guidance for an unconditional network, options of guidance that exclude each other, or a weaker model of
            other images, classes or levels.
    """
    sample, labels = config.sample, make_labels(config.sample, config.network)
    _check_guidance(config, weaker)

    def denoise_of(params: Any, ids: jax.Array) -> Denoise:
        of = labels(ids)
        if weaker is not None:  # the model against its weaker version
            strong = bind(config, network, schedule, params[0], False, of)
            weak = bind(weaker.config, weaker.network, weaker.schedule, params[1], False, of)
            return limited(guidance.autoguidance(strong, weak, sample.guidance, sample.guidance_interval))
        if sample.guidance_interval is not None or sample.guidance_rescale > 0:
            both = bind(config, network, schedule, params, False, guidance.interleave(cast(jax.Array, of), -1))
            scale, interval = sample.guidance, sample.guidance_interval
            return limited(guidance.classifier_free(both, scale, interval, sample.guidance_rescale))
        return limited(bind(config, network, schedule, params, False, of, sample.guidance))

    def limited(denoise: Denoise) -> Denoise:
        if sample.dynamic_threshold is not None:
            return guidance.dynamic_threshold(denoise, sample.dynamic_threshold)
        return clipped(denoise) if sample.clip else denoise

    return denoise_of


def _check_guidance(config: Config, weaker: LoadedRun | None) -> None:
    sample = config.sample
    if not math.isfinite(sample.guidance):
        raise UsageError(f"--sample.guidance: expected a finite number, received {sample.guidance}")
    if weaker is None and config.network.num_classes is None and sample.guidance != 1:
        raise UsageError(f"--sample.guidance: expected 1 for an unconditional model, received {sample.guidance}")
    for name in ("guidance_interval", "guidance_rescale"):
        if getattr(sample, name) and sample.guidance in (0, 1):
            raise UsageError(f"--sample.{name}: expected with --sample.guidance above 1, received with {sample.guidance}")
    unused = make_denoise(schedules.linear(1000), lambda x_t, t: x_t)  # what follows only checks its numbers
    with as_usage_error("--sample.guidance_interval"):
        guidance.classifier_free(unused, sample.guidance, sample.guidance_interval)
    with as_usage_error("--sample.guidance_rescale"):
        guidance.classifier_free(unused, sample.guidance, rescale=sample.guidance_rescale)
    with as_usage_error("--sample.dynamic_threshold"):
        guidance.dynamic_threshold(unused, 1.0 if sample.dynamic_threshold is None else sample.dynamic_threshold)
    if weaker is not None:
        _check_weaker(config, weaker)


def _check_weaker(config: Config, weaker: LoadedRun) -> None:
    if config.sample.guidance == 1:
        raise UsageError("--weaker: expected with --sample.guidance above 1, its scale, received with 1")
    if config.sample.guidance_rescale:
        raise UsageError("--sample.guidance_rescale: expected 0 with autoguidance by --weaker")
    if weaker.config.network.num_classes != config.network.num_classes:
        raise UsageError(f"--weaker: expected a model of {config.network.num_classes} classes, as in --workdir, "
                         f"received {weaker.config.network.num_classes}")  # fmt: skip
    for name in ("schedule", "num_steps", "beta_start", "beta_end", "zero_terminal_snr", "shift"):
        ours, theirs = (getattr(run.diffusion, name) for run in (config, weaker.config))
        if ours != theirs:
            raise UsageError(f"--weaker: expected diffusion.{name} {ours}, as in --workdir, received {theirs}")
