import numpy as np
import pytest
from sampler_checks import SCHEDULE, orders, scheduler_check

from ddpm_jax import samplers
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

LINSPACE = grids.spaced(SCHEDULE, 10, "linspace", clean=False)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("order", "least", "error"), [(1, 1.8, 6e-4), (2, 2.6, 3e-5), (3, 3.5, 6e-7)])
def test_order_is_one_more_than_its_number(variant, order, least, error):
    found, last = orders(samplers.unipc(order, variant))
    assert np.all((found > least) & (found < order + 1.3))
    assert last < error


def test_without_the_corrector_it_is_of_the_order_of_its_number():
    found, _ = orders(samplers.unipc(2, corrector=False))
    assert np.all((found > 1.8) & (found < 2.2))


@pytest.mark.parametrize(("prediction", "mean"), [("eps", 0.2464), ("v", 0.1014)])
def test_the_published_scheduler_check(prediction, mean):
    """diffusers, test_scheduler_unipc.py: test_full_loop_no_noise and test_full_loop_with_v_prediction."""
    sampler = samplers.unipc(2, lower_order_final=True)
    assert abs(scheduler_check(sampler, LINSPACE, prediction)[1] - mean) < 1e-4


def test_the_predictor_of_order_two_is_dpm_solvers_midpoint():
    """With B = 1 - exp(-h) and weight 1/2, UniP-2 takes DPM-Solver++(2M)'s step."""
    ours, theirs = samplers.unipc(2, "bh2", corrector=False).plan(LINSPACE), samplers.dpm_solver_pp(2).plan(LINSPACE)
    for name in ("x", "x0", "past"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-12)
    np.testing.assert_array_equal(ours.keep, 1)
    np.testing.assert_array_equal(np.column_stack([ours.before, ours.new, ours.old]), 0)


def test_the_corrector_of_order_one_is_the_trapezoidal_rule():
    """UniC-1 replaces x_t by sigma_t / sigma_r x_r + alpha_t (1 - exp(-h)) (x0_r + x0_t) / 2; the first x is kept."""
    c = samplers.unipc(1).plan(LINSPACE)
    np.testing.assert_array_equal(c.keep, np.append(1, np.zeros(9)))
    r, t = samplers.base.endpoints(Level(*(a[:-1] for a in LINSPACE)))
    slope = t.alpha - r.alpha * t.sigma / r.sigma
    np.testing.assert_allclose(c.before[1:], t.sigma / r.sigma, rtol=1e-9)
    np.testing.assert_allclose(c.new[1:], slope / 2, rtol=1e-9)
    np.testing.assert_allclose(c.old[1:, 0], slope / 2, rtol=1e-9)


def test_mistakes_are_refused():
    for wrong in ({"order": 0}, {"variant": "bh3"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            samplers.unipc(**wrong)
    with pytest.raises(ValueError, match="at least 3 steps"):
        samplers.unipc(3).plan(grids.spaced(SCHEDULE, 2))
