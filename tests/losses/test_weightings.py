import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import diffusion, losses, schedules
from ddpm_jax.losses import weightings
from ddpm_jax.schedules import continuous

SCHEDULE = schedules.linear(1000)
KEY = jax.random.key(0)
FAMILY = {
    "uniform": weightings.uniform(),
    "uniform v": weightings.uniform("v"),
    "min_snr": weightings.min_snr(),
    "p2": weightings.p2(),
    "truncated_snr": weightings.truncated_snr(),
    "edm": weightings.edm(),
    "sigmoid": weightings.sigmoid(),
}


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
@pytest.mark.parametrize("name", FAMILY)
def test_the_same_loss_whatever_the_network_predicts(name, prediction):
    """One wrong estimate of x0, told as each prediction: the weighted losses agree to 1e-5."""
    t = jnp.array([1, 50, 300, 500, 700])
    x0, wrong = jax.random.normal(KEY, (2, 5, 40))

    def loss(prediction):
        def predict(x_t, t):
            level = schedule.level(t)
            estimate = x0 + 0.1 * wrong
            return diffusion.target(level, estimate, diffusion.eps_from_x0(level, x_t, estimate), prediction, schedule)

        return losses.simple(KEY, schedule, predict, x0, prediction, t=t, weighting=FAMILY[name])

    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        x0, wrong = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x0, wrong))
        np.testing.assert_allclose(loss(prediction), loss("x0"), rtol=1e-5)


@pytest.mark.parametrize(
    "name, prediction, expected",
    [
        ("uniform", "eps", lambda snr: 1),
        ("uniform", "x0", lambda snr: snr),
        ("uniform v", "x0", lambda snr: snr + 1),
        ("min_snr", "x0", lambda snr: np.minimum(snr, 5)),
        ("min_snr", "eps", lambda snr: np.minimum(snr, 5) / snr),
        ("min_snr", "v", lambda snr: np.minimum(snr, 5) / (snr + 1)),
        ("p2", "eps", lambda snr: 1 / (1 + snr)),
        ("truncated_snr", "x0", lambda snr: np.maximum(snr, 1)),
        ("truncated_snr", "eps", lambda snr: np.maximum(1, 1 / snr)),
        ("edm", "x0", lambda snr: (1 / snr + 0.25) / (0.25 / snr)),
        ("sigmoid", "eps", lambda snr: 1 / (1 + snr * np.exp(-2))),
    ],
)
def test_the_papers_forms(name, prediction, expected):
    """As the papers give them, for the parameterisations they give."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    snr = alpha_bar / (1 - alpha_bar)
    ours = weightings.weight(FAMILY[name], SCHEDULE.level(jnp.arange(1000)), prediction)
    np.testing.assert_allclose(ours, expected(snr) * np.ones(1000), rtol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_weights_of_v_are_finite_also_without_signal(name):
    schedule = schedules.zero_terminal_snr(SCHEDULE)
    assert np.isfinite(weightings.weight(FAMILY[name], schedule.level(jnp.arange(1000)), "v")).all()


@pytest.mark.parametrize("name", FAMILY)
def test_weights_in_continuous_time_are_those_of_its_discrete_schedules(name):
    schedule = continuous.linear_vp()
    for prediction in ("eps", "x0", "v", "score"):
        real = weightings.weight(FAMILY[name], schedule.level(np.arange(1, 11) / 10), prediction, schedule)
        integer = weightings.weight(FAMILY[name], schedule.schedule(10).level(jnp.arange(10)), prediction)
        np.testing.assert_allclose(real, integer, rtol=1e-5)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="prediction"):
        weightings.weight(FAMILY["p2"], SCHEDULE.level(3), "noise")
    with pytest.raises(ValueError, match="schedule"):
        weightings.weight(FAMILY["p2"], SCHEDULE.level(3), "mean")
    with pytest.raises(ValueError, match="a number of steps for the prediction 'mean'"):
        weightings.weight(FAMILY["p2"], continuous.cosine().level(0.3), "mean", continuous.cosine())
    with pytest.raises(ValueError, match="of: expected"):
        weightings.uniform("score")
