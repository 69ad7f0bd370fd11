"""Conversion between the configs of diffusers' DDPMScheduler and DDIMScheduler and our diffusion process."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.interop.fields import Field, integer, number, one_of
from ddpm_jax.schedules import Schedule

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_large": "fixed_large", "learned_range": "learned"}
SPACINGS = ("leading", "linspace", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def _is_betas(value: Any) -> bool:
    return value is None or (isinstance(value, list) and value != [] and all(type(beta) in (int, float) for beta in value))


COMMON: dict[str, Field] = {
    "num_train_timesteps": integer(),
    "beta_start": number(below=1.0),
    "beta_end": number(below=1.0),
    "beta_schedule": one_of(*BETA_SCHEDULES),
    "trained_betas": Field("numbers or null", _is_betas, None),
    "clip_sample": one_of(True, False),
    "prediction_type": one_of(*PREDICTIONS, default="epsilon"),
    "thresholding": one_of(False, default=False),
    "dynamic_thresholding_ratio": number(default=0.995),
    "clip_sample_range": one_of(1.0, default=1.0),
    "sample_max_value": number(default=1.0),
    "timestep_spacing": one_of(*SPACINGS, default="leading"),
    "steps_offset": one_of(0, default=0),
    "rescale_betas_zero_snr": one_of(False, default=False),
}
CLASSES = {
    "DDPMScheduler": {**COMMON, "variance_type": one_of(*VARIANCES, "fixed_small_log")},
    "DDIMScheduler": {**COMMON, "set_alpha_to_one": one_of(True, default=True)},
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
    """

    schedule: Schedule
    prediction: str
    variance: str
    clip: bool
    spacing: str
    sampler: str


def to_process(name: str, config: dict[str, Any]) -> Process:
    """Converts a scheduler's class and all its fields to our process.

    Raises:
        ValueError: betas are outside (0, 1), or their number is not that of the timesteps.
    """
    betas, num_steps = config["trained_betas"], config["num_train_timesteps"]
    if betas is not None and len(betas) != num_steps:
        raise ValueError(f"scheduler_config.json: trained_betas: expected {num_steps} numbers, received {len(betas)}")
    try:
        schedule = (
            _schedule(config["beta_schedule"], num_steps, config["beta_start"], config["beta_end"])
            if betas is None
            else schedules.from_betas(betas)
        )
    except ValueError as error:
        field = "beta_start, beta_end" if betas is None else "trained_betas"
        raise ValueError(f"scheduler_config.json: {field}: {error}") from error
    return Process(
        schedule,
        PREDICTIONS[config["prediction_type"]],
        # fixed_small_log computes fixed_small through its logarithm; DDIM with eta = 1 is DDPM with fixed_small.
        VARIANCES.get(config.get("variance_type", "fixed_small"), "fixed_small"),
        config["clip_sample"],
        config["timestep_spacing"],
        "ddpm" if name == "DDPMScheduler" else "ddim",
    )


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
    config = {
        "num_train_timesteps": process.schedule.num_steps,
        **describe(process.schedule),
        "clip_sample": process.clip,
        "prediction_type": predictions[process.prediction],
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "timestep_spacing": process.spacing,
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }
    if process.sampler == "ddpm":
        return "DDPMScheduler", {**config, "variance_type": variances[process.variance]}
    return "DDIMScheduler", {**config, "set_alpha_to_one": True}


def describe(schedule: Schedule) -> dict[str, Any]:
    """The betas as fields of diffusers: the name of their schedule if it has one, else a list."""
    beta = np.asarray(schedule.beta, np.float64)
    num_steps = len(beta)
    start, end = (float(str(np.float32(b))) for b in (beta[0], beta[-1]))  # 1e-4, not the float32 closest to it
    for name in BETA_SCHEDULES:
        ends = (1e-4, 0.02) if name == "squaredcos_cap_v2" else _ends(name, start, end)
        if np.allclose(beta, _schedule(name, num_steps, *ends).beta, rtol=2e-6, atol=0):
            return {"beta_start": ends[0], "beta_end": ends[1], "beta_schedule": name, "trained_betas": None}
    return {"beta_start": start, "beta_end": end, "beta_schedule": "linear", "trained_betas": beta.tolist()}


def _ends(name: str, start: float, end: float) -> tuple[float, float]:
    """What to tell a schedule so that its first and last beta are these."""
    if name != "sigmoid":
        return start, end
    tail = 1 / (1 + np.exp(6.0))
    width = (end - start) / (1 - 2 * tail)
    return float(f"{start - width * tail:.6g}"), float(f"{end + width * tail:.6g}")
