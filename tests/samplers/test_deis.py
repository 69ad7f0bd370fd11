import numpy as np
import pytest
from sampler_checks import SCHEDULE, orders, scheduler_check, variance_exploding_check

from ddpm_jax import samplers
from ddpm_jax.samplers import grids

LINSPACE = grids.spaced(SCHEDULE, 10, "linspace", clean=False)


@pytest.mark.parametrize(
    ("order", "variable", "least"),
    [(1, "log_rho", 0.9), (2, "log_rho", 1.8), (3, "log_rho", 2.7), (4, "log_rho", 3.5), (2, "rho", 1.8), (3, "rho", 2.6)],
)
def test_order(order, variable, least):
    found, _ = orders(samplers.deis(order, variable))
    assert np.all(found > least)


@pytest.mark.parametrize(("prediction", "mean"), [("eps", 0.23916), ("v", 0.091)])
def test_the_published_scheduler_check(prediction, mean):
    """diffusers, test_scheduler_deis.py: test_full_loop_no_noise and test_full_loop_with_v_prediction."""
    sampler = samplers.deis(2, lower_order_final=True)
    assert abs(scheduler_check(sampler, LINSPACE, prediction)[1] - mean) < 1e-4


@pytest.mark.parametrize(("prediction", "total"), [("eps", 1006.388), ("v", 0.0017)])
def test_in_rho_it_is_the_published_lms(prediction, total):
    """diffusers, test_scheduler_lms.py: test_full_loop_no_noise and test_full_loop_with_v_prediction."""
    assert abs(variance_exploding_check(samplers.deis(4, "rho"), prediction) - total) < 2e-2


@pytest.mark.parametrize("variable", ["rho", "log_rho"])
def test_an_eps_that_is_such_a_polynomial_is_integrated_exactly(variable):
    """eps = u^2 along the grid, u = rho or log rho: x / alpha grows by the integral of u^2 d rho."""
    levels = grids.uniform_log_snr(SCHEDULE, 8, clean=False)
    c = samplers.deis(3, variable).plan(levels)
    rho = levels.sigma / levels.alpha
    eps = (rho if variable == "rho" else np.log(rho)) ** 2
    antiderivative = rho**3 / 3 if variable == "rho" else rho * (np.log(rho) ** 2 - 2 * np.log(rho) + 2)
    for i in range(2, 8):
        # x0 = x_t / alpha - rho eps; at x_t = 0
        past = c.past[i] @ eps[[i - 1, i - 2]]
        change = (past - c.x0[i] * rho[i] * eps[i] + c.eps[i] * eps[i]) / levels.alpha[i + 1]
        np.testing.assert_allclose(change, antiderivative[i + 1] - antiderivative[i], rtol=1e-9)


def test_mistakes_are_refused():
    for wrong in ({"order": 5}, {"variable": "t"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            samplers.deis(**wrong)
    with pytest.raises(ValueError, match="at least 4 steps"):
        samplers.deis(4).plan(grids.spaced(SCHEDULE, 3))
