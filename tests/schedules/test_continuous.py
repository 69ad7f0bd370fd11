import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.schedules import continuous

FAMILY = {
    "linear_vp": continuous.linear_vp(),
    "cosine": continuous.cosine(),
    "cosine, whole": continuous.cosine(-np.inf, np.inf),
    "shifted": continuous.shifted(continuous.cosine(), 0.25),
}


@pytest.mark.parametrize("name", FAMILY)
def test_time_is_the_inverse_of_log_snr(name):
    schedule = FAMILY[name]
    t = np.linspace(0.01, 0.99, 50)
    assert np.all(np.diff(schedule.log_snr(t)) < 0)
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, atol=1e-12)
    level = schedule.level_at(schedule.log_snr(t))
    np.testing.assert_allclose(level.t, t, atol=1e-12)
    for ours, same in zip(level, schedule.level(t), strict=True):
        np.testing.assert_allclose(ours, same, rtol=1e-9)


@pytest.mark.parametrize("name", FAMILY)
def test_levels_under_jit_agree_and_are_nan_outside(name):
    schedule = FAMILY[name]
    t = np.array([0.1, 0.5, 0.9])
    for traced, exact in zip(jax.jit(schedule.level)(jnp.asarray(t)), schedule.level(t), strict=True):
        np.testing.assert_allclose(traced, exact, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(jax.jit(schedule.level)(jnp.array([-0.1, 0.5, 1.1])).alpha), [True, False, True])
    with pytest.raises(ValueError, match="t: expected 0 to 1"):
        schedule.level(1.1)


@pytest.mark.parametrize("name", FAMILY)
def test_traced_levels_are_exact_at_both_ends(name):
    """Float32 against float64, where alpha or sigma is small or 0; an integer t is a time like any other."""
    schedule = FAMILY[name]
    for t in (np.array([0.0, 1e-4, 0.9999, 1.0]), np.array([0, 1])):
        for traced, exact in zip(jax.jit(schedule.level)(jnp.asarray(t)), schedule.level(t), strict=True):
            np.testing.assert_allclose(traced, exact, rtol=1e-3)


def test_linear_vp_is_the_limit_of_the_linear_betas():
    """ddpm's betas times T are the rates of the SDE; the difference falls as 1 / T."""
    errors = []
    for num_steps in (1000, 4000):
        discrete = schedules.linear(num_steps, 0.1 / num_steps, 20 / num_steps)
        errors.append(np.abs(discrete.log_snr - continuous.linear_vp().log_snr(np.arange(1, num_steps + 1) / num_steps))[-1])
    assert errors[0] < 0.1
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_cosine_is_the_cosine():
    level = FAMILY["cosine, whole"].level(np.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(level.alpha, np.cos(np.pi / 2 * np.array([0, 0.25, 0.5, 1])), atol=1e-15)
    cut = continuous.cosine(-8.0, 12.0)
    np.testing.assert_allclose(cut.log_snr(np.array([0.0, 1.0])), [12, -8], rtol=1e-9)
    assert (level.sigma[0], level.alpha[-1]) == (0, 0)


def test_shifting_scales_the_ratio_of_signal_and_noise():
    small, large = continuous.cosine(), continuous.shifted(continuous.cosine(), 64 / 256)
    a, b = small.level(0.3), large.level(0.3)
    np.testing.assert_allclose((b.alpha / b.sigma) / (a.alpha / a.sigma), 0.25, rtol=1e-9)


@pytest.mark.parametrize("name", FAMILY)
def test_discrete_schedules_are_samples_of_the_continuous_one(name):
    schedule = FAMILY[name]
    coarse, fine = schedule.schedule(10), schedule.schedule(1000)
    np.testing.assert_allclose(coarse.log_snr[:-1], fine.log_snr[99:-1:100], rtol=1e-5, atol=1e-5)
    level = schedule.level(0.3)
    np.testing.assert_allclose([coarse.alpha[2], coarse.sigma[2]], [level.alpha, level.sigma], rtol=1e-6)


def test_the_ends():
    assert FAMILY["linear_vp"].level_at(np.inf) == (0, 1, 0)
    assert FAMILY["cosine"].level_at(np.inf) == (0, 1, 0)
    with pytest.raises(ValueError, match="log_snr: expected those of times 0 to 1, or inf, received"):
        FAMILY["cosine"].level_at(16.0)
    assert np.isnan(jax.jit(FAMILY["cosine"].level_at)(-16.0).t)


def test_a_schedule_tells_its_range_of_times():
    assert (schedules.linear(50).num_steps, schedules.linear(50).last) == (50, 49)
    for schedule in FAMILY.values():
        assert (schedule.num_steps, schedule.last) == (None, 1)
        assert np.all(np.isfinite(schedule.level(schedule.last)))


def test_a_discrete_schedule_can_be_required():
    discrete = schedules.linear(50)
    assert schedules.require_discrete(discrete, "a test") is discrete
    with pytest.raises(
        ValueError, match="schedule: expected one with a number of steps for a test, received one in continuous"
    ):
        schedules.require_discrete(FAMILY["cosine"], "a test")


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="beta_min"):
        continuous.linear_vp(0.0)
    with pytest.raises(ValueError, match="log_snr_min"):
        continuous.cosine(3.0, 3.0)
    with pytest.raises(ValueError, match="ratio"):
        continuous.shifted(continuous.cosine(), 0.0)
    with pytest.raises(ValueError, match="num_steps"):
        continuous.linear_vp().schedule(0)
