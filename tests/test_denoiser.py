import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoiser, diffusion, schedules
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.schedules import continuous

SCHEDULE = schedules.linear(1000)
LEVEL = SCHEDULE.level(400)
X_T = 2 * jax.random.normal(jax.random.key(0), (5, 4))
OUTPUT = jax.random.normal(jax.random.key(1), (5, 4))


def predict(x_t, t):
    assert t.shape == x_t.shape[:1]
    return OUTPUT


@pytest.mark.parametrize("rederive", [True, False])
def test_clipping_bounds_x0_and_derives_eps_anew_or_not(rederive):
    raw = make_denoise(SCHEDULE, predict, clip=False)
    x0, eps, _ = denoiser.clipped(raw, rederive_eps=rederive)(X_T, LEVEL)
    assert np.abs(raw(X_T, LEVEL).x0).max() > 1.5
    np.testing.assert_array_equal(x0, np.clip(raw(X_T, LEVEL).x0, -1, 1))
    if rederive:
        np.testing.assert_allclose(diffusion.add_noise(LEVEL, x0, eps), X_T, atol=1e-5)
    else:
        np.testing.assert_array_equal(eps, OUTPUT)


def test_make_denoise_clips_and_derives_anew_by_default():
    for ours, expected in zip(
        make_denoise(SCHEDULE, predict)(X_T, LEVEL)[:2],
        denoiser.clipped(make_denoise(SCHEDULE, predict, clip=False))(X_T, LEVEL)[:2],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_every_prediction_is_read_as_itself(prediction):
    denoised = make_denoise(SCHEDULE, predict, prediction, clip=False)(X_T, LEVEL)
    atol = 1e-5 * max(1, np.abs(denoised.x0).max())  # an arbitrary output is the mean of an x0 of hundreds
    np.testing.assert_allclose(diffusion.add_noise(LEVEL, denoised.x0, denoised.eps), X_T, atol=atol)
    np.testing.assert_allclose(diffusion.target(LEVEL, *denoised[:2], prediction, SCHEDULE), OUTPUT, atol=atol)


def test_a_level_per_example():
    t = jnp.array([0, 1, 500, 998, 999])
    together = make_denoise(SCHEDULE, predict)(X_T, SCHEDULE.level(t))
    for i in range(5):
        alone = make_denoise(SCHEDULE, lambda x, t, i=i: OUTPUT[i : i + 1])(X_T[i : i + 1], SCHEDULE.level(t[i]))
        np.testing.assert_allclose(together.x0[i], alone.x0[0], rtol=1e-6)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_a_level_of_a_longer_schedule_gives_nan(prediction):
    """A network trained on 1,000 levels has never seen t = 1500."""
    level = schedules.linear(4000).level(1500)
    x0, eps, _ = jax.jit(make_denoise(SCHEDULE, predict, prediction))(X_T, level)
    assert np.isnan(x0).all()
    assert np.isnan(eps).all()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_every_prediction_is_read_as_itself_in_continuous_time(prediction):
    schedule = continuous.linear_vp()
    level = schedule.level(0.4)
    denoised = make_denoise(schedule, predict, prediction, clip=False)(X_T, level)
    np.testing.assert_allclose(diffusion.add_noise(level, denoised.x0, denoised.eps), X_T, atol=1e-5)
    np.testing.assert_allclose(diffusion.target(level, *denoised[:2], prediction, schedule), OUTPUT, atol=1e-5)


def test_the_network_is_given_real_times_and_a_level_out_of_range_gives_nan():
    """1 is the last time in continuous time, though not for a discrete schedule."""
    schedule, seen = continuous.cosine(), []
    denoise = make_denoise(schedule, lambda x, t: seen.append(t) or OUTPUT)
    assert np.isfinite(denoise(X_T, schedule.level(jnp.array([0.0, 0.2, 0.25, 0.5, 1.0]))).x0).all()
    np.testing.assert_array_equal(seen[0], np.array([0.0, 0.2, 0.25, 0.5, 1.0], np.float32))
    assert np.isnan(jax.jit(denoise)(X_T, SCHEDULE.level(2)).x0).all()


def test_what_needs_steps_is_refused_when_made():
    schedule = continuous.cosine()
    with pytest.raises(ValueError, match="schedule: expected one with a number of steps for the prediction 'mean', received"):
        make_denoise(schedule, predict, "mean")
    for variance in ("learned", "learned_raw"):
        with pytest.raises(ValueError, match=f"schedule: .* for the variance '{variance}', received one in continuous time"):
            make_denoise(schedule, predict, variance=variance)
        with pytest.raises(ValueError, match=f"the variance '{variance}'"):
            denoiser.read(schedule, schedule.level(0.4), X_T, jnp.zeros((5, 8)), "eps", variance)
    denoised = make_denoise(schedule, predict)(X_T, schedule.level(0.4))
    with pytest.raises(ValueError, match=r"a number of steps for q\(x_\{t-1\}"):
        denoiser.p_reverse(schedule, denoised, X_T, 0)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="prediction"):
        make_denoise(SCHEDULE, predict, "noise")
    with pytest.raises(ValueError, match="variance"):
        make_denoise(SCHEDULE, predict, variance="large")
    with pytest.raises(ValueError, match=r"expected an output of shape \(5, 8\)"):
        make_denoise(SCHEDULE, predict, variance="learned")(X_T, LEVEL)
    with pytest.raises(ValueError, match=r"expected an output of shape \(5, 8\)"):
        make_denoise(SCHEDULE, lambda x, t: jnp.zeros((5, 7)), variance="learned_raw")(X_T, LEVEL)
    with pytest.raises(ValueError, match=r"expected an output of shape \(5, 4\)"):
        make_denoise(SCHEDULE, lambda x, t: jnp.zeros((5, 8)))(X_T, LEVEL)
    denoised = make_denoise(SCHEDULE, predict)(X_T, LEVEL)
    with pytest.raises(ValueError, match="expected fixed_small or fixed_large"):
        denoiser.p_reverse(SCHEDULE, denoised, X_T, 400, "learned")
    with pytest.raises(ValueError, match="variance"):
        denoiser.p_reverse(SCHEDULE, denoised, X_T, 400, "large")


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_the_reverse_step_is_the_posterior_at_the_estimate(t):
    """The fixed variances: beta_tilde and beta in numpy, with t = 1 in place of t = 0."""
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    small = (beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]))[max(t - 1, 0)]
    denoised = make_denoise(SCHEDULE, predict)(X_T, SCHEDULE.level(t))
    p = denoiser.p_reverse(SCHEDULE, denoised, X_T, t, "fixed_small")
    np.testing.assert_array_equal(p.mean, diffusion.q_posterior(SCHEDULE, denoised.x0, X_T, t).mean)
    np.testing.assert_allclose(p.variance, small, rtol=1e-5)
    large = denoiser.p_reverse(SCHEDULE, denoised, X_T, t, "fixed_large").variance
    np.testing.assert_allclose(large, beta[t] if t > 0 else small, rtol=1e-5)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_learned_variances_mean_what_they_say(t):
    """-1 is the posterior's variance, 1 is beta, 0 their geometric mean; a raw one is the log variance itself."""
    level = SCHEDULE.level(t)

    def log_variance(u, variance):
        output = jnp.concatenate([OUTPUT, jnp.full_like(OUTPUT, u)], axis=-1)
        denoised = make_denoise(SCHEDULE, lambda x, t: output, "eps", False, variance)(X_T, level)
        np.testing.assert_array_equal(denoised.eps, OUTPUT)
        return denoiser.p_reverse(SCHEDULE, denoised, X_T, t, "learned").log_variance

    denoised = make_denoise(SCHEDULE, predict, clip=False)(X_T, level)
    small = denoiser.p_reverse(SCHEDULE, denoised, X_T, t, "fixed_small").log_variance
    log_beta = np.log(np.linspace(1e-4, 0.02, 1000)[t])
    np.testing.assert_allclose(log_variance(-1.0, "learned"), float(small), rtol=1e-6)
    np.testing.assert_allclose(log_variance(1.0, "learned"), log_beta, rtol=1e-6)
    np.testing.assert_allclose(log_variance(0.0, "learned"), (float(small) + log_beta) / 2, rtol=1e-6)
    np.testing.assert_allclose(log_variance(-3.7, "learned_raw"), -3.7, rtol=1e-6)


def test_clipping_keeps_the_learned_variance():
    output = jnp.concatenate([OUTPUT, OUTPUT], axis=-1)
    denoised = make_denoise(SCHEDULE, lambda x, t: output, variance="learned")(X_T, LEVEL)
    np.testing.assert_array_equal(denoised.fraction, (OUTPUT + 1) / 2)
