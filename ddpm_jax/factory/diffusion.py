"""Config -> the noise schedule, the loss, and the distribution of training timesteps."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import losses, preconditioning, schedules
from ddpm_jax.config import Diffusion, Loss
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.denoiser import Predict
from ddpm_jax.losses import LossOf, timesteps, weightings
from ddpm_jax.losses.timesteps import DrawTimes
from ddpm_jax.schedules import HasLevels


def make_schedule(diffusion: Diffusion) -> HasLevels:
    """The noise schedule.

    Raises:
        UsageError: a number of steps out of range, or options that need steps with a schedule in continuous time.
    """
    num_steps, betas = diffusion.num_steps, (diffusion.beta_start, diffusion.beta_end)
    if diffusion.shift != 1 and diffusion.schedule != "flow":
        raise UsageError(f"--diffusion.shift: expected with --diffusion.schedule flow, received with {diffusion.schedule}")
    match diffusion.schedule:
        case "continuous_linear":
            _check_continuous(diffusion)
            with as_usage_error("--diffusion.beta_start"):
                return schedules.continuous.linear_vp(num_steps * betas[0], num_steps * betas[1])
        case "continuous_cosine":
            _check_continuous(diffusion)
            return schedules.continuous.cosine()
        case "flow":
            _check_continuous(diffusion)
            with as_usage_error("--diffusion.shift"):
                return schedules.flow(diffusion.shift)
    with as_usage_error("--diffusion.num_steps"):
        schedule = _discrete_schedule(diffusion)
        return schedules.zero_terminal_snr(schedule) if diffusion.zero_terminal_snr else schedule


def _check_continuous(diffusion: Diffusion) -> None:
    why = f"with the continuous schedule {diffusion.schedule}"
    if diffusion.prediction == "mean":
        raise UsageError(f"--diffusion.prediction: expected eps, x0, v, score, flow or edm {why}, received mean")
    if diffusion.variance.startswith("learned"):
        raise UsageError(f"--diffusion.variance: expected fixed_small or fixed_large {why}, received {diffusion.variance}")
    if diffusion.zero_terminal_snr:
        raise UsageError(f"--diffusion.zero_terminal_snr: expected False {why}, received True")


def _discrete_schedule(diffusion: Diffusion) -> schedules.Schedule:
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


def make_loss(loss: Loss, diffusion: Diffusion, schedule: HasLevels) -> LossOf:
    """The training loss. Raises UsageError if the loss and the network's outputs or schedule are incompatible."""
    _check_loss(loss, diffusion, schedule)
    weighting, prediction, variance = _make_weighting(loss.weighting), diffusion.prediction, diffusion.variance
    if prediction == "edm":
        return functools.partial(_edm, schedule, diffusion.sigma_data)
    match loss.kind:
        case "simple":
            return lambda key, predict, x0, ids, t: losses.simple(
                key, schedule, predict, x0, prediction, ids, t, weighting, loss.distance
            )
        case "hybrid":
            return lambda key, predict, x0, ids, t: losses.hybrid(
                key, schedule, predict, x0, prediction, variance, ids, t, weighting, loss.distance
            )
        case "vlb":
            return lambda key, predict, x0, ids, t: losses.vlb(key, schedule, predict, x0, prediction, variance, ids, t)
    raise UsageError(f"--loss.kind: expected simple, vlb or hybrid, received {loss.kind}")


def _edm(
    schedule: HasLevels, sigma_data: float, key: jax.Array, predict: Predict, x0: jax.Array, ids: jax.Array, t: jax.Array
) -> jax.Array:
    level = schedule.level(t)
    return losses.edm(key, predict, x0, sigma_data, ids=ids, sigma=level.sigma / level.alpha)


def _check_loss(loss: Loss, diffusion: Diffusion, schedule: HasLevels) -> None:
    prediction, learned = diffusion.prediction, diffusion.variance.startswith("learned")
    if prediction in ("eps", "score") and (diffusion.zero_terminal_snr or diffusion.schedule == "flow"):
        why = "--diffusion.schedule flow" if diffusion.schedule == "flow" else "--diffusion.zero_terminal_snr"
        raise UsageError(f"--diffusion.prediction: expected v, x0 or flow with {why}, "
                         f"received {prediction}, which does not determine x0 at zero SNR")  # fmt: skip
    if loss.kind == "hybrid" and not learned:
        raise UsageError(f"--loss.kind: expected --diffusion.variance learned with hybrid, received {diffusion.variance}")
    if loss.kind == "simple" and learned:
        raise UsageError(f"--loss.kind: expected hybrid or vlb, which teach a {diffusion.variance} variance, received simple")
    if loss.kind == "vlb" and (loss.weighting, loss.distance) != ("none", "l2"):
        raise UsageError("--loss.kind: expected simple or hybrid with --loss.weighting and --loss.distance, received vlb")
    if loss.kind == "vlb" and schedule.num_steps is None:
        raise UsageError(f"--loss.kind: expected simple with the continuous schedule {diffusion.schedule}, received vlb")
    if prediction == "edm":
        _check_edm(loss, diffusion)
    elif diffusion.sigma_data != 0.5:
        raise UsageError(f"--diffusion.sigma_data: expected with --diffusion.prediction edm, received with {prediction}")


def _check_edm(loss: Loss, diffusion: Diffusion) -> None:
    why = "with --diffusion.prediction edm"
    with as_usage_error("--diffusion.sigma_data"):
        preconditioning.check_sigma_data(diffusion.sigma_data)
    if (loss.kind, loss.weighting, loss.distance) != ("simple", "none", "l2"):
        given = f"{loss.kind}, {loss.weighting}, {loss.distance}"
        raise UsageError(f"--loss: expected kind simple, weighting none, distance l2 {why}, received {given}")
    if diffusion.zero_terminal_snr:
        raise UsageError(f"--diffusion.zero_terminal_snr: expected False {why}, received True")


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


def make_times(loss: Loss, diffusion: Diffusion, schedule: HasLevels, batch_size: int) -> tuple[Any, DrawTimes]:
    """The distribution of training timesteps.

    Args:
        loss, diffusion: The config's.
        schedule: The noise schedule.
        batch_size: Size of the global batch.

    Returns:
        The loss history before training, () for none; and the distribution.

    Raises:
        UsageError: importance sampling in continuous time, or a log-normal distribution in discrete time.
    """
    num_steps = schedule.num_steps
    if loss.times != "log_normal" and (loss.times_mean, loss.times_std) != (0, 1):
        raise UsageError(f"--loss.times: expected log_normal with --loss.times_mean and times_std, received {loss.times}")
    match loss.times:
        case "uniform":
            return (), lambda key, _, ids: (timesteps.uniform(key, num_steps, ids), jnp.ones(len(ids)))
        case "stratified":
            return (), lambda key, _, ids: (timesteps.stratified(key, num_steps, ids, batch_size), jnp.ones(len(ids)))
        case "importance":
            if num_steps is None:
                raise UsageError(
                    "--loss.times: expected uniform, stratified or log_normal in continuous time, received importance"
                )
            return timesteps.empty_history(num_steps), timesteps.importance
        case "log_normal":
            mean, std = loss.times_mean + math.log(diffusion.shift), loss.times_std
            if num_steps is not None:
                raise UsageError(f"--loss.times: expected another for the discrete schedule {diffusion.schedule}, "
                                 "received log_normal")  # fmt: skip
            return (), lambda key, _, ids: (timesteps.log_normal(key, schedule, ids, mean, std), jnp.ones(len(ids)))
    raise UsageError(f"--loss.times: expected uniform, stratified, importance or log_normal, received {loss.times}")
