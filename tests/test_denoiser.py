import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoiser, diffusion, schedules
from ddpm_jax.denoiser import make_denoise

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
    np.testing.assert_allclose(diffusion.add_noise(LEVEL, denoised.x0, denoised.eps), X_T, atol=1e-5)
    np.testing.assert_allclose(diffusion.target(LEVEL, *denoised[:2], prediction), OUTPUT, atol=1e-5)


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
    x0, eps, _ = make_denoise(SCHEDULE, predict, prediction)(X_T, level)
    assert np.isnan(x0).all()
    assert np.isnan(eps).all()


def test_an_unknown_prediction_is_refused_at_once():
    with pytest.raises(ValueError, match="prediction"):
        make_denoise(SCHEDULE, predict, "noise")
