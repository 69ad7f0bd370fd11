"""Conversion between the configs of diffusers' DDPMScheduler and DDIMScheduler and our diffusion process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.interop.fields import LARGE, Field, integer, number, one_of
from ddpm_jax.schedules import Schedule

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_large": "fixed_large", "learned_range": "learned"}
SPACINGS = ("leading", "linspace", "trailing")
DDIM_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
DDPM_SCHEDULES = (*DDIM_SCHEDULES, "sigmoid")
"""The beta_schedules of each scheduler."""


DEFAULT_END = 0.02
"""The default of beta_end."""
NO_LIMIT = 1e6
"""A sample_max_value that no prediction of x0 reaches, because JSON has no infinity."""


def _is_betas(value: Any) -> bool:
    if not isinstance(value, list):
        return value is None
    return value != [] and all(type(beta) in (int, float) and abs(beta) < LARGE for beta in value)


def _is_quantile(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


COMMON: dict[str, Field] = {
    "num_train_timesteps": integer(),
    "beta_start": number(below=1.0),
    "beta_end": number(below=1.0),
    "beta_schedule": one_of(*DDPM_SCHEDULES),
    "trained_betas": Field("numbers or null", _is_betas, None),
    "clip_sample": one_of(True, False),
    "prediction_type": one_of(*PREDICTIONS, default="epsilon"),
    "thresholding": one_of(True, False, default=False),
    "dynamic_thresholding_ratio": Field("a number from 0 to 1", _is_quantile, 0.995),
    "clip_sample_range": number(default=1.0),
    "sample_max_value": number(default=1.0),
    "timestep_spacing": one_of(*SPACINGS, default="leading"),
    "steps_offset": one_of(0, default=0),
    "rescale_betas_zero_snr": one_of(True, False, default=False),
}
CLASSES = {
    "DDPMScheduler": {**COMMON, "variance_type": one_of(*VARIANCES, "fixed_small_log")},
    "DDIMScheduler": {
        **COMMON,
        "beta_schedule": one_of(*DDIM_SCHEDULES),
        "set_alpha_to_one": one_of(True, default=True),
    },
}
"""The supported schedulers, with the supported values of their fields."""


class Process(NamedTuple):
    """A scheduler's config in our terms.

    Attributes:
        schedule: The noise schedule.
        prediction: What the network predicts: "eps", "x0" or "v".
        variance: The variance of ancestral steps: "fixed_small", "fixed_large" or "learned".
        clip: Whether the prediction of x0 is clipped to [-1, 1].
        spacing: How a subset of the timesteps is chosen: "leading", "linspace" or "trailing".
        sampler: "ddpm" or "ddim".
        threshold: The (quantile, limit) of dynamic thresholding, which is applied instead of clipping; None for none.
    """

    schedule: Schedule
    prediction: str
    variance: str
    clip: bool
    spacing: str
    sampler: str
    threshold: tuple[float, float] | None = None


def to_process(name: str, config: dict[str, Any]) -> Process:
    """Converts a scheduler's class and all its fields to our process.

    Raises:
        ValueError: fields are incompatible, or our process cannot represent their combination; the message names them.
    """
    schedule = _schedule_of(config)
    # s = min(max(quantile, 1), 1) = 1: with the default limit, thresholding is clipping.
    quantile, limit = config["dynamic_thresholding_ratio"], float(config["sample_max_value"])
    thresholding, clip = config["thresholding"], config["clip_sample"]
    _require(not thresholding or limit > 0, "sample_max_value", "a number above 0 with thresholding", limit)
    _require(thresholding or not clip or config["clip_sample_range"] == 1, "clip_sample_range",
             "1.0 with clip_sample", config["clip_sample_range"])  # fmt: skip
    no_signal, epsilon = bool(schedule.alpha[-1] == 0), config["prediction_type"] == "epsilon"
    _require(not (no_signal and epsilon), "prediction_type",
             "sample or v_prediction for betas that leave no signal at the last step", "epsilon")  # fmt: skip
    return Process(
        schedule,
        PREDICTIONS[config["prediction_type"]],
        # fixed_small_log computes fixed_small through its logarithm; DDIM with eta = 1 is DDPM with fixed_small.
        VARIANCES.get(config.get("variance_type", "fixed_small"), "fixed_small"),
        clip or (thresholding and limit == 1),
        config["timestep_spacing"],
        "ddpm" if name == "DDPMScheduler" else "ddim",
        (quantile, math.inf if limit >= NO_LIMIT else limit) if thresholding and limit != 1 else None,
    )


def _require(holds: bool, field: str, expected: str, received: Any) -> None:
    if not holds:
        raise ValueError(f"scheduler_config.json: {field}: expected {expected}, received {received}")


def _schedule_of(config: dict[str, Any]) -> Schedule:
    betas, num_steps = config["trained_betas"], config["num_train_timesteps"]
    if betas is not None:
        _require(len(betas) == num_steps, "trained_betas", f"{num_steps} numbers", len(betas))
    try:
        schedule = (
            _schedule(config["beta_schedule"], num_steps, config["beta_start"], config["beta_end"])
            if betas is None
            else _from_betas(betas)
        )
    except ValueError as error:
        field = "beta_start, beta_end" if betas is None else "trained_betas"
        raise ValueError(f"scheduler_config.json: {field}: {error}") from error
    if not config["rescale_betas_zero_snr"]:
        return schedule
    _require(num_steps > 1, "num_train_timesteps", "at least 2 with rescale_betas_zero_snr", num_steps)
    return schedules.zero_terminal_snr(schedule)


def _from_betas(betas: list[float]) -> Schedule:
    """The schedule with these betas, the last of which may be 1: that leaves no signal."""
    beta = np.asarray(betas, np.float64)
    if len(beta) < 2 or beta[-1] != 1:
        return schedules.from_betas(beta)
    schedules.from_betas(beta[:-1])  # checks the others
    log_alpha_bar = np.append(np.cumsum(np.log1p(-beta[:-1])), -np.inf)
    return schedules.from_log_snr(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


def _schedule(name: str, num_steps: int, start: float, end: float) -> Schedule:
    match name:
        case "squaredcos_cap_v2":
            return schedules.cosine(num_steps)
        case "scaled_linear":
            return schedules.from_betas(np.linspace(start**0.5, end**0.5, num_steps) ** 2)
        case "sigmoid":
            return schedules.from_betas(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, num_steps))))
    return schedules.linear(num_steps, start, end)


def from_process(process: Process) -> tuple[str, dict[str, Any]]:
    """Converts our process to a scheduler's class and all its fields.

    Raises:
        ValueError: the scheduler cannot represent the process; the message names our field.
    """
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    variances = {ours: theirs for theirs, ours in VARIANCES.items()}
    known = {"prediction": predictions, "variance": variances, "spacing": SPACINGS, "sampler": ("ddpm", "ddim")}
    for field, values in known.items():
        if getattr(process, field) not in values:
            raise ValueError(f"{field}: expected {' or '.join(values)}, received {getattr(process, field)}")
    schedule = schedules.require_discrete(process.schedule, "diffusers")
    if schedule.alpha[-1] == 0 and process.prediction == "eps":
        raise ValueError("prediction: expected x0 or v for a schedule without signal at its last step, received eps")
    if process.sampler == "ddim" and process.variance == "learned":
        raise ValueError("variance: expected fixed_small or fixed_large for diffusers' DDIM, received learned")
    if process.threshold is not None and not (0 <= process.threshold[0] <= 1 and process.threshold[1] > 0):
        raise ValueError(f"threshold: expected a quantile from 0 to 1 and a limit above 0, received {process.threshold}")
    name = "DDPMScheduler" if process.sampler == "ddpm" else "DDIMScheduler"
    quantile, limit = (0.995, 1.0) if process.threshold is None else process.threshold
    config = {
        "num_train_timesteps": schedule.num_steps,
        **describe(schedule, DDPM_SCHEDULES if name == "DDPMScheduler" else DDIM_SCHEDULES),
        "clip_sample": process.clip,
        "prediction_type": predictions[process.prediction],
        "thresholding": process.threshold is not None,
        "dynamic_thresholding_ratio": quantile,
        "clip_sample_range": 1.0,
        "sample_max_value": min(limit, NO_LIMIT),
        "timestep_spacing": process.spacing,
        "steps_offset": 0,
    }
    if name == "DDPMScheduler":
        return name, {**config, "variance_type": variances[process.variance]}
    return name, {**config, "set_alpha_to_one": True}


def describe(schedule: Schedule, names: Sequence[str] = DDPM_SCHEDULES) -> dict[str, Any]:
    """The betas as fields of diffusers: the name of their schedule if it has one, else a list.

    Args:
        schedule: The schedule.
        names: The beta_schedules of the scheduler.
    """
    beta = np.asarray(schedule.beta, np.float64)
    start, end = (float(str(np.float32(b))) for b in (beta[0], beta[-1]))  # 1e-4, not the float32 closest to it
    # Rescaling keeps the first beta and hides the last, of which only the default is recognized.
    rescaled = len(beta) > 1 and end == 1
    for name in names:
        ends = (1e-4, DEFAULT_END) if name == "squaredcos_cap_v2" else _ends(name, start, DEFAULT_END if rescaled else end)
        if min(ends) >= 0 and max(ends) < 1 and _matches(beta, name, ends, rescaled):
            return _fields(name, ends, None, rescaled)
    return _fields("linear", (start, DEFAULT_END if rescaled else end), beta.tolist(), False)


def _matches(beta: np.ndarray, name: str, ends: tuple[float, float], rescaled: bool) -> bool:
    try:
        candidate = _schedule(name, len(beta), *ends)
    except ValueError:  # ends that this schedule cannot have
        return False
    candidate = schedules.zero_terminal_snr(candidate) if rescaled else candidate
    return np.allclose(beta, candidate.beta, rtol=2e-6, atol=0)


def _fields(name: str, ends: tuple[float, float], betas: list[float] | None, rescaled: bool) -> dict[str, Any]:
    return {
        "beta_start": ends[0],
        "beta_end": ends[1],
        "beta_schedule": name,
        "trained_betas": betas,
        "rescale_betas_zero_snr": rescaled,
    }


def _ends(name: str, start: float, end: float) -> tuple[float, float]:
    """The beta_start and beta_end of a schedule with this first and last beta."""
    if name != "sigmoid":
        return start, end
    tail = 1 / (1 + np.exp(6.0))
    width = (end - start) / (1 - 2 * tail)
    return float(f"{start - width * tail:.6g}"), float(f"{end + width * tail:.6g}")
