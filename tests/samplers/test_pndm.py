import jax
import numpy as np
import pytest
from sampler_checks import SCHEDULE, orders, scheduler_check

from ddpm_jax import samplers, schedules
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

TIMES = np.arange(900, -1, -100)


def test_second_order():
    """Not fourth: its weights are for equal steps, and these are unequal in the variable of the integral."""
    found, last = orders(samplers.pndm())
    assert np.all(found > 1.8)
    assert last < 2e-4


@pytest.mark.parametrize(
    ("beta_start", "clean", "total"), [(1e-4, False, 198.1318), (0.01, True, 230.0399), (0.01, False, 186.9482)]
)
def test_the_published_scheduler_check(beta_start, clean, total):
    """diffusers, test_scheduler_pndm.py: test_full_loop_no_noise, ..._with_set_alpha_to_one, ..._with_no_set_alpha_to_one."""
    schedule = schedules.linear(1000, beta_start)
    levels = grids.runge_kutta_start(schedule, TIMES, clean)
    found, _ = scheduler_check(samplers.pndm("runge_kutta"), levels, schedule=schedule)
    assert abs(found - total) < 1e-2


def test_the_grid_of_the_runge_kutta_start():
    levels = grids.runge_kutta_start(SCHEDULE, TIMES)
    start = [900, 850, 850, 800, 800, 750, 750, 700, 700, 650, 650, 600]
    np.testing.assert_array_equal(levels.t, [*start, 600, 500, 400, 300, 200, 100, 0, 0])
    with pytest.raises(ValueError, match="at least 4"):
        grids.runge_kutta_start(SCHEDULE, TIMES[:3])


def test_the_levels_of_the_runge_kutta_start_may_be_traced():
    levels, sampler = grids.runge_kutta_start(SCHEDULE, TIMES), samplers.pndm("runge_kutta")
    traced, concrete = jax.jit(sampler.plan)(levels), sampler.plan(levels)
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(concrete), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="start"):
        samplers.pndm("euler")
    with pytest.raises(ValueError, match="at least 4 steps"):
        samplers.pndm().plan(grids.spaced(SCHEDULE, 3))
    with pytest.raises(ValueError, match="runge_kutta_start"):
        samplers.pndm("runge_kutta").plan(grids.spaced(SCHEDULE, 20))
    levels = grids.runge_kutta_start(SCHEDULE, TIMES)
    pure_noise = Level(levels.t, np.append(0.0, levels.alpha[1:]), np.append(1.0, levels.sigma[1:]))
    with pytest.raises(ValueError, match="below pure noise"):
        samplers.pndm("runge_kutta").plan(pure_noise)
