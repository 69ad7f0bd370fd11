import numpy as np
import pytest
from sampler_checks import SCHEDULE, orders

from ddpm_jax import samplers
from ddpm_jax.samplers import grids


@pytest.mark.parametrize("options", [{}, {"variant": "heun"}, {"ratio": 0.7}])
def test_second_order(options):
    found, last = orders(samplers.dpm_solver_pp_2s(SCHEDULE, **options))
    assert np.all((found > 1.8) & (found < 2.2))
    assert last < 4e-4


def test_the_middle_level_lies_between_in_log_snr():
    levels = grids.spaced(SCHEDULE, 10, clean=False)
    middle = samplers.dpm_solver_pp_2s(SCHEDULE, ratio=0.25).plan(levels).middle
    log_snr = lambda level: 2 * np.log(np.asarray(level.alpha, np.float64) / level.sigma)  # noqa: E731
    ends = log_snr(levels)
    np.testing.assert_allclose(log_snr(middle), 0.75 * ends[:-1] + 0.25 * ends[1:], rtol=1e-5)
    assert np.all((middle.t < levels.t[:-1]) & (middle.t > levels.t[1:]))


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="variant"):
        samplers.dpm_solver_pp_2s(SCHEDULE, variant="euler")
    for ratio in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            samplers.dpm_solver_pp_2s(SCHEDULE, ratio=ratio)
    levels = grids.at(SCHEDULE, np.array([500, 500, 20]))
    with pytest.raises(ValueError, match="differ"):
        samplers.dpm_solver_pp_2s(SCHEDULE).plan(levels)
