import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats

from ddpm_jax import diffusion, likelihood, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.diffusion import Gaussian
from ddpm_jax.schedules import continuous

SCHEDULE = schedules.linear(1000)
KEY = jax.random.key(0)
GREY = jnp.arange(256) / 127.5 - 1
MIXTURE = (np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.01, 0.04]))
NORMAL = (np.ones(1), np.array([0.2]), np.array([0.09]))


def exact(mixture):
    """The exact Denoise of one-dimensional mixtures."""

    def denoise(x, level):
        x0 = oracles.posterior_mean(x, level.alpha, level.sigma, *mixture, xp=jnp)
        return Denoised(x0, diffusion.eps_from_x0(level, x, x0))

    return denoise


def test_kl_of_normal_distributions_is_that_of_their_densities():
    """Against the integral of p log(p / q) on a grid of 200,001 points."""
    x = np.linspace(-30, 30, 200_001)
    p, q = scipy.stats.norm(0.5, np.sqrt(0.3)), scipy.stats.norm(-0.7, np.sqrt(2.5))
    integral = np.sum(p.pdf(x) * (p.logpdf(x) - q.logpdf(x))) * (x[1] - x[0])
    a, b = (Gaussian(jnp.array(d.mean()), jnp.array(d.var()), jnp.log(d.var())) for d in (p, q))
    np.testing.assert_allclose(likelihood.normal_kl(a, b), integral, rtol=1e-5)
    assert likelihood.normal_kl(a, a) == 0


def test_published_values_of_the_discretised_normal_distribution():
    """Values of the authors' formula, evaluated in float64 outside of this project."""
    x0, mean = jnp.array([0.0, 1.0, -1.0, 0.2]), jnp.array([0.0, 1.0, -1.0, 0.25])
    ours = likelihood.discretized_log_likelihood(x0, mean, -4.9083626, "tanh")
    np.testing.assert_allclose(ours, [-0.9050181, -0.3534412, -0.3534412, -27.29297], rtol=1e-6)


@pytest.mark.parametrize("decoder", likelihood.DECODERS)
@pytest.mark.parametrize("log_scale", [-7.0, -4.9, -2.0, 1.0])
def test_the_probabilities_of_all_grey_values_sum_to_one(decoder, log_scale):
    log_p = likelihood.discretized_log_likelihood(GREY, jnp.full(256, 0.1), log_scale, decoder)
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, rtol=2e-6)


def test_the_exact_decoder_is_exact_far_out():
    """scipy's normal distribution function, on the side of the mean where its differences keep their digits."""
    x0, scale = np.asarray(GREY[20:101:20], np.float64), 0.05
    low, high = (x0 - 0.3 - 1 / 255) / scale, (x0 - 0.3 + 1 / 255) / scale
    expected = scipy.stats.norm.logcdf(high) + np.log1p(-np.exp(scipy.stats.norm.logcdf(low) - scipy.stats.norm.logcdf(high)))
    for sign in (1, -1):
        ours = likelihood.discretized_log_likelihood(jnp.asarray(sign * x0), jnp.full(5, sign * 0.3), np.log(scale))
        np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert expected[0] < -200


def test_the_tanh_decoder_is_close_where_its_docstring_says():
    mean = jnp.linspace(-0.9, 0.9, 501)
    for log_scale in (-5.0, -3.0):
        for deviations, bound in ((1, 0.001), (2, 0.008), (3, 0.04)):
            x0 = jnp.clip(mean + deviations * np.exp(log_scale), -0.99, 0.99)
            a, b = (likelihood.discretized_log_likelihood(x0, mean, log_scale, d) for d in likelihood.DECODERS)
            assert np.abs(a - b).max() < bound


@pytest.mark.parametrize("decoder", likelihood.DECODERS)
def test_the_decoder_has_finite_gradients(decoder):
    total = lambda mean, s: likelihood.discretized_log_likelihood(GREY, mean, s, decoder).sum()  # noqa: E731
    for log_scale in (-7.0, -2.0):
        gradients = jax.grad(total, argnums=(0, 1))(jnp.full(256, 0.1), log_scale)
        assert all(np.isfinite(g).all() for g in gradients)


def test_what_is_left_of_the_data_in_the_noise():
    """KL(N(alpha x0, sigma^2) || N(0, 1)) by numpy in float64."""
    x0 = jax.random.uniform(KEY, (3, 50), minval=-1, maxval=1)
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    kl = 0.5 * (alpha_bar * np.asarray(x0, np.float64) ** 2 + (1 - alpha_bar) - 1 - np.log(1 - alpha_bar))
    np.testing.assert_allclose(likelihood.prior(SCHEDULE, x0), kl.mean(1) / np.log(2), rtol=1e-5)
    assert np.all(likelihood.prior(schedules.jsd(10), x0) == 0)


@pytest.mark.parametrize("variance", ["fixed_small", "learned"])
def test_knowing_the_data_costs_nothing_but_the_decoder(variance):
    """KL is 0 when the model predicts the true x0 with the posterior's variance."""
    x0 = GREY[None, ::16]
    denoise = lambda x, level: Denoised(x0, x, jnp.zeros_like(x0))  # noqa: E731
    terms = likelihood.bound(KEY, schedules.linear(50), denoise, x0, variance).terms
    np.testing.assert_allclose(terms[:, 1:], 0, atol=1e-6)
    assert np.all(terms[:, 0] > 0)


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["normal", "mixture"])
def test_the_bound_approaches_the_exact_likelihood_as_one_schedule_is_refined(data):
    """The exact model of continuous data, asked for the probability of grey values: 40,000 draws, known to 0.0075 bits.

    The least noise, sigma = 0.007, is as wide as a grey value, and steps have the variance beta, at t = 0 too. What remains
    is that a step of finite length is not normal with that variance: an error that falls as 1 / T.
    """
    rng = np.random.default_rng(0)
    weights, means, variances = data
    component = rng.choice(len(weights), 40_000, p=weights)
    x = rng.normal(means[component], np.sqrt(variances[component]))
    x0 = np.clip(np.round((x + 1) * 127.5), 0, 255) / 127.5 - 1
    cdf = lambda y: np.sum(weights * scipy.stats.norm.cdf((y[:, None] - means) / np.sqrt(variances)), axis=1)  # noqa: E731
    high, low = np.where(x0 > 0.999, np.inf, x0 + 1 / 255), np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
    exact_bits = -np.log2(cdf(high) - cdf(low))
    denoise = lambda x, level: exact(data)(x, level)._replace(fraction=jnp.ones_like(x))  # noqa: E731
    gaps = []
    for num_steps in (8, 32, 128):
        schedule = continuous.cosine(-15.0, 10.0).schedule(num_steps)
        bound = jax.jit(lambda x0, schedule=schedule: likelihood.bound(KEY, schedule, denoise, x0, "learned").total)
        gaps.append(np.mean(bound(jnp.asarray(x0, jnp.float32)[:, None]) - exact_bits))
    assert gaps[0] > 2.5 * gaps[1] > 2.5**2 * gaps[2] > 0, gaps
    assert gaps[2] < 0.06 + 4 * 0.0075


def test_a_sum_of_steps_is_the_divergence_of_the_whole():
    """For normal data and the exact model, E L_t by hand: the posterior's mean is off by x0's own uncertainty."""
    schedule, (_, mean, var) = schedules.linear(50, 1e-3, 0.3), NORMAL
    x0 = jnp.asarray(np.random.default_rng(1).normal(mean, np.sqrt(var), (20_000, 1)), jnp.float32)
    bound = jax.jit(lambda x0: likelihood.bound(KEY, schedule, exact(NORMAL), x0, "fixed_small"))(x0)
    beta = np.linspace(1e-3, 0.3, 50)
    alpha_bar = np.cumprod(1 - beta)
    for t in (1, 10, 40):
        uncertainty = 1 / (1 / var[0] + alpha_bar[t] / (1 - alpha_bar[t]))
        snr = lambda t: alpha_bar[t] / (1 - alpha_bar[t])  # noqa: E731
        expected = 0.5 * (snr(t - 1) - snr(t)) * uncertainty / np.log(2)  # Eq. 13, Kingma et al. 2021
        np.testing.assert_allclose(bound.terms[:, t].mean(), expected, rtol=4 * np.sqrt(2 / 20_000))
        np.testing.assert_allclose(bound.mse[:, t].mean(), uncertainty, rtol=4 * np.sqrt(2 / 20_000))


def test_an_example_keeps_its_terms_in_any_batch():
    x0 = jax.random.uniform(KEY, (6, 3), minval=-1, maxval=1)
    denoise = make_denoise(SCHEDULE, lambda x, t: 0.5 * x)
    schedule = schedules.linear(20)
    run = lambda x0, ids=None: likelihood.bound(KEY, schedule, denoise, x0, ids=ids)  # noqa: E731
    whole, part = run(x0), run(x0[2:4], jnp.array([2, 3]))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a[2:4], b, rtol=1e-5)
    assert whole.terms.shape == (6, 20)
    np.testing.assert_allclose(whole.total, whole.prior + whole.terms.sum(1), rtol=1e-6)


def test_rate_and_distortion_of_what_has_been_received():
    rate, distortion = likelihood.rate_distortion(0.5, [4.0, 2.0, 1.0], [0.01, 0.04, 1.0])
    np.testing.assert_allclose(rate, [0.5 + 2 + 1, 0.5 + 1, 0.5])
    np.testing.assert_allclose(distortion, [12.75, 25.5, 127.5])


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["normal", "mixture"])
@pytest.mark.parametrize("estimate", [False, True], ids=["exact", "hutchinson"])
def test_the_ode_gives_the_density_of_the_noised_data(data, estimate):
    """In one dimension Hutchinson's estimate is exact too."""
    weights, means, variances = data
    schedule = continuous.cosine(-20.0, 10.0)
    x = np.linspace(-1.2, 1.2, 41)
    level = schedule.level_at(8.0)
    spread = np.sqrt(level.alpha**2 * variances + level.sigma**2)
    expected = np.log(np.sum(weights * scipy.stats.norm.pdf(x[:, None], level.alpha * means, spread), axis=1))
    with jax.enable_x64(True):
        key = jax.random.key(0) if estimate else None
        run = jax.jit(
            lambda x: likelihood.ode_log_likelihood(key, schedule, exact(data), x, (8.0, -20.0), 200),
            compiler_options={"xla_backend_optimization_level": "3"},  # without, XLA's own float64 gives nan here
        )
        ours = run(jnp.asarray(x)[:, None])
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_ode_in_many_dimensions_and_for_a_discrete_schedule():
    """Float32, 4 x 3 dimensions of normal data; Hutchinson's estimate is exact on average, for it is linear here."""
    schedule, (_, mean, var) = continuous.cosine(-20.0, 12.0).schedule(1000), NORMAL
    x = jax.random.normal(KEY, (5, 4, 3)) * 0.3
    start = float(schedule.log_snr[0])
    level = schedule.level_at(start)
    expected = scipy.stats.norm.logpdf(x, level.alpha * mean, np.sqrt(level.alpha**2 * var + level.sigma**2)).sum((1, 2))
    for key in (None, KEY):
        ours = jax.jit(
            lambda x, key=key: likelihood.ode_log_likelihood(key, schedule, exact(NORMAL), x, (start, schedule.log_snr[-1]))
        )(x)
        np.testing.assert_allclose(ours, expected, atol=12 * 1e-4)


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["normal", "mixture"])
def test_the_ode_gives_the_density_on_the_path_of_flow_matching(data):
    """alpha + sigma = 1, from t = 0.05 to sigma / alpha = 100,000: 40 points, the density of alpha x0 + sigma eps."""
    weights, means, variances = data
    schedule, x = schedules.flow(), np.linspace(-1.2, 1.2, 40)
    start = float(schedule.level(0.05).log_snr)
    expected = np.sum(weights * scipy.stats.norm.pdf(x[:, None], 0.95 * means, np.sqrt(0.95**2 * variances + 0.05**2)), axis=1)
    with jax.enable_x64(True):
        run = jax.jit(
            lambda x: likelihood.ode_log_likelihood(None, schedule, exact(data), x, (start, -2 * np.log(1e5)), 200),
            compiler_options={"xla_backend_optimization_level": "3"},
        )
        ours = run(jnp.asarray(x)[:, None])
    np.testing.assert_allclose(ours, np.log(expected), atol=1e-4)


def test_hutchinsons_estimate_belongs_to_the_example():
    mix = jax.random.normal(jax.random.key(1), (6, 6)) * 0.3
    denoise = lambda x, level: Denoised(x, jnp.tanh(x @ mix))  # noqa: E731
    x = jax.random.normal(KEY, (400, 6))
    run = jax.jit(lambda key, x, ids: likelihood.ode_log_likelihood(key, SCHEDULE, denoise, x, (2.0, -2.0), 5, ids))
    exact_value = likelihood.ode_log_likelihood(None, SCHEDULE, denoise, x, (2.0, -2.0), 5)
    estimate = run(KEY, x, jnp.arange(400))
    np.testing.assert_allclose(run(KEY, x[5:7], jnp.array([5, 6])), estimate[5:7], rtol=1e-5)
    error = np.asarray(estimate - exact_value)
    assert error.std() > 0.01
    assert abs(error.mean()) < 4 * error.std() / 20


def test_bits_per_dimension_of_a_uniform_density_are_eight():
    """Density 1/2 per dimension on [-1, 1]: 255/256 of a bit's argument away from 8, since grey values end at +-1."""
    np.testing.assert_allclose(likelihood.bits_per_dimension(5 * np.log(0.5), 5), 8, atol=0.006)


def test_the_bound_needs_discrete_time():
    schedule, x0 = continuous.cosine(), jnp.zeros((2, 3))
    denoise = make_denoise(schedule, lambda x, t: x)
    with pytest.raises(ValueError, match="schedule: expected one with a number of steps for the bound, received one in"):
        likelihood.bound(KEY, schedule, denoise, x0)
    with pytest.raises(ValueError, match="a number of steps for the bound"):
        likelihood.prior(schedule, x0)
    with pytest.raises(ValueError, match="a number of steps for progressive coding"):
        likelihood.progressive_coding(KEY, schedule, denoise, x0, [0])
    with pytest.raises(ValueError, match=r"a number of steps for q\(x_\{t-1\} \| x_t, x0\)"):
        likelihood.term(schedule, Denoised(x0, x0), x0, x0, 0)


def test_mistakes_are_refused():
    x0 = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"x0: expected values in \[-1, 1\]"):
        likelihood.discretized_log_likelihood(x0 + 1.1, x0, 0.0)
    with pytest.raises(ValueError, match="decoder"):
        likelihood.discretized_log_likelihood(x0, x0, 0.0, "logistic")
    with pytest.raises(ValueError, match="fixed_small or fixed_large"):
        likelihood.bound(KEY, SCHEDULE, make_denoise(SCHEDULE, lambda x, t: x), x0, "learned")
    with pytest.raises(ValueError, match="log_snr"):
        likelihood.ode_log_likelihood(None, SCHEDULE, exact(NORMAL), x0, (-5.0, 5.0))
    with pytest.raises(ValueError, match="log_snr"):
        likelihood.ode_log_likelihood(None, SCHEDULE, exact(NORMAL), x0, (12.0, -5.0))
    with pytest.raises(ValueError, match="num_steps"):
        likelihood.ode_log_likelihood(None, SCHEDULE, exact(NORMAL), x0, (5.0, -5.0), 0)
