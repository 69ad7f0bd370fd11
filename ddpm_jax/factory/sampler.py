"""Config -> the sampler, its timestep grid, and the function that generates images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import networks, samplers
from ddpm_jax.config import Config, Diffusion, Sample, sampling
from ddpm_jax.config.cli import UsageError, as_usage_error
from ddpm_jax.factory.guidance import make_denoise_of
from ddpm_jax.factory.load import LoadedRun
from ddpm_jax.pipelines import image
from ddpm_jax.samplers import Sampler, grids
from ddpm_jax.schedules import HasLevels, Level, log_snr_range, require_discrete


def make_sampler(sample: Sample, diffusion: Diffusion, schedule: HasLevels, gamma: ArrayLike | None = None) -> Sampler:
    """The sampling method.

    Args:
        sample: Its kind and options.
        diffusion: The model's prediction and variance.
        schedule: The model's.
        gamma: E|eps|^2 at every timestep, for analytic_dpm; see `samplers.mean_squared_eps`.

    Raises:
        UsageError: an option out of range, a variance that is not learned, or a sampler that this model cannot use.
    """
    match sample:
        case sampling.Ddpm(variance=variance):
            return samplers.ddpm(step_variance(variance, diffusion, "--sample.variance"))
        case sampling.Ddim(eta=eta):
            with as_usage_error("--sample.eta"):
                return samplers.ddim(eta)
        case sampling.Euler():
            with as_usage_error("--sample.churn"):
                return samplers.euler(schedule, _churn(sample, diffusion))
        case sampling.EulerAncestral(eta=eta):
            with as_usage_error("--sample.eta"):
                return samplers.euler_ancestral(eta)
        case sampling.Heun():
            with as_usage_error("--sample.churn"):
                return samplers.heun(schedule, _churn(sample, diffusion))
        case sampling.DpmSolver(order=order, variant=variant, second_difference=second_difference):
            is_sde = sample.sampler == "dpm_solver_pp_sde"
            with as_usage_error("--sample.order"):
                return samplers.dpm_solver_pp(order, variant, is_sde, _falls(sample), second_difference)
        case sampling.DpmSolverPp2S(variant=variant, ratio=ratio):
            require_every_time(diffusion, "--sample.sampler")
            with as_usage_error("--sample.ratio"):
                return samplers.dpm_solver_pp_2s(schedule, variant, ratio)
        case sampling.UniPc(order=order, variant=variant, corrector=corrector):
            with as_usage_error("--sample.order"):
                return samplers.unipc(order, variant, corrector, _falls(sample))
        case sampling.Deis(order=order, variable=variable):
            with as_usage_error("--sample.order"):
                return samplers.deis(order, variable, _falls(sample))
        case sampling.Pndm(start=start, lower_order_final=lower_order_final):
            return samplers.pndm(start, lower_order_final)
        case sampling.AnalyticDpm():
            if gamma is None:
                raise UsageError("--sample.sampler: expected analytic_dpm in sample.py only, which estimates E|eps|^2 first")
            with as_usage_error("--sample.sampler"):
                return samplers.analytic_dpm(gamma)
        case sampling.Langevin(variance=variance, snr=snr, num_corrections=num_corrections):
            predictor = samplers.ddpm(step_variance(variance, diffusion, "--sample.variance"))
            with as_usage_error("--sample.snr" if num_corrections > 0 else "--sample.num_corrections"):
                return samplers.langevin(predictor, snr, num_corrections)
        case sampling.Restart():
            return samplers.restart(samplers.heun())
    raise UsageError(f"--sample.sampler: expected a sampler such as ddpm or ddim, received {sample.sampler}")


def _falls(sample: sampling.Multistep) -> bool:
    """Whether the order falls to 1 in the last steps."""
    if sample.lower_order_final is None:
        return sample.steps is not None and sample.steps < 15
    return sample.lower_order_final


def _churn(sample: sampling.Churned, diffusion: Diffusion) -> samplers.Churn:
    if sample.churn > 0:
        require_every_time(diffusion, "--sample.churn")
    elif (sample.churn_low, sample.churn_high, sample.churn_noise) != (0.0, float("inf"), 1.0):
        raise UsageError("--sample.churn: expected above 0 with --sample.churn_low, churn_high or churn_noise, received 0")
    return samplers.Churn(sample.churn, sample.churn_low, sample.churn_high, sample.churn_noise)


def step_variance(chosen: str | None, diffusion: Diffusion, option: str) -> str:
    """The variance of reverse steps as samplers name it, by default the model's. Raises UsageError if it is not learned."""
    if chosen == "learned" and not diffusion.variance.startswith("learned"):
        raise UsageError(f"{option}: expected fixed_small or fixed_large, because this model has no learned variance")
    return (chosen or diffusion.variance).removesuffix("_raw")


def require_every_time(diffusion: Diffusion, option: str) -> None:
    """Raises UsageError for a model that is defined at the timesteps of its schedule only."""
    if diffusion.prediction == "mean" or diffusion.variance == "learned_raw":
        why = "because this model is defined at the timesteps of its schedule only"
        raise UsageError(f"{option}: expected a grid and a sampler of integer timesteps, {why}")


def make_levels(sample: Sample, diffusion: Diffusion, schedule: HasLevels) -> Level:
    """The timestep grid. Raises UsageError if the schedule or the model doesn't have its levels."""
    if sample.rho is not None and sample.grid not in ("karras", "exponential"):
        raise UsageError(f"--sample.rho: expected with --sample.grid karras or exponential, received with {sample.grid}")
    if sample.sigma_range is not None and not 0 < sample.sigma_range[0] < sample.sigma_range[1] < math.inf:
        raise UsageError(f"--sample.sigma_range: expected two numbers, 0 < smallest < largest, received {sample.sigma_range}")
    option = "steps" if sample.rho is None else "rho"
    with as_usage_error(f"--sample.{option if sample.sigma_range is None else 'sigma_range'}"):
        levels = _grid(sample, diffusion, schedule)
    match sample:
        case sampling.Pndm(start="runge_kutta"):
            with as_usage_error("--sample.start"):
                return grids.runge_kutta_start(require_discrete(schedule, "runge_kutta"), np.asarray(levels.t)[:-1])
        case sampling.Restart(restart_interval=(clean, noisy), num_restarts=num_restarts):
            if not 0 <= clean < noisy <= 1:
                raise UsageError(f"--sample.restart_interval: expected 0 <= clean < noisy <= 1, received {clean}, {noisy}")
            with as_usage_error("--sample.restart_interval" if num_restarts >= 0 else "--sample.num_restarts"):
                return grids.restart(levels, noisy * schedule.last, clean * schedule.last, num_restarts)
    return levels


def _grid(sample: Sample, diffusion: Diffusion, schedule: HasLevels) -> Level:
    if sample.sigma_range is not None and sample.grid in grids.SPACINGS:
        raise UsageError("--sample.sigma_range: expected with --sample.grid log_snr, karras or exponential, "
                         f"received with {sample.grid}")  # fmt: skip
    if sample.grid in grids.SPACINGS:
        return grids.spaced(schedule, sample.steps, sample.grid)
    require_every_time(diffusion, "--sample.grid")
    of_schedule = grids.CONTINUOUS_STEPS if schedule.num_steps is None else schedule.num_steps
    num_steps = of_schedule if sample.steps is None else sample.steps
    log_snr = log_snr_range(schedule) if schedule.num_steps is None else None
    if sample.sigma_range is not None:
        smallest, largest = sample.sigma_range
        log_snr = -2 * math.log(largest), -2 * math.log(smallest)
    match sample.grid:
        case "log_snr":
            return grids.uniform_log_snr(schedule, num_steps, log_snr)
        case "karras":
            return grids.karras(schedule, num_steps, 7.0 if sample.rho is None else sample.rho, log_snr)
        case "exponential":
            return grids.exponential(schedule, num_steps, 2.0 if sample.rho is None else sample.rho, log_snr)
    raise UsageError(f"--sample.grid: expected a grid such as leading or karras, received {sample.grid}")


def make_generator(
    config: Config,
    network: networks.Network,
    schedule: HasLevels,
    image_shape: Sequence[int],
    edit: image.ImageEdit | None = None,
    weaker: LoadedRun | None = None,
    gamma: ArrayLike | None = None,
) -> image.Generate:
    """The function that generates images with the config's sampler.

    Args:
        config: The run's, with its `sample`.
        network: The network.
        schedule: The schedule that it was trained on.
        image_shape: (H, W, C).
        edit: An image to start from, the same for all samples.
        weaker, gamma: As for `make_denoise_of` and `make_sampler`.

    Returns:
        (key, params, ids [B]) -> uint8 [B, H, W, C]; image i depends on (key, ids[i]) alone. With autoguidance, params are
        those of both models.

    Raises:
        UsageError: an option out of range, or labels or guidance for an unconditional network.
    """
    sampler = make_sampler(config.sample, config.diffusion, schedule, gamma)
    levels = make_levels(config.sample, config.diffusion, schedule)
    with as_usage_error("--sample.steps"):
        sampler.plan(levels)
    if weaker is not None:  # it is evaluated at the same levels
        with as_usage_error("--weaker"):
            make_sampler(config.sample, weaker.config.diffusion, schedule, gamma)
            make_levels(config.sample, weaker.config.diffusion, schedule)
    if edit is not None and len(levels.t) != len(_grid(config.sample, config.diffusion, schedule).t):
        raise UsageError("--sample.sampler: expected one without restarts or a Runge-Kutta start with --init_image")
    if edit is not None:
        with as_usage_error("--inpaint" if edit.mask is not None else "--strength"):
            image.check_edit(edit, sampler, levels)
    return image.generator(make_denoise_of(config, network, schedule, weaker), sampler, levels, image_shape, edit)
