import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_checks import KEY, SCHEDULE, assert_moments, orders, scheduler_check, variance_exploding_check

from ddpm_jax import samplers
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import Churn, grids
from ddpm_jax.schedules import Level

CHURN = Churn(amount=8.0, low=0.05, high=20.0, noise=1.01)


def test_first_order():
    found, last = orders(samplers.euler())
    assert np.all((found > 0.9) & (found < 1.1))
    assert last < 0.02


def test_without_churn_it_is_ddim():
    levels, denoise = grids.spaced(SCHEDULE, 20), make_denoise(SCHEDULE, lambda x, t: jnp.tanh(x + t[:, None] / 1000))
    draw = lambda sampler: samplers.sample(KEY, sampler, denoise, levels, (16, 3))  # noqa: E731
    np.testing.assert_array_equal(draw(samplers.euler()), draw(samplers.ddim()))


@pytest.mark.parametrize(("prediction", "total"), [("eps", 10.0807), ("v", 0.0002)])
def test_the_published_scheduler_check(prediction, total):
    """diffusers, test_scheduler_euler.py: test_full_loop_no_noise and test_full_loop_with_v_prediction."""
    assert abs(variance_exploding_check(samplers.euler(), prediction) - total) < 1e-2


def test_the_check_tells_levels_apart():
    """On levels of unit variance the same loop ends elsewhere."""
    assert abs(scheduler_check(samplers.euler(), grids.spaced(SCHEDULE, 10, "linspace"))[0] - 10.0807) > 100


def test_the_moments_with_churn_are_exact():
    levels = grids.uniform_log_snr(SCHEDULE, 20)
    rho = np.asarray(levels.sigma / levels.alpha)
    mean, var = oracles.edm_moments(rho, 0.5, 0.04, *CHURN, heun=False)
    start = np.hypot(levels.alpha[0], levels.sigma[0]) / levels.alpha[0]  # ours starts from N(0, 1), the oracle from rho^2
    assert abs(start / rho[0] - 1) < 1e-4
    assert_moments(samplers.euler(SCHEDULE, CHURN), levels, mean, var)


def test_churn_goes_where_it_should():
    levels = grids.uniform_log_snr(SCHEDULE, 20, clean=False)
    c = samplers.euler(SCHEDULE, Churn(4.0, low=0.1, high=10.0)).plan(levels)
    rho, raised = levels.sigma[:-1] / levels.alpha[:-1], c.level.sigma / c.level.alpha
    inside = (rho >= 0.1) & (rho <= 10.0)
    np.testing.assert_allclose(raised / rho, np.where(inside, 1.2, 1.0), rtol=1e-9)
    np.testing.assert_array_equal(c.std > 0, inside)
    np.testing.assert_allclose(c.x_scale**2 * levels.sigma[:-1] ** 2 + c.std**2, c.level.sigma**2, rtol=1e-9)
    most = samplers.euler(SCHEDULE, Churn(1e9)).plan(levels)
    assert most.level.sigma[0] == levels.sigma[0]
    assert np.all(most.level.t <= 999)
    np.testing.assert_allclose((most.level.sigma / most.level.alpha / rho)[2:], np.sqrt(2), rtol=1e-9)


def test_mistakes_are_refused():
    for churn in (Churn(-1.0), Churn(1.0, 2.0, 1.0), Churn(1.0, noise=-1.0), Churn(float("nan"))):
        with pytest.raises(ValueError, match="churn"):
            samplers.euler(SCHEDULE, churn)
    with pytest.raises(ValueError, match="schedule"):
        samplers.euler(churn=Churn(1.0))
    levels = grids.spaced(SCHEDULE, 3)
    with pytest.raises(ValueError, match="less noisy"):
        samplers.euler(SCHEDULE, Churn(1.0)).plan(grids.reversed(levels))
    denoise = make_denoise(SCHEDULE, lambda x, t: x)
    with pytest.raises(TypeError, match="key"):
        samplers.sample(None, samplers.euler(SCHEDULE, Churn(1.0)), denoise, levels, (2, 3), x_init=jnp.zeros((2, 3)))
    pure_noise = Level(levels.t, np.append(0.0, levels.alpha[1:]), np.append(1.0, levels.sigma[1:]))
    assert all(np.isfinite(a).all() for a in samplers.euler(SCHEDULE, Churn(1.0)).plan(pure_noise)[1:])
