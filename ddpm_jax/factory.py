"""From the config to the things it names: one `match` a family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import images, networks, samplers, schedules, sharding
from ddpm_jax.cli import UsageError, blame
from ddpm_jax.config import Config, Data, Diffusion, Network, Optimizer, Sample
from ddpm_jax.data import sources
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import Sampler
from ddpm_jax.schedules import Level, Schedule

T = TypeVar("T")
Draw = Callable[[jax.Array, Any, jax.Array], jax.Array]


def make_source(data: Data) -> sources.Source:
    """The images. Raises UsageError where they are missing or not as expected."""
    match data.source:
        case "digits":
            return sources.digits()
        case "npz":
            with blame("--data.path"):
                return sources.npz(_given(data.path, "--data.path", "an .npz file"))
        case "folder":
            size = _given(data.image_size, "--data.image_size", "the size to bring images to")
            with blame("--data.path"):
                return sources.folder(_given(data.path, "--data.path", "a folder of images"), size)
        case "tfds":
            name = _given(data.name, "--data.name", "a data set such as cifar10")
            with blame("--data.name"):
                return sources.tfds(name, data.split, data.data_dir, data.image_size)
    raise UsageError(f"--data.source: expected digits, npz, folder or tfds, received {data.source}")


def make_schedule(diffusion: Diffusion) -> Schedule:
    """The noise schedule. Raises UsageError for a number of steps out of range."""
    with blame("--diffusion.num_steps"):
        match diffusion.schedule:
            case "linear":
                return schedules.linear(diffusion.num_steps)
            case "cosine":
                return schedules.cosine(diffusion.num_steps)
    raise UsageError(f"--diffusion.schedule: expected linear or cosine, received {diffusion.schedule}")


def make_network(network: Network) -> networks.Network:
    """The network."""
    return networks.UNet(
        channels=network.channels,
        multipliers=network.multipliers,
        num_blocks=network.num_blocks,
        attention_resolutions=network.attention_resolutions,
        num_heads=network.num_heads,
        num_groups=network.num_groups,
        dropout=network.dropout,
        dtype=jnp.dtype(network.dtype),
    )


def make_optimizer(optimizer: Optimizer, num_steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then Adam with warm-up, section 4 and appendix B of Ho et al. 2020."""
    warmup = optax.linear_schedule(0.0, optimizer.learning_rate, max(optimizer.warmup_steps, 1))
    match optimizer.decay:
        case "constant":
            after = optax.constant_schedule(optimizer.learning_rate)
        case "cosine":
            steps = max(num_steps - optimizer.warmup_steps, 1)
            after = optax.cosine_decay_schedule(optimizer.learning_rate, steps)
        case _:
            raise UsageError(f"--optimizer.decay: expected constant or cosine, received {optimizer.decay}")
    schedule = optax.join_schedules([warmup, after], [optimizer.warmup_steps])
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), optax.adam(schedule))


def make_sampler(sample: Sample) -> Sampler:
    """The sampling method. Raises UsageError for an eta out of range."""
    match sample.sampler:
        case "ddpm":
            return samplers.ddpm(sample.variance)
        case "ddim":
            with blame("--sample.eta"):
                return samplers.ddim(sample.eta)
    raise UsageError(f"--sample.sampler: expected ddpm or ddim, received {sample.sampler}")


def make_levels(sample: Sample, schedule: Schedule) -> Level:
    """The grid of noise levels that it visits. Raises UsageError for a number of steps out of range."""
    with blame("--sample.steps"):
        return samplers.grids.spaced(schedule, sample.steps, sample.spacing)


def make_draw(config: Config, network: networks.Network, schedule: Schedule, image_shape: Sequence[int]) -> Draw:
    """What draws images with the config's sampler, compiled at its first call.

    Args:
        config: Its `sample`, and the prediction of its `diffusion`.
        network: The network.
        schedule: The schedule that it was trained on.
        image_shape: (H, W, C).

    Returns:
        (key, params, ids [B]) -> uint8 [B, H, W, C]; image i depends on (key, ids[i]) alone.

    Raises:
        UsageError: an eta or a number of steps out of range.
    """
    sampler, levels = make_sampler(config.sample), make_levels(config.sample, schedule)

    @functools.partial(jax.jit, compiler_options=sharding.compiler_options())
    def draw(key: jax.Array, params: Any, ids: jax.Array) -> jax.Array:
        def predict(x_t: jax.Array, t: jax.Array) -> Any:
            return network.apply(params, x_t, t)

        denoise = make_denoise(schedule, predict, config.diffusion.prediction, config.sample.clip)
        x = samplers.sample(key, sampler, denoise, levels, (len(ids), *image_shape), ids)
        return images.to_uint8(x)

    return draw


def _given(value: T | None, option: str, what: str) -> T:
    if value is None:
        raise UsageError(f"{option}: expected {what}, received nothing")
    return value
