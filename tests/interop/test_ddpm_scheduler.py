"""Schedulers of diffusers, both ways."""

import json
import math

import chex
import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.interop import ddpm_scheduler, fields

GIVEN = np.random.default_rng(0).uniform(1e-4, 0.1, 50)
OURS = {
    "linear": schedules.linear(1000),
    "linear by its ends": schedules.linear(200, 1e-3, 0.05),
    "quadratic": schedules.quadratic(1000),
    "constant": schedules.constant(1000, 0.01),
    "warmup": schedules.warmup(1000, 0.5),
    "jsd": schedules.jsd(1000),
    "cosine": schedules.cosine(1000),
    "cosine by its offset": schedules.cosine(1000, 0.02),
    "sigmoid": schedules.sigmoid(1000),
    "from_betas": schedules.from_betas(GIVEN),
    "from_betas, very small": schedules.from_betas([1e-9, 0.5, 0.9]),
    "from_log_snr": schedules.from_log_snr(np.linspace(10, -10, 100)),
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear(1000)),
    "zero_terminal_snr of quadratic": schedules.zero_terminal_snr(schedules.quadratic(1000)),
    "zero_terminal_snr of cosine": schedules.zero_terminal_snr(schedules.cosine(1000)),
    "zero_terminal_snr by its end": schedules.zero_terminal_snr(schedules.linear(1000, 1e-4, 0.012)),
    "one step": schedules.linear(1),
}
NAMED = {
    "linear": "linear", "linear by its ends": "linear", "quadratic": "scaled_linear", "constant": "linear",
    "cosine": "squaredcos_cap_v2", "zero_terminal_snr": "linear", "zero_terminal_snr of quadratic": "scaled_linear",
    "zero_terminal_snr of cosine": "squaredcos_cap_v2", "one step": "linear",
}  # fmt: skip


def read(tmp_path, **changed):
    """Reads the oldest published form, with changes."""
    config = {
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
        "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
        "variance_type": "fixed_large",
    }  # fmt: skip
    config |= changed
    if config["_class_name"] == "DDIMScheduler":
        del config["variance_type"]
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    return ddpm_scheduler.to_process(*fields.read(path, ddpm_scheduler.CLASSES))


def alphas_cumprod(config):
    """As diffusers 0.42.1 computes them: schedulers/scheduling_ddpm.py and scheduling_ddim.py, __init__.

    Betas are float32; PyTorch accumulates their products in float64.
    """
    num_steps, start, end = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    match config["beta_schedule"]:
        case _ if config["trained_betas"] is not None:
            betas = np.array(config["trained_betas"], np.float32)
        case "linear":
            betas = np.linspace(start, end, num_steps, dtype=np.float32)
        case "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, num_steps, dtype=np.float32) ** 2
        case "squaredcos_cap_v2":
            bar = [math.cos((i / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(num_steps + 1)]
            betas = np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(num_steps)], np.float32)
    if config["rescale_betas_zero_snr"]:
        root = np.sqrt(np.cumprod(1 - betas, dtype=np.float64)).astype(np.float32)
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        bar = root**2
        betas = 1 - np.append(bar[:1], bar[1:] / bar[:-1])
    return np.cumprod(1 - betas, dtype=np.float64)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("name", OURS)
def test_every_schedule_goes_out_and_comes_back(name, sampler, tmp_path):
    process = ddpm_scheduler.Process(OURS[name], "v", "fixed_small", True, "leading", sampler)
    class_name, config = ddpm_scheduler.from_process(process)
    assert (config["beta_schedule"], config["trained_betas"] is None) == (NAMED.get(name, "linear"), name in NAMED)
    assert config["rescale_betas_zero_snr"] == (name in NAMED and name.startswith("zero"))
    again = read(tmp_path, _class_name=class_name, **config)
    assert again[1:] == process[1:]
    # 2e-5: what a float32 beta of 0.999 knows of 1 - beta, as at the last steps of cosine and sigmoid.
    chex.assert_trees_all_close(again.schedule, process.schedule, rtol=1e-6 if name in NAMED else 2e-5)
    np.testing.assert_allclose(alphas_cumprod(config), process.schedule.alpha_bar, atol=1e-6)
    np.testing.assert_allclose(alphas_cumprod(config), process.schedule.alpha_bar, rtol=3e-5, atol=1e-9)


def test_betas_are_described_by_the_given_numbers():
    described = ddpm_scheduler.describe(schedules.linear(1000))
    given = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
    assert described == given | {"rescale_betas_zero_snr": False}
    assert ddpm_scheduler.describe(OURS["zero_terminal_snr"]) == given | {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    ("changed", "betas"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, {0: 4.128422e-5, 999: 0.999}),  # Nichol & Dhariwal 2021
        ({"beta_schedule": "scaled_linear", "beta_start": 0.01, "beta_end": 0.09, "num_train_timesteps": 3}, {1: 0.04}),
        ({"beta_schedule": "sigmoid", "num_train_timesteps": 5}, {0: 0.0001 + 0.0199 / (1 + np.exp(6)), 2: 0.01005}),
        ({"trained_betas": [0.1, 0.3, 0.2], "num_train_timesteps": 3}, {0: 0.1, 1: 0.3, 2: 0.2}),
        ({"trained_betas": [0.1, 0.3, 1], "num_train_timesteps": 3}, {0: 0.1, 1: 0.3, 2: 1.0}),
        ({"rescale_betas_zero_snr": True}, {0: 1e-4, 999: 1.0}),
        ({"beta_start": 0.001, "beta_end": 0.003, "num_train_timesteps": 3}, {1: 0.002}),
    ],
)
def test_schedules_are_imported_and_exported(tmp_path, changed, betas):
    process = read(tmp_path, **changed, variance_type="fixed_small_log", prediction_type="v_prediction", clip_sample=False)
    assert process[1:4] == ("v", "fixed_small", False)
    for t, beta in betas.items():
        np.testing.assert_allclose(process.schedule.beta[t], beta, rtol=1e-6)
    name, config = ddpm_scheduler.from_process(process)
    assert config["beta_schedule"] == changed.get("beta_schedule", "linear")
    assert (config["trained_betas"] is None) == ("trained_betas" not in changed)
    for field in ("beta_start", "beta_end"):
        assert config["trained_betas"] or field not in changed or config[field] == pytest.approx(changed[field], rel=1e-6)
    again = ddpm_scheduler.to_process(name, config)
    chex.assert_trees_all_close(again.schedule, process.schedule, rtol=1e-6)
    assert again[1:] == process[1:]


@pytest.mark.parametrize(
    ("changed", "clip", "threshold"),
    [
        ({"clip_sample": False, "clip_sample_range": 2.0}, False, None),
        ({"thresholding": True}, True, None),  # up to the default sample_max_value of 1, thresholding is clipping
        ({"thresholding": True, "clip_sample": False, "clip_sample_range": 2.0}, True, None),
        ({"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}, True, (0.9, 1.5)),
        ({"thresholding": True, "sample_max_value": 1e6, "clip_sample": False}, False, (0.995, math.inf)),
        ({"dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}, True, None),
    ],
)
@pytest.mark.parametrize("name", ddpm_scheduler.CLASSES)
def test_clipping_and_thresholding(tmp_path, name, changed, clip, threshold):
    process = read(tmp_path, _class_name=name, **changed)
    assert (process.clip, process.threshold) == (clip, threshold)
    again = ddpm_scheduler.to_process(*ddpm_scheduler.from_process(process))
    assert again[1:] == process[1:]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name: expected DDPMScheduler or DDIMScheduler"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule: expected"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "set_alpha_to_one: expected true"),
        ({"variance_type": "fixed_large_log"}, "variance_type"),
        ({"variance_type": "learned"}, "variance_type"),
        ({"thresholding": True, "sample_max_value": 0}, "sample_max_value: expected a number above 0 with thresholding"),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 1.1},
            "dynamic_thresholding_ratio: expected a number from 0 to 1",
        ),
        ({"clip_sample_range": 2.0}, "clip_sample_range: expected 1.0 with clip_sample, received 2.0"),
        ({"rescale_betas_zero_snr": True}, "prediction_type: expected sample or v_prediction for betas that leave no signal"),
        ({"rescale_betas_zero_snr": True, "num_train_timesteps": 1}, "num_train_timesteps: expected at least 2"),
        ({"steps_offset": 1}, "steps_offset: expected 0, received 1"),
        ({"timestep_spacing": "quadratic"}, "timestep_spacing: expected"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps: expected an integer from 1 to 1000000"),
        ({"trained_betas": [10**400], "num_train_timesteps": 1}, "trained_betas: expected numbers or null"),
        ({"sample_max_value": 10**400}, "sample_max_value: expected a number"),
        ({"beta_schedule": "laplace"}, "beta_schedule"),
        ({"beta_start": 0.0}, "beta_start, beta_end"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas: expected 1000"),
        ({"trained_betas": [0.1, 1.2], "num_train_timesteps": 2}, r"trained_betas: betas: expected values in \(0, 1\)"),
        ({"trained_betas": [1, 1], "num_train_timesteps": 2}, r"trained_betas: betas: expected values in \(0, 1\)"),
    ],
)
def test_other_processes_are_refused(tmp_path, changed, said):
    with pytest.raises(ValueError, match=f"scheduler_config.json: {said}"):
        read(tmp_path, **changed)
