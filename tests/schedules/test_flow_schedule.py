"""The path of flow matching as a schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import likelihood, losses, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import continuous

SHIFTS = [1.0, 3.0, 0.5]
KEY = jax.random.key(0)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_path_is_straight_and_time_is_the_inverse_of_log_snr(shift):
    """alpha = 1 - sigma, and sigma = k t / (1 + (k - 1) t), Eq. 23 of Esser et al. 2024; both ends exactly."""
    schedule, t = schedules.flow(shift), np.linspace(0, 1, 41)
    level = schedule.level(t)
    np.testing.assert_allclose(level.alpha + level.sigma, 1, rtol=1e-15)
    np.testing.assert_allclose(level.sigma, shift * t / (1 + (shift - 1) * t), rtol=1e-15)
    for ours, again in zip(level, schedule.level_at(level.log_snr), strict=True):
        np.testing.assert_allclose(again, ours, atol=1e-15)
    assert [float(a) for a in schedule.level(0.0)] == [0, 1, 0] == [float(a) for a in schedule.level_at(np.inf)]
    assert [float(a) for a in schedule.level(1.0)] == [1, 0, 1] == [float(a) for a in schedule.level_at(-np.inf)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_shift_lowers_log_snr(shift):
    """By 2 log k at every time, as `continuous.shifted` does with the ratio 1 / k."""
    t = np.linspace(0.1, 0.9, 9)
    base, ours = schedules.flow().level(t).log_snr, schedules.flow(shift).level(t).log_snr
    np.testing.assert_allclose(ours, base - 2 * np.log(shift), atol=1e-14)
    cosine = continuous.shifted(continuous.cosine(-np.inf, np.inf), 1 / shift)
    np.testing.assert_allclose(cosine.log_snr(t) - continuous.cosine(-np.inf, np.inf).log_snr(t), ours - base, atol=1e-14)


def test_traced_times_agree_and_are_nan_out_of_range():
    schedule, t = schedules.flow(3.0), np.array([0.0, 0.2, 1.0])
    for traced, known in zip(jax.jit(schedule.level)(t), schedule.level(t), strict=True):
        np.testing.assert_allclose(traced, known, rtol=1e-6)
    log_snr = np.array([-np.inf, -3.0, 5.0, np.inf])
    for traced, known in zip(jax.jit(schedule.level_at)(log_snr), schedule.level_at(log_snr), strict=True):
        np.testing.assert_allclose(traced, known, rtol=1e-6)
    assert np.all(np.isnan(jax.jit(schedule.level)(jnp.array([-0.1, 1.1])).alpha))
    with pytest.raises(ValueError, match="t: expected 0 to 1, received"):
        schedule.level(1.1)


def test_the_range_of_a_schedule_without_finite_ends():
    """t = 1/1000 and 999/1000, where sigma / alpha is 1/999 and 999."""
    ends = 2 * np.log(999)
    np.testing.assert_allclose(schedules.log_snr_range(schedules.flow()), (-ends, ends))
    np.testing.assert_allclose(schedules.log_snr_range(schedules.flow(2.0)), np.array([-ends, ends]) - 2 * np.log(2))
    noisiest, cleanest = schedules.log_snr_range(continuous.cosine(-np.inf, np.inf))
    np.testing.assert_allclose(noisiest, -cleanest)


def test_karras_grid_on_the_path_of_flow_matching():
    """EDM's 18 sigmas from 80 to 0.002, as NVlabs/edm prints them, at t = sigma / (1 + sigma)."""
    levels = grids.karras(schedules.flow(), 18, log_snr=(-2 * np.log(80.0), -2 * np.log(0.002)))
    rho = (levels.sigma / levels.alpha)[[0, 1, 2, -3, -2]]
    np.testing.assert_allclose(rho, [80, 57.58598472, 40.7855738, 0.00752802, 0.002], rtol=5e-7)
    np.testing.assert_allclose(levels.t, levels.sigma, rtol=1e-12)
    assert len(levels.t) == 19 and (levels.t[-1], levels.alpha[-1]) == (0, 1)


@pytest.mark.parametrize("shift", [0.0, -1.0, np.inf, np.nan])
def test_the_shift_is_positive(shift):
    with pytest.raises(ValueError, match="shift: expected a finite number above 0, received"):
        schedules.flow(shift)


def test_what_needs_steps_refuses_it():
    schedule, x0 = schedules.flow(), jnp.zeros((2, 3))
    denoise = lambda x, level: Denoised(x, x)  # noqa: E731
    predict = lambda x, t: x  # noqa: E731
    for call in (
        lambda: likelihood.bound(KEY, schedule, denoise, x0),
        lambda: likelihood.progressive_coding(KEY, schedule, denoise, x0, [0]),
        lambda: losses.vlb(KEY, schedule, predict, x0, "flow"),
        lambda: losses.hybrid(KEY, schedule, predict, x0, "flow"),
        lambda: make_denoise(schedule, predict, "mean"),
        lambda: make_denoise(schedule, predict, "flow", variance="learned"),
        lambda: grids.runge_kutta_start(schedule, np.arange(9)),
    ):
        with pytest.raises(ValueError, match="schedule: expected one with a number of steps for "):
            call()
