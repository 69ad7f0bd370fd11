import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ddpm_jax import diffusion, schedules
from ddpm_jax.schedules import Level, continuous

SCHEDULE = schedules.linear(1000)
SHAPES = [(6,), (6, 3), (6, 4, 4, 1)]


def draw(shape, *seeds):
    return [jax.random.normal(jax.random.key(seed), shape) for seed in seeds]


@pytest.mark.parametrize("shape", SHAPES)
def test_q_sample_is_signal_and_noise(shape):
    x0, noise = draw(shape, 0, 1)
    t = np.array([0, 1, 10, 500, 998, 999])
    x_t = jax.jit(lambda x0, t, noise: diffusion.q_sample(SCHEDULE, x0, t, noise))(x0, jnp.asarray(t), noise)
    for i in range(6):
        expected = np.sqrt(SCHEDULE.alpha_bar[t[i]]) * x0[i] + np.sqrt(1 - SCHEDULE.alpha_bar[t[i]]) * noise[i]
        np.testing.assert_allclose(x_t[i], expected, rtol=1e-5, atol=1e-6)


def test_q_sample_in_continuous_time_has_the_moments_of_the_level():
    """40,000 draws at each time: x0 = 2 everywhere, alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    t = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    x0, noise = jnp.full((5, 40_000), 2.0), jax.random.normal(jax.random.key(0), (5, 40_000))
    schedule = continuous.cosine(-np.inf, np.inf)
    x_t = np.asarray(jax.jit(lambda t: diffusion.q_sample(schedule, x0, t, noise))(jnp.asarray(t)), np.float64)
    sigma = np.sin(np.pi * t / 2)
    assert np.all(np.abs(x_t.mean(1) - 2 * np.cos(np.pi * t / 2)) <= 4 * sigma / 200 + 1e-5)
    np.testing.assert_allclose(x_t.std(1), sigma, rtol=4 / np.sqrt(2 * 40_000), atol=1e-6)
    with pytest.raises(ValueError, match="t: expected 0 to 1"):
        diffusion.q_sample(schedule, x0, 2, noise)


def test_q_sample_keeps_the_dtype_of_the_data():
    x0, noise = draw((2, 3), 0, 1)
    assert diffusion.q_sample(SCHEDULE, x0.astype(jnp.bfloat16), 5, noise.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert diffusion.q_sample(SCHEDULE, x0, 5, noise).dtype == jnp.float32


def test_q_sample_refuses_noise_in_another_shape():
    with pytest.raises(ValueError, match="noise"):
        diffusion.q_sample(SCHEDULE, jnp.zeros((2, 3)), 5, jnp.zeros((2, 1)))


def test_q_sample_refuses_images_that_were_not_scaled():
    with pytest.raises(TypeError, match="x0"):
        diffusion.q_sample(SCHEDULE, jnp.ones((2, 3), jnp.uint8), 5, jnp.ones((2, 3)))


def test_q_posterior_has_the_papers_values():
    """Recomputed in float64 from Eqs. 6 and 7 of Ho et al. 2020."""
    at_one = diffusion.q_posterior(SCHEDULE, jnp.ones((1,)), jnp.zeros((1,)), 1)
    np.testing.assert_allclose(at_one.mean, 0.545291500, rtol=1e-6)
    np.testing.assert_allclose(at_one.variance, 5.4531877e-5, rtol=1e-6)
    np.testing.assert_allclose(at_one.log_variance, -9.8167251353, rtol=1e-6)
    np.testing.assert_allclose(diffusion.q_posterior(SCHEDULE, jnp.zeros((1,)), jnp.ones((1,)), 1).mean, 0.454708499, rtol=1e-6)
    last = diffusion.q_posterior(SCHEDULE, jnp.zeros((1,)), jnp.zeros((1,)), 999)
    np.testing.assert_allclose(last.variance, 0.0199999835, rtol=1e-6)


@pytest.mark.parametrize("t", [1, 2, 100, 500, 999])
def test_q_posterior_is_the_product_of_the_two_densities(t):
    x0, x_t = draw((1, 5), 0, 1)
    ends = [table[i] for i in (t, t - 1) for table in (SCHEDULE.alpha, SCHEDULE.sigma)]
    mean, variance = oracles.reverse_step(np.asarray(x0, np.float64), np.asarray(x_t, np.float64), *ends)
    posterior = diffusion.q_posterior(SCHEDULE, x0, x_t, jnp.array([t]))
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(posterior.variance, [[variance]], rtol=1e-5)
    np.testing.assert_allclose(posterior.log_variance, [[np.log(variance)]], rtol=1e-5)


def test_q_posterior_at_the_first_step_is_the_data():
    x0, x_t = draw((2, 5), 0, 1)
    posterior = diffusion.q_posterior(SCHEDULE, x0, x_t, jnp.array([0, 1]))
    np.testing.assert_allclose(posterior.mean[0], x0[0], rtol=1e-6)
    assert posterior.variance[0] == 0
    assert posterior.log_variance[0] == posterior.log_variance[1]


def test_q_posterior_needs_two_steps():
    with pytest.raises(ValueError, match="2 steps"):
        diffusion.q_posterior(schedules.linear(1), jnp.ones((1,)), jnp.ones((1,)), 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_a_perfect_prediction_gives_back_data_and_noise(prediction, shape):
    x0, eps = draw(shape, 0, 1)
    level = SCHEDULE.level(jnp.array([0, 3, 50, 300, 500, 700]))
    x_t = diffusion.add_noise(level, x0, eps)
    output = diffusion.target(level, x0, eps, prediction, SCHEDULE)
    x0_read, eps_read = diffusion.x0_and_eps(level, x_t, output, prediction, SCHEDULE)
    # Dividing by sigma = 0.01 or by a mean's share of x0, 3e-4, magnifies rounding.
    np.testing.assert_allclose(x0_read, x0, atol=1e-3 if prediction == "mean" else 2e-5)
    np.testing.assert_allclose(eps_read, eps, atol=2e-4 if prediction in ("x0", "mean") else 2e-5)


def test_a_mean_needs_a_schedule_and_its_own_times():
    x = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="schedule"):
        diffusion.x0_and_eps(SCHEDULE.level(1), x, x, "mean")
    with pytest.raises(TypeError, match="integers"):
        diffusion.x0_and_eps(SCHEDULE.level_at(0.0), x, x, "mean", SCHEDULE)


def test_the_posterior_and_the_mean_need_discrete_time():
    schedule, x = continuous.cosine(), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=r"a number of steps for q\(x_\{t-1\} \| x_t, x0\), received one in continuous time"):
        diffusion.q_posterior(schedule, x, x, 0)
    with pytest.raises(ValueError, match="a number of steps for the variance of a step"):
        diffusion.log_variance_range(schedule, 0)
    for read in (diffusion.target, diffusion.x0_and_eps):
        with pytest.raises(ValueError, match="a number of steps for the prediction 'mean'"):
            read(schedule.level(0.5), x, x, "mean", schedule)


def test_the_range_of_variances_is_that_of_the_tables_in_float64():
    small, span = diffusion.log_variance_range(SCHEDULE, jnp.arange(1000))
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    posterior = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    np.testing.assert_allclose(small[1:], np.log(posterior), rtol=1e-6)
    np.testing.assert_allclose(span[1:], np.log(beta[1:] / posterior), rtol=1e-5)
    assert small[0] == small[1]
    np.testing.assert_allclose(small[0] + span[0], np.log(beta[0]), rtol=1e-6)


def test_the_score_is_the_gradient_of_the_log_density():
    x0, eps = draw((7,), 0, 1)
    level = SCHEDULE.level(300)
    x_t = diffusion.add_noise(level, x0, eps)
    log_density = lambda x: -jnp.sum((x - level.alpha * x0) ** 2) / (2 * level.sigma**2)  # noqa: E731
    np.testing.assert_allclose(diffusion.score_from_eps(level, eps), jax.grad(log_density)(x_t), rtol=1e-4)


@pytest.mark.parametrize("level", [Level(0, 1.0, 0.0), Level(999, 0.0, 1.0)])
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
@pytest.mark.parametrize("schedule", [SCHEDULE, schedules.jsd(1000)], ids=["linear", "jsd"])
def test_both_ends_are_finite_in_value_and_gradient(schedule, prediction, level):
    x_t, output = draw((2, 3), 0, 1)
    total = lambda x, o: sum(jnp.sum(a) for a in diffusion.x0_and_eps(level, x, o, prediction, schedule))  # noqa: E731
    assert np.isfinite(total(x_t, output))
    assert all(np.isfinite(g).all() for g in jax.grad(total, argnums=(0, 1))(x_t, output))


def test_v_is_exact_at_both_ends():
    """At sigma = 0, x_t is the data; at alpha = 0, v = -x0."""
    x_t, v = draw((2, 3), 0, 1)
    np.testing.assert_array_equal(diffusion.x0_from_v(Level(0, 1.0, 0.0), x_t, v), x_t)
    np.testing.assert_array_equal(diffusion.x0_from_v(Level(0, 0.0, 1.0), x_t, v), -v)


def test_an_unknown_prediction_is_refused():
    x = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=r"prediction.*'noise'"):
        diffusion.target(SCHEDULE.level(1), x, x, "noise")
    with pytest.raises(ValueError, match=r"prediction.*'noise'"):
        diffusion.x0_and_eps(SCHEDULE.level(1), x, x, "noise")
