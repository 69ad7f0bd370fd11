"""From the config to the things it names: one `match` a family."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import ema, guidance, images, losses, networks, samplers, schedules, sharding, timesteps, weightings
from ddpm_jax.cli import UsageError, blame
from ddpm_jax.clipping import clip
from ddpm_jax.config import Config, Data, Diffusion, Ema, Loss, Network, Optimizer, Sample
from ddpm_jax.data import sources
from ddpm_jax.data.kept import Kept
from ddpm_jax.denoiser import Denoise, Predict, clipped, make_denoise
from ddpm_jax.losses import LossOf
from ddpm_jax.samplers import Sampler
from ddpm_jax.schedules import Level, Schedule
from ddpm_jax.timesteps import DrawTimes

T = TypeVar("T")
Draw = Callable[[jax.Array, Any, jax.Array], jax.Array]


def make_source(data: Data) -> sources.Source:
    """The images. Raises UsageError where they are missing or not as expected."""
    match data.source:
        case "digits":
            with blame("--data.split"):
                return sources.digits(data.split)
        case "npz":
            with blame("--data.path"):
                return sources.npz(_given(data.path, "--data.path", "an .npz file"))
        case "folder":
            size = _given(data.image_size, "--data.image_size", "the size to bring images to")
            with blame("--data.path"):
                return Kept(sources.folder(_given(data.path, "--data.path", "a folder of images"), size))
        case "tfds":
            name = _given(data.name, "--data.name", "a data set such as cifar10")
            with blame("--data.name"):
                return Kept(sources.tfds(name, data.split, data.data_dir, data.image_size))
    raise UsageError(f"--data.source: expected digits, npz, folder or tfds, received {data.source}")


def make_schedule(diffusion: Diffusion) -> Schedule:
    """The noise schedule. Raises UsageError for a number of steps out of range."""
    with blame("--diffusion.num_steps"):
        schedule = _named_schedule(diffusion)
        return schedules.zero_terminal_snr(schedule) if diffusion.zero_terminal_snr else schedule


def _named_schedule(diffusion: Diffusion) -> Schedule:
    num_steps, betas = diffusion.num_steps, (diffusion.beta_start, diffusion.beta_end)
    match diffusion.schedule:
        case "linear":
            return schedules.linear(num_steps, *betas)
        case "quadratic":
            return schedules.quadratic(num_steps, *betas)
        case "constant":
            return schedules.constant(num_steps, diffusion.beta_end)
        case "warmup10":
            return schedules.warmup(num_steps, 0.1, *betas)
        case "warmup50":
            return schedules.warmup(num_steps, 0.5, *betas)
        case "jsd":
            return schedules.jsd(num_steps)
        case "cosine":
            return schedules.cosine(num_steps)
        case "sigmoid":
            return schedules.sigmoid(num_steps)
    raise UsageError(f"--diffusion.schedule: expected a schedule such as linear or cosine, received {diffusion.schedule}")


def make_loss(loss: Loss, diffusion: Diffusion, schedule: Schedule) -> LossOf:
    """What training minimises. Raises UsageError where the loss and what the network says do not fit."""
    learned = diffusion.variance.startswith("learned")
    if loss.kind == "hybrid" and not learned:
        raise UsageError(f"--loss.kind: expected --diffusion.variance learned with hybrid, received {diffusion.variance}")
    if loss.kind == "simple" and learned:
        raise UsageError(f"--loss.kind: expected hybrid or vlb, which teach a {diffusion.variance} variance, received simple")
    if loss.kind == "vlb" and (loss.weighting, loss.distance) != ("none", "l2"):
        raise UsageError("--loss.kind: expected simple or hybrid with --loss.weighting and --loss.distance, received vlb")
    weighting, prediction, variance = _make_weighting(loss.weighting), diffusion.prediction, diffusion.variance

    def of(key: jax.Array, predict: Predict, x0: jax.Array, ids: jax.Array, t: jax.Array) -> jax.Array:
        match loss.kind:
            case "simple":
                return losses.simple(key, schedule, predict, x0, prediction, ids, t, weighting, loss.distance)
            case "hybrid":
                return losses.hybrid(key, schedule, predict, x0, prediction, variance, ids, t, weighting, loss.distance)
            case "vlb":
                return losses.vlb(key, schedule, predict, x0, prediction, variance, ids, t)
        raise UsageError(f"--loss.kind: expected simple, vlb or hybrid, received {loss.kind}")

    return of


def _make_weighting(name: str) -> weightings.Weighting | None:
    match name:
        case "none":
            return None
        case "uniform":
            return weightings.uniform()
        case "min_snr":
            return weightings.min_snr()
        case "p2":
            return weightings.p2()
        case "truncated_snr":
            return weightings.truncated_snr()
        case "edm":
            return weightings.edm()
        case "sigmoid":
            return weightings.sigmoid()
    raise UsageError(f"--loss.weighting: expected a weighting such as min_snr, received {name}")


def make_times(loss: Loss, num_steps: int, batch_size: int) -> tuple[Any, DrawTimes]:
    """What is remembered of the losses before training, and how times are drawn, for batches of batch_size in all."""
    match loss.times:
        case "uniform":
            return (), lambda key, _, ids: (timesteps.uniform(key, num_steps, ids), jnp.ones(len(ids)))
        case "stratified":
            return (), lambda key, _, ids: (timesteps.stratified(key, num_steps, ids, batch_size), jnp.ones(len(ids)))
        case "importance":
            return timesteps.empty_history(num_steps), timesteps.importance
    raise UsageError(f"--loss.times: expected uniform, stratified or importance, received {loss.times}")


def make_network(config: Config, image_shape: Sequence[int]) -> networks.Network:
    """The network for images of (H, W, C).

    It has 2 C output channels where it learns a variance, and a label more than there are classes, which stands for none.
    """
    network, learned = config.network, config.diffusion.variance.startswith("learned")
    return networks.UNet(
        out_channels=2 * image_shape[-1] if learned else None,
        num_classes=None if network.num_classes is None else network.num_classes + 1,  # the last stands for none of them
        channels=network.channels,
        multipliers=network.multipliers,
        num_blocks=network.num_blocks,
        attention_resolutions=network.attention_resolutions,
        num_heads=network.num_heads,
        num_groups=network.num_groups,
        dropout=network.dropout,
        dtype=jnp.dtype(network.dtype),
        attention_levels=network.attention_levels,
        head_dim=network.head_dim,
        middle=network.middle,
        norm_eps=network.norm_eps,
        freq_shift=network.freq_shift,
        cos_first=network.cos_first,
        time_scale_shift=network.time_scale_shift,
        symmetric_padding=network.symmetric_padding,
        residual_downsampling=network.residual_downsampling,
        residual_upsampling=network.residual_upsampling,
        remat=config.train.remat,
    )


def make_learning_rate(optimizer: Optimizer, num_steps: int) -> optax.Schedule:
    """The learning rate by the number of updates before: warm-up, appendix B of Ho et al. 2020, then perhaps a decay."""
    warmup = optax.linear_schedule(0.0, optimizer.learning_rate, max(optimizer.warmup_steps, 1))
    match optimizer.decay:
        case "constant":
            after = optax.constant_schedule(optimizer.learning_rate)
        case "cosine":
            steps = max(num_steps - optimizer.warmup_steps, 1)
            after = optax.cosine_decay_schedule(optimizer.learning_rate, steps)
        case _:
            raise UsageError(f"--optimizer.decay: expected constant or cosine, received {optimizer.decay}")
    return optax.join_schedules([warmup, after], [optimizer.warmup_steps])


def make_optimizer(optimizer: Optimizer, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by the global norm, then Adam, section 4 and appendix B of Ho et al. 2020."""
    return optax.chain(clip(optimizer.clip_norm), optax.adam(learning_rate))


def make_averages(averages: Ema, batch_size: int) -> dict[str, ema.Share]:
    """The averages of the parameters by name, the one to draw with first. Raises UsageError for one that cannot be."""
    made = {}
    if averages.decay is not None:
        made["decay"] = ema.exponential(averages.decay, averages.warmup)
    with blame("--ema.half_life"):
        made |= {f"half_life_{n:.10g}": ema.half_life(n, batch_size, averages.warmup) for n in averages.half_life}
    with blame("--ema.power"):
        made |= {power_name(width): ema.power(width) for width in averages.power}
    if not made:
        raise UsageError("--ema.decay: expected a number where there is no other average, received None")
    return made


def power_name(width: float) -> str:
    """The name of the average of a power function."""
    return f"power_{width:.10g}"


def make_sampler(sample: Sample, diffusion: Diffusion, schedule: Schedule) -> Sampler:
    """The sampling method. Raises UsageError for an eta or order out of range, or a variance that is not learned."""
    match sample.sampler:
        case "ddpm":
            if sample.variance == "learned" and not diffusion.variance.startswith("learned"):
                raise UsageError("--sample.variance: expected fixed_small or fixed_large, for this model has not learned one")
            return samplers.ddpm((sample.variance or diffusion.variance).removesuffix("_raw"))
        case "ddim":
            with blame("--sample.eta"):
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
    with blame("--sample.order"):
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


def make_levels(sample: Sample, diffusion: Diffusion, schedule: Schedule) -> Level:
    """The grid of noise levels that it visits. Raises UsageError where the schedule or the model does not have them."""
    num_steps = schedule.num_steps if sample.steps is None else sample.steps
    fractional = sample.grid in ("log_snr", "karras", "exponential") or sample.sampler == "dpm_solver_pp_2s"
    if fractional and (diffusion.prediction == "mean" or diffusion.variance == "learned_raw"):
        raise UsageError("--sample.grid: expected whole times, for this model knows its schedule's own alone")
    with blame("--sample.steps"):
        match sample.grid:
            case "log_snr":
                return samplers.grids.uniform_log_snr(schedule, num_steps)
            case "karras":
                return samplers.grids.karras(schedule, num_steps)
            case "exponential":
                return samplers.grids.exponential(schedule, num_steps, power=2.0)
        return samplers.grids.spaced(schedule, num_steps, sample.grid)


def check_labels(network: Network, source: sources.Source) -> None:
    """Raises UsageError where a network is to be told of classes that the data do not have, or not of all."""
    known, there = network.num_classes, source.num_classes
    if known is not None and there is None:
        raise UsageError(f"--network.num_classes: expected None for data without labels, received {known}")
    if known is not None and there is not None and there > known:
        raise UsageError(f"--network.num_classes: expected {there}, as the data have, received {known}")


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


class Edit(NamedTuple):
    """An image to draw from, in place of noise alone.

    Attributes:
        image: float32 [H, W, C], in [-1, 1].
        mask: [H, W, 1], 1 where the image stays and 0 where it is filled in; None to change all of it.
        strength: Without a mask: how far, in [0, 1]. 0 leaves the image, 1 starts from its level of most noise.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    strength: float = 1.0


def make_draw(
    config: Config, network: networks.Network, schedule: Schedule, image_shape: Sequence[int], edit: Edit | None = None
) -> Draw:
    """What draws images with the config's sampler, compiled at its first call.

    Args:
        config: Its `sample`, and the prediction of its `diffusion`.
        network: The network.
        schedule: The schedule that it was trained on.
        image_shape: (H, W, C).
        edit: What to start from, for all images alike.

    Returns:
        (key, params, ids [B]) -> uint8 [B, H, W, C]; image i depends on (key, ids[i]) alone.

    Raises:
        UsageError: an eta, a number of steps or a label out of range, labels or guidance for a network without.
    """
    sampler = make_sampler(config.sample, config.diffusion, schedule)
    levels = make_levels(config.sample, config.diffusion, schedule)
    labels = make_labels(config.sample, config.network)
    with blame("--sample.steps"):
        sampler.plan(levels)
    if edit is not None:
        with blame("--inpaint" if edit.mask is not None else "--strength"):
            _check_edit(edit, sampler, levels)

    @functools.partial(jax.jit, compiler_options=sharding.compiler_options())
    def draw(key: jax.Array, params: Any, ids: jax.Array) -> jax.Array:
        denoise = bind_denoise(config, network, schedule, params, config.sample.clip, labels(ids), config.sample.guidance)
        shape = (len(ids), *image_shape)
        if edit is None:
            return images.to_uint8(samplers.sample(key, sampler, denoise, levels, shape, ids))
        image = jnp.broadcast_to(edit.image, shape)
        if edit.mask is None:
            return images.to_uint8(samplers.sdedit(key, sampler, denoise, levels, image, edit.strength, ids))
        filling = samplers.inpaint(sampler, image, np.broadcast_to(edit.mask, shape))
        return images.to_uint8(samplers.sample(key, filling, denoise, levels, shape, ids))

    return draw


def _check_edit(edit: Edit, sampler: Sampler, levels: Level) -> None:
    """Raises ValueError for a mask that inpainting refuses, a strength out of range, or one with too few steps left."""
    if edit.mask is not None:
        samplers.inpaint(sampler, jnp.asarray(edit.image), edit.mask).plan(levels)
    elif len((part := samplers.grids.starting_at(levels, edit.strength)).t) > 1:
        sampler.plan(part)


def bind_denoise(
    config: Config,
    network: networks.Network,
    schedule: Schedule,
    params: Any,
    clip: bool,
    labels: jax.Array | None = None,
    scale: float = 1.0,
) -> Denoise:
    """The network with its parameters and labels, as samplers and the likelihood take it.

    Args:
        config: Says what the network was trained to predict.
        network, schedule, params: The model.
        clip: Whether x0 is clipped to [-1, 1].
        labels: Integers, [B] or one for all; None or a negative one to tell no class. Of no use to a network without classes.
        scale: Of guidance by them; 0 tells no class either, 1 is without guidance.
    """
    none = config.network.num_classes
    if none is None:
        labels, scale = None, 1.0
    elif labels is None or scale == 0:
        labels, scale = jnp.int32(none), 1.0
    else:
        labels = jnp.where(labels < 0, none, labels)

    def predict(x_t: jax.Array, t: jax.Array) -> Any:
        if labels is None:
            return network.apply(params, x_t, t)
        if scale == 1:
            return network.apply(params, x_t, t, jnp.broadcast_to(labels, t.shape))
        assert none is not None  # where there are labels there are classes
        told = jnp.broadcast_to(labels, (len(t) // 2,))
        return network.apply(params, x_t, t, guidance.interleave(told, none))

    denoise = make_denoise(schedule, predict, config.diffusion.prediction, False, config.diffusion.variance)
    denoise = denoise if scale == 1 else guidance.classifier_free(denoise, scale)
    return clipped(denoise) if clip else denoise


def _given(value: T | None, option: str, what: str) -> T:
    if value is None:
        raise UsageError(f"{option}: expected {what}, received nothing")
    return value
