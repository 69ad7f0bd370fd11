import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_checks import GAUSSIAN, KEY, SCHEDULE, exact

from ddpm_jax import samplers
from ddpm_jax.samplers import base, grids
from ddpm_jax.samplers.langevin import langevin_step
from ddpm_jax.schedules import Level


def test_its_stationary_variance_in_many_dimensions():
    """With step = 2 (r |noise| / |score|)^2 and score = -x / V, a variance of (1 + r^2) V is stationary as d goes to infinity.

    |noise|^2 = d and |x|^2 = d y V give step = 2 r^2 V / y, and y = y (1 - 2 r^2 / y)^2 + 4 r^2 / y has y = 1 + r^2. 100,000
    numbers: the relative standard error of the variance is sqrt(2 / 100,000) = 0.0045, and it starts 1.5 % from its end.
    """
    level, snr = Level(np.array(0), np.array(0.6), np.array(0.8)), 0.4
    x = jax.random.normal(KEY, (50, 2000)) * 0.7

    def body(i, x):
        noise = jax.random.normal(jax.random.fold_in(KEY, i), x.shape)
        return langevin_step(x, 0.8 * x / 0.25, noise, level, snr)

    x = np.asarray(jax.lax.fori_loop(0, 40, body, x), np.float64)
    assert abs(x.var() / (0.25 * (1 + snr**2)) - 1) < 4 * 0.0045


def test_it_corrects_the_predictor():
    """Five coarse deterministic steps leave the variance far off; with corrections it is closer to the data's 0.04."""
    levels, shape = grids.uniform_log_snr(SCHEDULE, 5), (50, 400)
    draw = lambda sampler: samplers.sample(KEY, sampler, exact(GAUSSIAN), levels, shape)  # noqa: E731
    predicted, corrected = draw(samplers.ddim()), draw(samplers.langevin(samplers.ddim(), snr=0.3, num_corrections=8))
    assert abs(np.var(corrected) / 0.04 - 1) < 0.5 * abs(np.var(predicted) / 0.04 - 1)


def test_the_step_size_is_each_samples_own():
    """Another sample of the batch with a huge score changes nothing."""
    level = Level(np.array(0), np.array(0.6), np.array(0.8))
    x, noise = jax.random.normal(KEY, (2, 3, 5))
    alone = langevin_step(x[:1], x[:1], noise[:1], level, 0.2)
    together = langevin_step(x, x.at[1:].multiply(1e4), noise, level, 0.2)
    np.testing.assert_allclose(together[:1], alone, rtol=1e-6)


def test_a_score_of_zero_moves_nothing_and_has_a_finite_gradient():
    level = Level(np.array(0), np.array(1.0), np.array(0.5))
    step = lambda x: langevin_step(x, 0 * x, jnp.ones_like(x), level, 0.2)  # noqa: E731
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(step(x), x)
    assert np.isfinite(jax.grad(lambda x: step(x).sum())(x)).all()


def test_corrections_and_predictor_draw_different_noise():
    keys = jax.random.split(KEY, 4)
    first, second = base.split(keys, 2)
    assert not np.array_equal(base.normal(first, (4, 3)), base.normal(second, (4, 3)))
    assert base.split(None, 2) == [None, None]


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="snr"):
        samplers.langevin(samplers.ddim(), snr=0.0)
    with pytest.raises(ValueError, match="num_corrections"):
        samplers.langevin(samplers.ddim(), num_corrections=0)
    levels = grids.spaced(SCHEDULE, 3)
    with pytest.raises(TypeError, match="key"):
        samplers.sample(None, samplers.langevin(samplers.ddim()), exact(GAUSSIAN), levels, (3,), x_init=jnp.ones(3))
