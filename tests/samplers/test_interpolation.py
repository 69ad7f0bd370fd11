import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ddpm_jax import diffusion, likelihood, samplers, schedules
from ddpm_jax.denoiser import Denoised
from ddpm_jax.samplers import interpolation

SCHEDULE = schedules.linear(200, 5e-4, 0.1)
LEVELS = samplers.grids.spaced(SCHEDULE, 50)
KEY = jax.random.key(0)
MIXTURE = (np.array([0.5, 0.5]), np.array([-0.7, 0.7]), np.array([0.01, 0.01]))


def denoise(x, level):
    """The exact denoiser for two narrow modes, of which x0 takes one during sampling."""
    x0 = oracles.posterior_mean(x, level.alpha, level.sigma, *MIXTURE, xp=jnp)
    return Denoised(x0, diffusion.eps_from_x0(level, x, x0))


def test_progressive_estimates_end_in_the_samples_and_begin_at_the_mean():
    x, estimates = interpolation.progressive(KEY, samplers.ddpm(), denoise, LEVELS, (500, 2))
    assert estimates.shape == (50, 500, 2)
    np.testing.assert_array_equal(estimates[-1], x)
    assert np.abs(estimates[0]).mean() < 0.1 < np.abs(x).mean()
    spread = np.abs(estimates).mean((1, 2))
    assert np.all(np.diff(spread[::10]) > 0), "estimates leave the mean of the data step by step"
    np.testing.assert_allclose(x, samplers.sample(KEY, samplers.ddpm(), denoise, LEVELS, (500, 2)), atol=1e-4)


def test_images_that_part_early_differ_and_that_part_late_agree():
    """64 numbers per image, with noise of sigma = 1, 0.96 and 0.19 around modes at +-0.7; then the mode of each number."""

    def agreement(t):
        x = np.sign(interpolation.shared(KEY, samplers.ddpm(), denoise, LEVELS, t, (20, 64)))
        return np.mean(x[1:] == x[:1])

    early, middle, late = (agreement(t) for t in (199, 100, 10))
    assert 0.4 < early < 0.65, "chance is 0.5; the first level of the grid still knows nothing"
    assert early < middle < late
    assert late > 0.97


def test_without_noise_images_of_one_x_t_are_one():
    x = interpolation.shared(KEY, samplers.ddim(), denoise, LEVELS, 100, (3, 8))
    np.testing.assert_array_equal(x[0], x[1])


def test_interpolation_goes_from_one_image_to_the_other():
    a, b = jnp.full((3, 40), -0.7), jnp.full((3, 40), 0.7)
    x = interpolation.interpolate(KEY, samplers.ddpm(), denoise, LEVELS, 10, a, b, [0.0, 0.5, 1.0])
    assert x.shape == (3, 3, 40)
    np.testing.assert_array_less(x[0], 0)
    np.testing.assert_array_less(0, x[2])
    assert 0.2 < np.mean(x[1] > 0) < 0.8
    alone = interpolation.interpolate(KEY, samplers.ddpm(), denoise, LEVELS, 10, a, b, [1.0])
    np.testing.assert_allclose(alone[0], x[2], atol=1e-6)


def test_coding_spends_the_bound_and_ends_at_the_image():
    """800 images: rates and errors are those of the bound, to 4 standard errors; each stage costs more and errs less."""
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(rng.choice([-0.7, 0.7], (800, 4)) + 0.1 * rng.normal(size=(800, 4)), jnp.float32)
    times = [0, 50, 100, 199]
    coded = jax.jit(lambda x0: likelihood.progressive_coding(KEY, SCHEDULE, denoise, x0, times))(x0)
    assert coded.x0.shape == (4, 800, 4)
    assert coded.rate.shape == coded.mse.shape == (4, 800)
    assert np.all(np.diff(coded.rate, axis=0) >= 0)
    assert np.all(np.diff(coded.mse.mean(1)) < 0)
    np.testing.assert_allclose(coded.mse, jnp.mean((coded.x0 - x0[None]) ** 2, axis=-1), rtol=1e-5)
    bound = jax.jit(lambda x0: likelihood.bound(jax.random.key(1), SCHEDULE, denoise, x0))(x0)
    for stage, t in enumerate(sorted(times, reverse=True)):
        rate = bound.prior + bound.terms[:, t + 1 :].sum(1)
        for ours, theirs in ((coded.rate[stage], rate), (coded.mse[stage], bound.mse[:, t])):
            error = (np.std(ours) + np.std(theirs)) / np.sqrt(800)
            assert abs(ours.mean() - theirs.mean()) <= 4 * error + 1e-6


def test_between_two_noises_the_ends_are_the_two_images_and_the_way_is_on_the_sphere():
    a, b = (samplers.base.initial_noise(KEY, LEVELS, (3, 64), np.arange(3) + first) for first in (0, 3))
    path = interpolation.slerp(samplers.ddim(), denoise, LEVELS, a, b, [0.0, 0.25, 0.5, 1.0])
    whole = samplers.sample(KEY, samplers.ddim(), denoise, LEVELS, (6, 64))
    np.testing.assert_allclose(path[0], whole[:3], atol=1e-4)
    np.testing.assert_allclose(path[-1], whole[3:], atol=1e-4)
    still = samplers.ddim()._replace(step=lambda keys, d, x, state, c: (x, state, d(x, SCHEDULE.level(9))))
    middle = interpolation.slerp(still, denoise, LEVELS, a, b, [0.5])[0]
    cos = np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(middle, (a + b) / np.sqrt(2 * (1 + cos))[:, None], atol=1e-5)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="t: expected at least 0, the last time of the grid, received -1"):
        interpolation.tail(LEVELS, -1)
    x0 = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="fractions"):
        interpolation.interpolate(KEY, samplers.ddim(), denoise, LEVELS, 50, x0, x0, [1.5])
    with pytest.raises(ValueError, match=r"0\.\.199"):
        likelihood.progressive_coding(KEY, SCHEDULE, denoise, x0, [200])
    with pytest.raises(ValueError, match="fractions"):
        interpolation.slerp(samplers.ddim(), denoise, LEVELS, jnp.ones((1, 2)), jnp.zeros((1, 2)), [2.0])
    with pytest.raises(TypeError, match="key"):
        interpolation.slerp(samplers.ddpm(), denoise, LEVELS, jnp.ones((1, 2)), jnp.ones((1, 2)), [0.5])
