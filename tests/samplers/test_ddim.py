import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ddpm_jax import denoiser, diffusion, samplers, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

SCHEDULE = schedules.linear(1000)
KEY = jax.random.key(0)
MIXTURE = (np.array([0.3, 0.7]), np.array([-0.5, 0.4]), np.array([0.15, 0.1]))
GAUSSIAN = (np.ones(1), np.array([0.3]), np.array([0.04]))


def exact(parameters):
    def denoise(x, level):
        x0 = oracles.posterior_mean(x, level.alpha, level.sigma, *parameters, xp=jnp)
        return Denoised(x0, diffusion.eps_from_x0(level, x, x0))

    return denoise


@pytest.mark.parametrize(("prediction", "total"), [("eps", 172.0067), ("v", 52.5302)])
def test_the_published_scheduler_check(prediction, total):
    """The numbers of diffusers' DDIMScheduler tests: 10 leading steps, eta 0, clipped, eps not recomputed."""
    x = np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2) / 768
    predict = lambda x, t: x * (t / (t + 1)).reshape(-1, 1, 1, 1)  # noqa: E731
    denoise = denoiser.clipped(make_denoise(SCHEDULE, predict, prediction, clip=False), rederive_eps=False)
    out = samplers.sample(None, samplers.ddim(), denoise, grids.spaced(SCHEDULE, 10), x.shape, x_init=jnp.asarray(x))
    assert abs(np.abs(out).sum() - total) < 1e-2


def test_eps_derived_anew_or_not_differs_where_clipping_binds():
    """At the first step x0 is clipped to c, so x_s = alpha_s c + sigma_s eps with either eps: by hand."""
    x = jnp.full((1, 1), 2.0)
    raw = make_denoise(SCHEDULE, lambda x, t: 0 * x, clip=False)
    levels = grids.at(SCHEDULE, np.array([500, 400]))
    one_step = Level(*(a[:2] for a in levels))
    a_t, s_t, a_s, s_s = SCHEDULE.alpha[500], SCHEDULE.sigma[500], SCHEDULE.alpha[400], SCHEDULE.sigma[400]
    for rederive, expected in ((False, a_s), (True, a_s + s_s * (2 - a_t) / s_t)):
        denoise = denoiser.clipped(raw, rederive_eps=rederive)
        out = samplers.sample(None, samplers.ddim(), denoise, one_step, (1, 1), x_init=x)
        np.testing.assert_allclose(out, [[expected]], rtol=1e-6)


def errors(parameters, x, exact_end, counts):
    """Largest error of DDIM against the exact solution, for each number of steps."""
    found = []
    for num_steps in counts:
        levels = Level(np.zeros(num_steps + 1), *oracles.log_snr_grid(-8.0, 8.0, num_steps))
        end = samplers.sample(None, samplers.ddim(), exact(parameters), levels, x.shape, x_init=jnp.asarray(x))
        found.append(np.abs(np.asarray(end) - exact_end).max())
    return np.array(found)


def test_first_order_on_gaussian_data_against_the_closed_form():
    with jax.enable_x64(True):
        alpha, sigma = oracles.log_snr_grid(-8.0, 8.0, 1)
        x = np.linspace(-2, 2, 9)
        end = oracles.gaussian_flow(x, alpha[0], sigma[0], alpha[1], sigma[1], 0.3, 0.04)
        error = errors(GAUSSIAN, x, end, [40, 80, 160])
    assert np.all(np.log2(error[:-1] / error[1:]) > 0.9)
    assert error[-1] < 0.01


def test_first_order_on_a_mixture_against_a_very_fine_grid():
    with jax.enable_x64(True):
        x = np.linspace(-2, 2, 9)
        levels = Level(np.zeros(20_001), *oracles.log_snr_grid(-8.0, 8.0, 20_000))
        fine = samplers.sample(None, samplers.ddim(), exact(MIXTURE), levels, x.shape, x_init=jnp.asarray(x))
        assert fine.dtype == jnp.float64
        error = errors(MIXTURE, x, np.asarray(fine), [40, 80, 160])
    assert np.all(np.log2(error[:-1] / error[1:]) > 0.9)


@pytest.mark.parametrize("num_steps", [1000, 20])
def test_eta_one_is_ancestral_sampling_with_the_small_variance(num_steps):
    """To rounding, noise for noise, since x0 and eps agree with x_t."""
    denoise = make_denoise(SCHEDULE, lambda x, t: jnp.tanh(x + t[:, None] / 1000))
    levels = grids.spaced(SCHEDULE, num_steps)
    draw = lambda sampler: samplers.sample(KEY, sampler, denoise, levels, (16, 3))  # noqa: E731
    np.testing.assert_allclose(draw(samplers.ddim(1.0)), draw(samplers.ddpm("fixed_small")), atol=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginals_of_data_at_one_point(eta):
    """Eq. 7 of Song et al. 2020 is made so that q(x_s | x0) stays N(alpha_s x0, sigma_s^2)."""
    with jax.enable_x64(True):
        levels = grids.spaced(schedules.linear(1000), 50)
    plan = samplers.ddim(eta).plan(levels)
    np.testing.assert_allclose(plan.eps_scale**2 + plan.std**2, levels.sigma[1:] ** 2, rtol=1e-12, atol=1e-15)


def test_there_and_back_again():
    """Inversion starts at the clean end, sigma = 0; coming back meets the same points, up to the method's error."""
    levels = grids.spaced(SCHEDULE, 500)
    up = Level(*(a[::-1] for a in levels))
    x = jnp.linspace(-0.2, 0.8, 5)
    noise = samplers.sample(None, samplers.ddim(), exact(GAUSSIAN), up, x.shape, x_init=x)
    back = samplers.sample(None, samplers.ddim(), exact(GAUSSIAN), levels, x.shape, x_init=noise)
    np.testing.assert_allclose(back, x, atol=0.02)
    gradient = jax.grad(lambda x: samplers.sample(None, samplers.ddim(), exact(GAUSSIAN), up, (5,), x_init=x).sum())(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        samplers.ddim(eta)
