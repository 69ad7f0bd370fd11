import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoiser, diffusion, likelihood, losses, schedules

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
        return diffusion.target(level, x0, diffusion.eps_from_x0(level, x_t, x0), prediction, SCHEDULE)

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
    with pytest.raises(ValueError, match=r"shape \(4, 3\), that of x_t, received \(4, 1\)"):
        losses.simple(KEY, SCHEDULE, lambda x, t: x[:, :1], x0)
    with pytest.raises(ValueError, match=r"0\.\.999"):
        losses.simple(KEY, SCHEDULE, zeros, x0, t=1000)
    with pytest.raises(TypeError):
        losses.simple(None, SCHEDULE, zeros, x0)


def doubled(w, u):
    """A network of two numbers: its prediction is w x_t, its learned variance u everywhere."""
    return lambda x_t, t: jnp.concatenate([w * x_t, jnp.full_like(x_t, u)], axis=-1)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_terms_of_vlb_average_to_the_bound(variance):
    """Every one of 20 times for 500 copies: known to 4 standard errors of the difference."""
    schedule, x0 = schedules.linear(20, 1e-3, 0.3), jnp.full((10_000, 2), 0.4)
    predict = doubled(0.9, 0.3) if variance == "learned" else lambda x_t, t: 0.9 * x_t
    t = jnp.tile(jnp.arange(20), 500)
    terms = losses.vlb(KEY, schedule, predict, x0, variance=variance, t=t)
    denoise = denoiser.make_denoise(schedule, predict, clip=False, variance=variance)
    bound = likelihood.bound(jax.random.key(1), schedule, denoise, x0[:500], variance)
    each = np.asarray(terms).reshape(500, 20)
    error = each.mean(1).std() / np.sqrt(500) + np.asarray(bound.total).std() / np.sqrt(500)
    assert abs(each.mean() - np.mean(bound.total - bound.prior)) < 4 * error
    assert terms.dtype == jnp.float32


def test_hybrid_teaches_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    schedule, x0 = schedules.linear(20, 1e-3, 0.3), jax.random.uniform(KEY, (64, 3), minval=-1, maxval=1)
    hybrid = lambda w, u: losses.hybrid(KEY, schedule, doubled(w, u), x0, vlb_weight=0.1).mean()  # noqa: E731
    simple = lambda w: losses.simple(KEY, schedule, lambda x, t: w * x, x0).mean()  # noqa: E731
    vlb = lambda w, u: losses.vlb(KEY, schedule, doubled(w, u), x0).mean()  # noqa: E731
    np.testing.assert_allclose(hybrid(0.7, 0.2), simple(0.7) + 0.1 * vlb(0.7, 0.2), rtol=1e-6)
    by_mean, by_variance = jax.grad(hybrid, argnums=(0, 1))(0.7, 0.2)
    np.testing.assert_allclose(by_mean, jax.grad(simple)(0.7), rtol=1e-5)
    np.testing.assert_allclose(by_variance, 0.1 * jax.grad(vlb, argnums=1)(0.7, 0.2), rtol=1e-5)
    assert abs(jax.grad(vlb)(0.7, 0.2)) > 1e-3, "the bound would teach the mean too"


def test_the_bound_prefers_the_right_variance():
    """Data at one point, known to the network: the posterior's variance, u = -1, is best."""
    schedule, x0 = schedules.linear(20, 1e-3, 0.3), jnp.full((200, 3), 0.2)

    def loss(u):
        def predict(x_t, t):
            eps = diffusion.eps_from_x0(schedule.level(t), x_t, x0)
            return jnp.concatenate([eps, jnp.full_like(eps, u)], axis=-1)

        t = jnp.tile(jnp.arange(1, 20), 11)[:200]
        return losses.vlb(KEY, schedule, predict, x0, t=t).mean()

    np.testing.assert_allclose(loss(-1.0), 0, atol=1e-4)
    assert loss(-1.0) < loss(-0.5) < loss(0.0)
    assert loss(-1.0) < loss(-1.5)


def test_distances():
    """Predictions off by 0.5 or by 3 everywhere."""
    x0 = jnp.zeros((2, 4))

    def loss(offset, distance):
        predict = lambda x_t, t: diffusion.eps_from_x0(SCHEDULE.level(t), x_t, x0) + offset  # noqa: E731
        return losses.simple(KEY, SCHEDULE, predict, x0, distance=distance)

    for distance, expected in {"l2": (0.25, 9), "l1": (0.5, 3), "huber": (0.125, 2.5)}.items():
        for offset, value in zip((0.5, 3.0), expected, strict=True):
            np.testing.assert_allclose(loss(offset, distance), value, rtol=1e-4)
    with pytest.raises(ValueError, match="distance: expected one of"):
        loss(0.5, "l3")


def test_more_mistakes_are_refused():
    x0 = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="variance: expected 'learned' or 'learned_raw'"):
        losses.hybrid(KEY, SCHEDULE, doubled(1.0, 0.0), x0, variance="fixed_small")
    with pytest.raises(ValueError, match=r"shape \(4, 6\), twice the channels"):
        losses.vlb(KEY, SCHEDULE, zeros, x0)
    with pytest.raises(ValueError, match="variance"):
        losses.vlb(KEY, SCHEDULE, zeros, x0, variance="large")
