import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_checks import GAUSSIAN, KEY, SCHEDULE, assert_moments, exact, orders, scheduler_check

from ddpm_jax import guidance, samplers
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import grids

LINSPACE = grids.spaced(SCHEDULE, 10, "linspace", clean=False)


@pytest.mark.parametrize(
    ("options", "least", "most", "error"),
    [
        ({"order": 1}, 0.9, 1.1, 0.02),
        ({"order": 2}, 1.8, 2.2, 3e-4),
        ({"order": 2, "variant": "heun"}, 1.8, 2.2, 5e-4),
        ({"order": 3}, 2.7, 3.3, 5e-6),
        ({"order": 3, "second_difference": "published"}, 1.9, 2.2, 1e-4),
    ],
)
def test_order(options, least, most, error):
    found, last = orders(samplers.dpm_solver_pp(**options))
    assert np.all((found > least) & (found < most))
    assert last < error


@pytest.mark.parametrize(("prediction", "mean"), [("eps", 0.3301), ("v", 0.2251)])
def test_the_published_scheduler_check(prediction, mean):
    """diffusers, test_scheduler_dpm_multi.py: test_full_loop_no_noise and test_full_loop_with_v_prediction."""
    np.testing.assert_array_equal(LINSPACE.t, [999, 899, 799, 699, 599, 500, 400, 300, 200, 100, 0])
    assert abs(scheduler_check(samplers.dpm_solver_pp(2), LINSPACE, prediction)[1] - mean) < 1e-4


def test_the_published_scheduler_check_with_thresholding():
    """diffusers, test_scheduler_dpm_multi.py: test_full_loop_no_noise_thres, ratio 0.87 and largest value 0.5."""
    wrap = lambda denoise: guidance.dynamic_threshold(denoise, 0.87, limit=0.5)  # noqa: E731
    assert abs(scheduler_check(samplers.dpm_solver_pp(2), LINSPACE, wrap=wrap)[1] - 1.1364) < 1e-3


def test_order_one_is_ddim_and_its_sde_is_ancestral_sampling():
    """To rounding, noise for noise."""
    levels, denoise = grids.spaced(SCHEDULE, 20), make_denoise(SCHEDULE, lambda x, t: jnp.tanh(x + t[:, None] / 1000))
    draw = lambda sampler: samplers.sample(KEY, sampler, denoise, levels, (16, 3))  # noqa: E731
    np.testing.assert_allclose(draw(samplers.dpm_solver_pp(1)), draw(samplers.ddim()), atol=2e-4)
    np.testing.assert_allclose(draw(samplers.dpm_solver_pp(1, sde=True)), draw(samplers.ddpm("fixed_small")), atol=2e-4)


def test_the_moments_of_the_sde_are_exact():
    levels = grids.uniform_log_snr(SCHEDULE, 12)
    mean, var = oracles.sde_multistep_moments(levels.alpha, levels.sigma, 0.5, 0.04)
    assert_moments(samplers.dpm_solver_pp(2, "heun", sde=True), levels, mean, var)


@pytest.mark.parametrize("options", [{"order": 2}, {"order": 3}, {"order": 3, "second_difference": "published"}])
def test_the_sde_comes_close_to_the_data(options):
    """The variance's error falls with more steps, to less than its sampling error of 4 x 0.0071."""
    levels = grids.uniform_log_snr(SCHEDULE, 60)
    assert_moments(samplers.dpm_solver_pp(**options, sde=True), levels, 0.5, 0.04)


def test_the_last_steps_may_be_of_lower_order():
    """A step of order k uses k - 1 past outputs."""
    for last, expected in ((True, [1, 2, *[3] * 6, 2, 1]), (False, [1, 2, *[3] * 8])):
        c = samplers.dpm_solver_pp(3, lower_order_final=last).plan(LINSPACE)
        np.testing.assert_array_equal(1 + (c.past != 0).sum(1), expected)
        assert np.all(c.x0 != 0)


def test_inversion_and_back():
    """From clean data to noise, as in closed form, and back."""
    levels = grids.uniform_log_snr(SCHEDULE, 100)
    x = jnp.linspace(0.1, 0.9, 5)
    draw = lambda levels, x: samplers.sample(  # noqa: E731
        None, samplers.dpm_solver_pp(2), exact(GAUSSIAN), levels, x.shape, x_init=x
    )
    noise = draw(grids.reversed(levels), x)
    expected = oracles.gaussian_flow(np.asarray(x), 1.0, 0.0, levels.alpha[0], levels.sigma[0], 0.5, 0.04)
    np.testing.assert_allclose(noise, expected, atol=0.01)
    np.testing.assert_allclose(draw(levels, noise), x, atol=0.002)


def test_mistakes_are_refused():
    for wrong in ({"order": 4}, {"variant": "euler"}, {"second_difference": "mine"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            samplers.dpm_solver_pp(**wrong)
    with pytest.raises(ValueError, match="at least 3 steps"):
        samplers.dpm_solver_pp(3).plan(grids.spaced(SCHEDULE, 2))
    with pytest.raises(ValueError, match="less noisy"):
        samplers.dpm_solver_pp(2, sde=True).plan(grids.reversed(LINSPACE))
    with pytest.raises(ValueError, match="one way"):
        samplers.dpm_solver_pp(2).plan(grids.back_and_forth(LINSPACE, 2, 2))
