import numpy as np
import oracles
import pytest
from sampler_checks import SCHEDULE, assert_moments

from ddpm_jax import samplers
from ddpm_jax.samplers import grids


@pytest.mark.parametrize(("eta", "noise"), [(1.0, 1.0), (0.5, 1.05), (3.0, 0.9)])
def test_the_moments_are_those_of_k_diffusion(eta, noise):
    levels = grids.karras(SCHEDULE, 20)
    mean, var = oracles.euler_ancestral_moments(np.asarray(levels.sigma / levels.alpha), 0.5, 0.04, eta, noise)
    assert_moments(samplers.euler_ancestral(eta, noise), levels, mean, var)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_it_is_ddim_with_that_eta(eta):
    levels = grids.spaced(SCHEDULE, 20)
    ours, theirs = samplers.euler_ancestral(eta).plan(levels), samplers.ddim(eta).plan(levels)
    np.testing.assert_allclose(ours.std, theirs.std, atol=1e-12)
    np.testing.assert_allclose(ours.x0, theirs.x0_scale, atol=1e-12)
    np.testing.assert_allclose(ours.eps, theirs.eps_scale, atol=1e-12)
    np.testing.assert_array_equal(ours.x, 0)


def test_mistakes_are_refused():
    for wrong in ({"eta": -1.0}, {"noise": -1.0}, {"eta": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            samplers.euler_ancestral(**wrong)
    with pytest.raises(ValueError, match="less noisy"):
        samplers.euler_ancestral().plan(grids.reversed(grids.spaced(SCHEDULE, 3)))
