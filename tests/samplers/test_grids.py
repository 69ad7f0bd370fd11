import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.samplers import grids

SCHEDULE = schedules.linear(1000)


@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("leading", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("quadratic", [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]),
    ],
)
def test_ten_of_a_thousand(spacing, times):
    """As the code of DDIM (leading, quadratic) and Table 2 of Lin et al. 2023 (linspace, trailing) have them."""
    levels = grids.spaced(SCHEDULE, 10, spacing)
    np.testing.assert_array_equal(levels.t, [*times, 0])
    np.testing.assert_array_equal(levels.alpha, [*np.asarray(SCHEDULE.alpha)[times], 1])
    np.testing.assert_array_equal(levels.sigma, [*np.asarray(SCHEDULE.sigma)[times], 0])


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_all_steps_are_the_schedule_itself(spacing):
    np.testing.assert_array_equal(grids.spaced(SCHEDULE, spacing=spacing).t, [*range(999, -1, -1), 0])


@pytest.mark.parametrize("spacing", grids.SPACINGS)
def test_every_grid_falls_within_the_schedule_without_repeats(spacing):
    for num_steps in range(1, 1001):
        t = grids.spaced(SCHEDULE, num_steps, spacing).t[:-1]
        assert np.all(np.diff(t) < 0)
        assert 0 <= t[-1] <= t[0] <= 999
        assert len(t) == num_steps or spacing == "quadratic"
        assert t[0] == 999 or spacing in ("leading", "quadratic")


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(num_steps):
    with pytest.raises(ValueError, match="1 to 1000"):
        grids.spaced(SCHEDULE, num_steps)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="spacing"):
        grids.spaced(SCHEDULE, 10, "even")


def test_explicit_times():
    np.testing.assert_array_equal(grids.at(SCHEDULE, [500, 20]).t, [500, 20, 0])
    for wrong in ([], [[1]], [1000], [-1]):
        with pytest.raises(ValueError, match="t: expected"):
            grids.at(SCHEDULE, np.array(wrong, np.int32))
    with pytest.raises(TypeError):
        grids.at(SCHEDULE, np.array([0.5]))
