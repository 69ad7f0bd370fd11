import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ddpm_jax import diffusion, samplers, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

SCHEDULE = schedules.linear(1000)
with jax.enable_x64(True):
    EXACT = schedules.Schedule(*map(np.asarray, schedules.linear(1000)))  # float64, for identities
KEY = jax.random.key(0)


def gaussian(mean, variance):
    """The exact Denoise of one-dimensional Gaussian data."""

    def denoise(x, level):
        parameters = (np.ones(1), np.array([mean]), np.array([variance]))
        x0 = oracles.posterior_mean(x, level.alpha, level.sigma, *parameters, xp=jnp)
        return Denoised(x0, diffusion.eps_from_x0(level, x, x0))

    return denoise


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("num_steps", [1000, 50])
def test_the_moments_of_gaussian_data_are_exact(variance, num_steps):
    """Standard errors with 40,000 samples: std / 200 for the mean, and sqrt(2 / 40,000) = 0.0071 of the variance."""
    levels = grids.spaced(SCHEDULE, num_steps)
    mean, var = oracles.ancestral_moments(levels.alpha, levels.sigma, 0.5, 0.04, variance)
    draw = jax.jit(lambda key: samplers.sample(key, samplers.ddpm(variance), gaussian(0.5, 0.04), levels, (40_000,)))
    x = np.asarray(draw(KEY), np.float64)
    assert abs(x.mean() - mean) < 4 * np.sqrt(var) / 200
    assert abs(x.var() / var - 1) < 4 * 0.0071


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_finer_chains_come_closer_to_the_data(variance):
    """The error of the variance falls as 1 / T when the same process is divided into four times as many steps."""

    def error(schedule):
        levels = grids.spaced(schedule)
        plan, var = samplers.ddpm(variance).plan(levels), 1.0
        for c in zip(plan.x0_scale, plan.x_scale, plan.std, plan.level.alpha, plan.level.sigma, strict=True):
            x0_scale, x_scale, std, alpha, sigma = c
            slope = x0_scale * alpha * 0.04 / (alpha**2 * 0.04 + sigma**2) + x_scale
            var = slope**2 * var + std**2
        return abs(var / 0.04 - 1)

    coarse, fine = error(SCHEDULE), error(schedules.linear(4000, 2.5e-5, 0.005))
    assert coarse < 0.05
    assert 3.5 < coarse / fine < 4.5


@pytest.mark.parametrize("num_steps", [1000, 50, 3])
def test_fixed_large_is_exact_for_standard_normal_data(num_steps):
    """Its variance never leaves 1 (section 3.2 of Ho et al. 2020): a closed form without an oracle."""
    levels = grids.spaced(EXACT, num_steps)
    plan = samplers.ddpm("fixed_large").plan(levels)
    slope = plan.x0_scale * levels.alpha[:-1] + plan.x_scale
    np.testing.assert_allclose((slope**2 + plan.std**2)[:-1], 1, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1000, 50, 3])
def test_fixed_small_is_exact_for_data_at_one_point(num_steps):
    """With x0 known, each step samples q(x_s | x_t, x0), so x_s keeps variance sigma_s^2."""
    levels = grids.spaced(EXACT, num_steps)
    plan = samplers.ddpm("fixed_small").plan(levels)
    variance = (plan.x_scale * levels.sigma[:-1]) ** 2 + plan.std**2
    np.testing.assert_allclose(variance, levels.sigma[1:] ** 2, rtol=1e-12, atol=1e-15)


def test_the_full_grid_is_the_papers_posterior():
    levels = grids.spaced(EXACT)
    plan = samplers.ddpm("fixed_small").plan(levels)
    x0, x_t = jax.random.normal(KEY, (2, 1000, 3))
    posterior = diffusion.q_posterior(SCHEDULE, x0, x_t, levels.t[:-1])
    mean = jnp.asarray(plan.x0_scale)[:, None] * x0 + jnp.asarray(plan.x_scale)[:, None] * x_t
    np.testing.assert_allclose(mean, posterior.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plan.std**2, posterior.variance[:, 0], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(samplers.ddpm("fixed_large").plan(levels).std[:-1] ** 2, EXACT.beta[:0:-1], rtol=1e-9)


def test_a_spaced_grid_takes_the_previous_kept_level():
    """From 500 to 400 alpha_bar falls by their quotient, not by that of 500 and 499."""
    plan = samplers.ddpm("fixed_large").plan(grids.at(EXACT, np.array([500, 400])))
    np.testing.assert_allclose(plan.std[0] ** 2, 1 - EXACT.alpha_bar[500] / EXACT.alpha_bar[400], rtol=1e-9)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_every_level_is_visited_once_and_the_last_step_returns_x0(variance):
    levels = grids.spaced(SCHEDULE)
    denoise = make_denoise(SCHEDULE, lambda x, t: jnp.broadcast_to(t[:, None] / 1000, x.shape))
    keep = lambda x, denoised: (denoised.eps, denoised.x0)  # noqa: E731
    x, (_, x0) = samplers.sample_path(KEY, samplers.ddpm(variance), denoise, levels, (2, 3), keep=keep)
    np.testing.assert_array_equal(x, x0[-1])
    assert np.abs(x).max() <= 1
    plan = samplers.ddpm(variance).plan(levels)
    np.testing.assert_array_equal(plan.level.t, np.arange(999, -1, -1))
    assert plan.std[-1] == 0
    assert np.all(plan.std[:-1] > 0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_grid_may_start_at_pure_noise_and_end_before_the_clean_level(variance):
    levels = Level(np.array([999, 500, 100]), np.array([0.0, 0.5, 0.9]), np.sqrt(1 - np.array([0.0, 0.5, 0.9]) ** 2))
    plan = samplers.ddpm(variance).plan(levels)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(plan))
    assert np.all(plan.std > 0)


@pytest.mark.parametrize("variance, fraction", [("fixed_small", 0.0), ("fixed_large", 1.0)])
@pytest.mark.parametrize("num_steps", [100, 7])
def test_a_learned_variance_at_either_end_is_the_fixed_one(variance, fraction, num_steps):
    levels = grids.spaced(SCHEDULE, num_steps)

    def learned(x, level):
        return gaussian(0.5, 0.04)(x, level)._replace(fraction=jnp.full_like(x, fraction))

    draw = lambda variance, denoise: samplers.sample(KEY, samplers.ddpm(variance), denoise, levels, (50,))  # noqa: E731
    np.testing.assert_allclose(draw("learned", learned), draw(variance, gaussian(0.5, 0.04)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_steps", [50, 5])
def test_the_right_learned_variance_makes_few_steps_exact(num_steps):
    """For Gaussian data p(x_s | x_t) is Gaussian: with its own variance every grid gives the variance of the data.

    40,000 samples: the variance is known to 0.0071 of itself.
    """
    levels = grids.spaced(EXACT, num_steps)
    alpha, sigma = levels.alpha, levels.sigma
    fractions = np.zeros(1000)
    for i in range(len(alpha) - 2):
        total = alpha[i] ** 2 * 0.04 + sigma[i] ** 2
        x0_variance = 0.04 * sigma[i] ** 2 / total
        scale = oracles.reverse_step(1.0, 0.0, alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])[0]
        small = oracles.reverse_step(0.0, 0.0, alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])[1]
        log_range = 2 * np.log(sigma[i] / sigma[i + 1])
        fractions[levels.t[i]] = np.log((small + scale**2 * x0_variance) / small) / log_range

    def learned(x, level):
        fraction = jnp.asarray(fractions, jnp.float32)[level.t.astype(int)]
        return gaussian(0.5, 0.04)(x, level)._replace(fraction=jnp.full_like(x, fraction))

    last = alpha[-2] * 0.04 / (alpha[-2] ** 2 * 0.04 + sigma[-2] ** 2)  # the last step returns E[x0 | x_t]
    expected = last * alpha[-2] * 0.04
    x = jax.jit(lambda key: samplers.sample(key, samplers.ddpm("learned"), learned, levels, (40_000,)))(KEY)
    assert abs(np.var(np.asarray(x, np.float64)) / expected - 1) < 4 * 0.0071


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="variance"):
        samplers.ddpm("large")
    with pytest.raises(ValueError, match="has not learned one"):
        samplers.sample(KEY, samplers.ddpm("learned"), gaussian(0.5, 0.04), grids.spaced(SCHEDULE, 3), (5,))
