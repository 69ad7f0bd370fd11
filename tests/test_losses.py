import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import diffusion, losses, schedules

SCHEDULE = schedules.linear(1000)
KEY = jax.random.key(0)


def zeros(x_t, t):
    return jnp.zeros_like(x_t)


@pytest.mark.parametrize("shape", [(4, 2), (4, 8, 8, 1), (4, 3, 5, 2, 2)])
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction, shape):
    """The network is told x0, and works out eps from x_t alone."""
    x0 = jax.random.uniform(KEY, shape, minval=-1, maxval=1)

    def perfect(x_t, t):
        level = SCHEDULE.level(t)
        return diffusion.target(level, x0, diffusion.eps_from_x0(level, x_t, x0), prediction)

    t = jnp.array([100, 300, 600, 999])
    loss = jax.jit(lambda x0: losses.simple(KEY, SCHEDULE, perfect, x0, prediction, t=t))(x0)
    assert loss.shape == (4,)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 0, atol=1e-7)


def test_predicting_zero_noise_costs_its_variance():
    """E eps^2 = 1, over 16 x 4,096 draws; the mean of chi-squared has standard deviation sqrt(2 / 65,536) = 0.0055."""
    loss = losses.simple(KEY, SCHEDULE, zeros, jnp.zeros((16, 4096)))
    assert abs(loss.mean() - 1) < 4 * 0.0055


def test_times_are_uniform_over_all_steps():
    """20,000 draws: each of ten bins has 2,000 +- sqrt(20,000 * 0.1 * 0.9) = 42."""
    seen = []

    def watch(x_t, t):
        seen.append(t)
        return x_t

    losses.simple(KEY, SCHEDULE, watch, jnp.zeros((20_000, 1)))
    t = np.asarray(seen[0])
    assert t.min() == 0
    assert t.max() == 999
    assert np.abs(np.bincount(t // 100, minlength=10) - 2000).max() < 4 * 42


def test_an_example_keeps_its_time_and_noise_in_any_batch():
    x0 = jax.random.normal(KEY, (6, 3))
    loss = lambda x0, ids=None: losses.simple(KEY, SCHEDULE, zeros, x0, ids=ids)  # noqa: E731
    whole = loss(x0)
    np.testing.assert_array_equal(loss(x0[4:5], jnp.array([4])), whole[4:5])
    np.testing.assert_array_equal(loss(x0[::-1], jnp.arange(6)[::-1]), whole[::-1])
    assert len(np.unique(whole)) == 6
    assert not np.array_equal(whole, losses.simple(jax.random.key(1), SCHEDULE, zeros, x0))


def test_loss_is_float32_for_bfloat16_networks():
    x0 = jax.random.normal(KEY, (4, 64))
    exact = losses.simple(KEY, SCHEDULE, zeros, x0)
    rough = losses.simple(KEY, SCHEDULE, lambda x, t: jnp.zeros_like(x, jnp.bfloat16), x0.astype(jnp.bfloat16))
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, rtol=1e-6)


def test_gradient_reaches_the_parameters_and_vmap_works():
    x0 = jax.random.normal(KEY, (4, 3))
    loss = lambda w: losses.simple(KEY, SCHEDULE, lambda x, t: w * x, x0).mean()  # noqa: E731
    finite_difference = (loss(0.51) - loss(0.49)) / 0.02
    np.testing.assert_allclose(jax.grad(loss)(0.5), finite_difference, rtol=1e-3)
    np.testing.assert_allclose(jax.vmap(loss)(jnp.array([0.1, 0.5]))[1], loss(0.5), rtol=1e-6)


def test_mistakes_are_refused():
    x0 = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="prediction"):
        losses.simple(KEY, SCHEDULE, zeros, x0, "noise")
    with pytest.raises(ValueError, match="shape of x0"):
        losses.simple(KEY, SCHEDULE, lambda x, t: x[:, :1], x0)
    with pytest.raises(ValueError, match=r"0\.\.999"):
        losses.simple(KEY, SCHEDULE, zeros, x0, t=1000)
    with pytest.raises(TypeError):
        losses.simple(None, SCHEDULE, zeros, x0)
