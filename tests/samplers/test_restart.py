import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_checks import GAUSSIAN, KEY, SCHEDULE, assert_moments, exact

from ddpm_jax import samplers
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

LEVELS = grids.restart(grids.uniform_log_snr(SCHEDULE, 12), t_max=600, t_min=100, num_restarts=2)


def moments(levels, mean, var):
    """Mean and variance after DDIM's steps to the data and q(x_s | x_t)'s steps to noise, for one Gaussian."""
    t, s = samplers.base.endpoints(levels)
    for a_t, s_t, a_s, s_s in zip(t.alpha, t.sigma, s.alpha, s.sigma, strict=True):

        def ddim(x, a_t=a_t, s_t=s_t, a_s=a_s, s_s=s_s):
            x0 = oracles.posterior_mean(np.asarray(x), a_t, s_t, *GAUSSIAN)
            return a_s * x0 + s_s * (x - a_t * x0) / s_t

        to_noise = s_s > s_t
        step, added = (lambda x: a_s / a_t * x, s_s**2 - (a_s / a_t * s_t) ** 2) if to_noise else (ddim, 0.0)  # noqa: B023
        mean, var = oracles.push(mean, var, step, added)
    return mean, var


def test_the_moments_of_gaussian_data_are_those_of_the_closed_form():
    mean, var = moments(LEVELS, 0.0, np.hypot(LEVELS.alpha[0], LEVELS.sigma[0]) ** 2)
    assert np.sum(np.diff(LEVELS.sigma) > 0) == 2
    assert_moments(samplers.restart(samplers.ddim()), LEVELS, mean, var)


def test_restarts_contract_the_error_of_a_wrong_start():
    """x starts with twice its standard deviation. The ODE keeps the factor; each restart reduces it."""
    once = grids.uniform_log_snr(SCHEDULE, 200)
    errors = []
    for num_restarts in (0, 1, 2, 3):
        levels = grids.restart(once, 600, 100, num_restarts)
        _, var = moments(levels, 0.5 * levels.alpha[0], 4.0 * (0.04 * levels.alpha[0] ** 2 + levels.sigma[0] ** 2))
        errors.append(var / 0.04 - 1)
    assert abs(errors[0] - 3) < 0.2
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2


@pytest.mark.parametrize("sampler", [samplers.heun(), samplers.dpm_solver_pp(2), samplers.unipc(2)])
def test_on_a_grid_to_the_data_it_is_the_sampler(sampler):
    levels, x = grids.spaced(SCHEDULE, 10), jnp.linspace(-2, 2, 12).reshape(4, 3)
    draw = lambda sampler: samplers.sample(KEY, sampler, exact(GAUSSIAN), levels, x.shape, x_init=x)  # noqa: E731
    np.testing.assert_allclose(draw(samplers.restart(sampler)), draw(sampler), atol=1e-6)


def test_each_stretch_is_planned_by_itself():
    """A multistep method starts again with order 1 after a step to noise."""
    levels = grids.restart(grids.uniform_log_snr(SCHEDULE, 20), t_max=600, t_min=100, num_restarts=2)
    c = samplers.restart(samplers.dpm_solver_pp(3)).plan(levels)
    starts = np.append(0, np.flatnonzero(c.to_noise) + 1)
    assert len(starts) == 3
    np.testing.assert_array_equal(c.sampler.past[starts], 0)
    assert np.all(c.sampler.past[starts + 1, 0] != 0) and np.all(c.sampler.past[starts + 1, 1] == 0)


def test_a_step_to_noise_is_that_of_the_forward_process():
    """From q(x_t | x0) to q(x_s | x0): alpha_s = x_scale alpha_t and sigma_s^2 = (x_scale sigma_t)^2 + std^2."""
    c = samplers.restart(samplers.ddim()).plan(LEVELS)
    t, s = (Level(*(a[c.to_noise] for a in level)) for level in samplers.base.endpoints(LEVELS))
    x_scale, std = c.x_scale[c.to_noise], c.std[c.to_noise]
    np.testing.assert_allclose(x_scale * t.alpha, s.alpha, rtol=1e-12)
    np.testing.assert_allclose((x_scale * t.sigma) ** 2 + std**2, s.sigma**2, rtol=1e-12)


def test_steps_to_noise_evaluate_no_network_and_report_zeros():
    called = []

    def predict(x, t):
        jax.debug.callback(lambda t: called.append(float(t[0])), t)
        return x

    keep = lambda x, denoised: denoised.x0  # noqa: E731
    denoise, sampler = make_denoise(SCHEDULE, predict), samplers.restart(samplers.ddim())
    _, x0 = samplers.sample_path(KEY, sampler, denoise, LEVELS, (2, 3), keep=keep)
    jax.block_until_ready(x0)
    jax.effects_barrier()
    to_noise = np.diff(LEVELS.sigma) > 0
    np.testing.assert_allclose(sorted(called), sorted(LEVELS.t[:-1][~to_noise]), rtol=1e-6)
    np.testing.assert_array_equal(x0[to_noise], 0)
    assert np.all(np.asarray(x0)[~to_noise] != 0)


def test_mistakes_are_refused():
    sampler = samplers.restart(samplers.ddim())
    with pytest.raises(ValueError, match="received none"):
        sampler.plan(grids.reversed(grids.spaced(SCHEDULE, 6)))
    with pytest.raises(ValueError, match="differ"):
        sampler.plan(grids.at(SCHEDULE, np.array([500, 500, 20])))
    with pytest.raises(TypeError, match="traced"):
        jax.jit(sampler.plan)(grids.spaced(SCHEDULE, 6))
    with pytest.raises(ValueError, match="at least 3 steps"):
        samplers.restart(samplers.dpm_solver_pp(3)).plan(grids.back_and_forth(grids.spaced(SCHEDULE, 6), 1, 2))
    with pytest.raises(TypeError, match="key"):
        samplers.sample(None, sampler, exact(GAUSSIAN), LEVELS, (3,), x_init=jnp.ones(3))
