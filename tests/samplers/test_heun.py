import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_checks import GAUSSIAN, SCHEDULE, assert_moments, exact, orders, variance_exploding_check

from ddpm_jax import samplers
from ddpm_jax.samplers import Churn, grids

CHURN = Churn(amount=8.0, low=0.05, high=20.0, noise=1.01)


def test_second_order():
    found, last = orders(samplers.heun())
    assert np.all((found > 1.8) & (found < 2.2))
    assert last < 5e-4


@pytest.mark.parametrize(("prediction", "total"), [("eps", 0.1233), ("v", 4.6934e-07)])
def test_the_published_scheduler_check(prediction, total):
    """diffusers, test_scheduler_heun.py: test_full_loop_no_noise and test_full_loop_with_v_prediction."""
    found = variance_exploding_check(samplers.heun(), prediction)
    assert abs(found - total) < 1e-4
    assert abs(found / total - 1) < 0.1


def test_the_moments_with_churn_are_exact():
    levels = grids.uniform_log_snr(SCHEDULE, 20)
    mean, var = oracles.edm_moments(np.asarray(levels.sigma / levels.alpha), 0.5, 0.04, *CHURN, heun=True)
    assert_moments(samplers.heun(SCHEDULE, CHURN), levels, mean, var)


def test_inversion_and_back():
    """The first step of inversion, from the clean end, uses the slope at its far end alone."""
    levels = grids.karras(SCHEDULE, 100)
    x = jnp.linspace(0.1, 0.9, 5)
    draw = lambda levels, x: samplers.sample(None, samplers.heun(), exact(GAUSSIAN), levels, x.shape, x_init=x)  # noqa: E731
    noise = draw(grids.reversed(levels), x)
    expected = oracles.gaussian_flow(np.asarray(x), 1.0, 0.0, levels.alpha[0], levels.sigma[0], 0.5, 0.04)
    np.testing.assert_allclose(noise, expected, atol=0.01)
    np.testing.assert_allclose(draw(levels, noise), x, atol=0.002)
