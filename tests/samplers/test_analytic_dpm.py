import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_checks import GAUSSIAN, KEY, SCHEDULE, assert_moments, exact

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids

ALPHA, SIGMA = np.asarray(SCHEDULE.alpha, np.float64), np.asarray(SCHEDULE.sigma, np.float64)
GAMMA = SIGMA**2 / (ALPHA**2 * 0.04 + SIGMA**2)  # of Gaussian data of variance 0.04: eps is sigma (x - alpha m) / variance


def test_gamma_is_estimated_for_every_t():
    """1000 x 3 samples of |eps|^2, a chi-square: the relative standard error is sqrt(2 / 3000) = 0.026 at every t."""
    schedule = schedules.linear(50, 2e-3, 0.4)
    x0 = 0.5 + 0.2 * jax.random.normal(KEY, (1000, 3))
    gamma = samplers.mean_squared_eps(KEY, schedule, exact(GAUSSIAN), x0)
    expected = schedule.sigma**2 / (schedule.alpha**2 * 0.04 + schedule.sigma**2)
    np.testing.assert_allclose(gamma / expected, 1, atol=5 * 0.026)  # five sigma, since there are 50 of them
    assert gamma.shape == (50,)


@pytest.mark.parametrize("num_steps", [5, 25])
def test_every_step_keeps_the_marginals_of_gaussian_data(num_steps):
    """If the true reverse process is Gaussian, the optimal variance makes it exact, with any number of steps."""
    levels = grids.spaced(SCHEDULE, num_steps, "linspace")
    c = samplers.analytic_dpm(GAMMA).plan(levels)
    a, b = levels.alpha[:-1].astype(np.float64), levels.sigma[:-1].astype(np.float64)
    slope = c.x0_scale * a * 0.04 / (a**2 * 0.04 + b**2) + c.x_scale
    variance = slope**2 * (a**2 * 0.04 + b**2) + c.std**2
    expected = levels.alpha[1:] ** 2 * 0.04 + levels.sigma[1:] ** 2
    np.testing.assert_allclose(variance[:-1], expected[:-1], rtol=1e-5)


def test_the_moments_are_those_of_the_data_as_seen_from_the_last_level():
    levels = grids.spaced(SCHEDULE, 20, "linspace")
    a, b = float(levels.alpha[-2]), float(levels.sigma[-2])
    start = 1 - (ALPHA[999] ** 2 * 0.04 + SIGMA[999] ** 2)
    assert abs(start) < 1e-4  # the start, N(0, 1), is that of the data to 1e-4
    assert_moments(samplers.analytic_dpm(GAMMA), levels, 0.5, 0.04 * a**2 * 0.04 / (a**2 * 0.04 + b**2))


def test_it_lies_between_the_fixed_variances():
    levels = grids.spaced(SCHEDULE, 50)
    small, large = (samplers.ddpm(variance).plan(levels).std for variance in ("fixed_small", "fixed_large"))
    std = samplers.analytic_dpm(GAMMA).plan(levels).std
    assert np.all((std[:-1] > small[:-1]) & (std[:-1] < large[:-1]))
    np.testing.assert_allclose(samplers.analytic_dpm(np.ones(1000)).plan(levels).std, small, atol=1e-9)
    np.testing.assert_allclose(samplers.analytic_dpm(SIGMA**2).plan(levels).std[:-1], large[:-1], rtol=1e-4)


def test_the_variance_of_x0_is_clipped():
    levels = grids.spaced(SCHEDULE, 10)
    clipped, raw = (samplers.analytic_dpm(np.zeros(1000), clip).plan(levels).std for clip in (True, False))
    assert np.all(clipped <= raw)
    assert clipped[0] < raw[0] / 2


def test_mistakes_are_refused():
    for gamma in (np.ones((2, 2)), np.array([-0.1]), np.array([np.nan])):
        with pytest.raises(ValueError, match="gamma"):
            samplers.analytic_dpm(gamma)
    levels = grids.spaced(SCHEDULE, 3)
    with pytest.raises(TypeError, match="key"):
        samplers.sample(None, samplers.analytic_dpm(GAMMA), exact(GAUSSIAN), levels, (3,), x_init=jnp.ones(3))
