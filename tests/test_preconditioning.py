"""EDM's preconditioning, against the table and the closed forms of Karras et al. 2022."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import losses, preconditioning, samplers, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.diffusion import eps_from_x0
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

TABLE = [  # sigma: c_skip, c_out, c_in, c_noise, weight, by Karras et al.'s code at sigma_data = 0.5
    (0.002, 0.99998400, 0.00199998, 1.99998400, -1.5536520, 250004),
    (0.5, 0.5, 0.35355339, 1.41421356, -0.17328680, 8),
    (1, 0.2, 0.4472136, 0.8944272, 0, 5),
    (80, 3.9061e-5, 0.49999023, 0.01249976, 1.09550666, 4.00015625),
]


@pytest.mark.parametrize("row", TABLE)
def test_the_table(row):
    s, *expected = row
    np.testing.assert_allclose(preconditioning.coefficients(np.float64(s)), expected, rtol=2e-6, atol=1e-12)


def test_it_is_v_prediction_for_data_of_unit_variance():
    schedule, x = schedules.cosine(1000), jax.random.normal(jax.random.key(0), (4, 3))
    t = np.array([10, 300, 700, 990])
    v = lambda x, t: 0.3 * x  # noqa: E731
    ours = preconditioning.edm(lambda y, noise: -v(y, noise), sigma_data=1.0)(x, schedule.level(t))
    theirs = make_denoise(schedule, v, "v", clip=False)(x, schedule.level(t))
    np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.eps, theirs.eps, rtol=1e-4, atol=1e-6)


def test_a_level_matters_by_its_ratio_alone_and_both_ends_are_finite():
    x = jax.random.normal(jax.random.key(0), (2, 3))
    denoise = preconditioning.edm(lambda y, noise: jnp.tanh(y))
    alpha, sigma = np.array([0.6, 0.28]), np.array([0.8, 0.96])
    scaled = denoise(5 * x, Level(alpha, 5 * alpha, 5 * sigma))
    np.testing.assert_allclose(scaled.x0, denoise(x, Level(alpha, alpha, sigma)).x0, rtol=1e-5)
    for alpha, sigma in ((0.0, 1.0), (1.0, 0.0)):
        ends = denoise(x, Level(np.float32(0), np.float32(alpha), np.float32(sigma)))
        np.testing.assert_allclose(alpha * ends.x0 + sigma * ends.eps, x, rtol=1e-6)
        assert np.all(np.isfinite(ends.x0)) and np.all(np.isfinite(ends.eps))


def test_the_loss_of_the_best_network_is_1_at_every_level_for_normal_data():
    """The best D is the linear posterior mean c_skip y: F = 0."""
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (4096, 8))
    for s in (0.01, 0.5, 80.0):
        loss = losses.edm(jax.random.key(1), lambda y, noise: jnp.zeros_like(y), x0, sigma=s)
        assert abs(loss.mean() - 1) < 4 * loss.std() / 64
    drawn = losses.edm(jax.random.key(2), lambda y, noise: jnp.zeros_like(y), x0)
    assert abs(drawn.mean() - 1) < 4 * drawn.std() / 64


def test_levels_are_log_normal():
    seen = []
    losses.edm(jax.random.key(0), lambda y, noise: seen.append(noise) or y, jnp.zeros((20_000, 1)))
    log_s = 4 * np.asarray(seen[0])
    assert abs(log_s.mean() + 1.2) < 4 * 1.2 / 141 and abs(log_s.std() - 1.2) < 4 * 1.2 / 200


FLOW = schedules.flow()
START = np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2) / 768  # of diffusers' tests of schedulers
LARGEST = 80.0


def dummy(x, t):
    """The network of diffusers' tests."""
    return x * (t / (t + 1)).reshape(-1, 1, 1, 1)


def assert_sums(sampler, denoise, levels, y, total, mean, rtol=5e-6):
    """The sum and the mean of |x| at the clean level, from y = x / alpha."""
    x = samplers.sample(None, sampler, denoise, levels, y.shape, x_init=jnp.asarray(y * np.float32(levels.alpha[0])))
    np.testing.assert_allclose(np.abs(x).sum(), total, rtol=rtol)
    np.testing.assert_allclose(np.abs(x).mean(), mean, atol=5e-5)


def test_ten_steps_of_euler_have_the_sums_of_diffusers():
    """EDMEulerScheduler's test: 34.1855 and 0.0445, from hypot(80, 1) times the sample."""
    levels = grids.karras(FLOW, 10, log_snr=(-2 * np.log(LARGEST), -2 * np.log(0.002)))
    y = START * np.hypot(LARGEST, 1)
    assert_sums(samplers.euler(), preconditioning.edm(dummy), levels, y, 34.1855, 0.0445)


def test_one_step_of_a_consistency_model_is_one_of_ddim():
    """CMStochasticIterativeScheduler's test: 192.7614 and 0.2510. Its D has c_skip = 1 and c_out = 0 at s = 0.002, not 0."""

    def consistency(x_t, level):
        s = level.sigma / level.alpha
        y, shifted = x_t / level.alpha, s - 0.002
        skip, out = 0.25 / (shifted**2 + 0.25), shifted * 0.5 / jnp.sqrt(s**2 + 0.25)
        output = dummy(y / jnp.sqrt(s**2 + 0.25), 250 * jnp.log(s))
        x0 = jnp.clip(skip * y + out * output, -1, 1)
        return Denoised(x0, eps_from_x0(level, x_t, x0))

    levels = grids.at_log_snr(FLOW, [-2 * np.log(LARGEST)])
    assert_sums(samplers.ddim(), consistency, levels, START * LARGEST, 192.7614, 0.2510)


def test_one_step_of_a_latent_consistency_model_is_one_of_ddim():
    """LCMScheduler's test: 18.7097 and 0.0244, at t = 999 of the betas that are linear in their roots, times scaled by 10."""
    schedule = schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    of_eps = make_denoise(schedule, dummy, clip=False)

    def latent_consistency(x_t, level):
        t = 10 * level.t
        x0 = 0.25 / (t**2 + 0.25) * x_t + t / jnp.sqrt(t**2 + 0.25) * of_eps(x_t, level).x0
        return Denoised(x0, eps_from_x0(level, x_t, x0))

    # x_t - sigma eps = 0.0033 x_t amplifies the rounding of sigma, which is float32 there too, 300 times
    levels = grids.at(schedule, np.array([999]))
    assert_sums(samplers.ddim(), latent_consistency, levels, START / np.float32(levels.alpha[0]), 18.7097, 0.0244, 5e-5)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_sigma_data_is_positive(value):
    for call in (
        lambda: preconditioning.edm(lambda y, noise: y, value),
        lambda: preconditioning.coefficients(np.ones(2), value),
    ):
        with pytest.raises(ValueError, match="sigma_data: expected a finite number above 0"):
            call()
