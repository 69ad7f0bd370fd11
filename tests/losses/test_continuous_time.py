"""Training in continuous time: the loss, its times, and what needs steps."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ddpm_jax import diffusion, losses, schedules
from ddpm_jax.losses import weightings
from ddpm_jax.schedules import continuous

KEY = jax.random.key(0)
pytestmark = pytest.mark.filterwarnings("ignore:prediction. expected v, flow or x0")  # eps on the whole cosine, in closed form
WHOLE = continuous.cosine(-np.inf, np.inf)
SCHEDULES = {"linear_vp": continuous.linear_vp(), "cosine": continuous.cosine(), "whole cosine": WHOLE}
MEAN, STD = 0.3, 0.2
GAUSSIAN = (np.ones(1), np.array([MEAN]), np.array([STD**2]))


def zeros(x_t, t):
    return jnp.zeros_like(x_t)


def exact(schedule, prediction):
    """The network that knows the data are N(MEAN, STD^2), and the noise level by t alone."""

    def predict(x_t, t):
        level = schedule.level(t)
        x0 = oracles.posterior_mean(x_t, level.alpha[:, None, None], level.sigma[:, None, None], *GAUSSIAN, xp=jnp)
        return diffusion.target(level, x0, diffusion.eps_from_x0(level, x_t, x0), prediction)

    return predict


def data(num, dimensions):
    return MEAN + STD * jax.random.normal(jax.random.key(1), (num, dimensions))


@pytest.mark.parametrize(
    ("prediction", "expected"), [("eps", STD / (1 + STD)), ("x0", STD**2 / (1 + STD)), ("v", STD)], ids=["eps", "x0", "v"]
)
def test_the_exact_network_has_the_loss_of_its_closed_form(prediction, expected):
    """E Var(target | x_t) over alpha = cos(pi t / 2), t uniform in [0, 1]: an integral over the angle, by hand."""
    predict = exact(WHOLE, prediction)
    loss = np.asarray(jax.jit(lambda x0: losses.simple(KEY, WHOLE, predict, x0, prediction))(data(40_000, 4)), np.float64)
    error = loss.std() / np.sqrt(len(loss))
    assert error < 0.02 * expected
    assert abs(loss.mean() - expected) < 4 * error


def test_finer_discrete_schedules_converge_to_it():
    """At the T times 1/T, ..., 1 the loss falls from 1 to 0: their mean is 1/2T below the integral.

    The squared errors, of which there are 12,800 x 128, have at most twice the loss, 1/6, as their variance.
    """
    x0, gaps, steps = data(12_800, 128), [], (8, 32, 128)
    for num_steps in steps:
        schedule = WHOLE.schedule(num_steps)
        predict, t = exact(schedule, "eps"), jnp.arange(12_800) % num_steps
        loss = jax.jit(lambda x0, s=schedule, p=predict, t=t: losses.simple(KEY, s, p, x0, t=t).mean())(x0)
        gaps.append(STD / (1 + STD) - float(loss))
    np.testing.assert_allclose(gaps, 0.5 / np.array(steps), atol=4 * np.sqrt(2 / 6 / x0.size))


def test_times_are_uniform_real_numbers_and_the_network_is_given_them():
    """20,000 draws: each of ten bins has 2,000 +- sqrt(20,000 * 0.1 * 0.9) = 42."""
    seen = []

    def watch(x_t, t):
        seen.append(t)
        return x_t

    losses.simple(KEY, continuous.cosine(), watch, jnp.zeros((20_000, 1)))
    losses.simple(KEY, continuous.cosine(), watch, jnp.zeros((3, 1)), t=0.25)
    assert seen[0].dtype == jnp.float32
    counts = np.histogram(seen[0], 10, (0, 1))[0]
    assert counts.sum() == 20_000
    assert np.abs(counts - 2000).max() < 4 * 42
    np.testing.assert_array_equal(seen[1], [0.25, 0.25, 0.25])


def test_an_example_keeps_its_time_and_noise_in_any_batch():
    schedule, x0 = continuous.linear_vp(), jax.random.normal(KEY, (6, 3))
    loss = lambda x0, ids=None: losses.simple(KEY, schedule, lambda x, t: x * t[:, None], x0, ids=ids)  # noqa: E731
    whole = loss(x0)
    np.testing.assert_array_equal(loss(x0[4:5], jnp.array([4])), whole[4:5])
    np.testing.assert_array_equal(loss(x0[::-1], jnp.arange(6)[::-1]), whole[::-1])
    assert len(np.unique(whole)) == 6
    np.testing.assert_allclose(jax.jit(loss)(x0), whole, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_are_right_under_jit_and_vmap_and_finite_at_both_ends(name, prediction):
    """At t = 0, where sigma may be 0, and at t = 1, where alpha may be 0."""
    schedule, x0, t = SCHEDULES[name], data(4, 3), jnp.array([0.0, 0.3, 0.9, 1.0])

    def loss(w, t):
        return losses.simple(KEY, schedule, lambda x, t: w * x * (1 + t[:, None]), x0, prediction, t=t)

    gradient = jax.jit(jax.vmap(jax.jacobian(loss), (0, None)))(jnp.array([0.2, 0.5]), t)
    assert gradient.shape == (2, 4)
    assert np.isfinite(gradient).all()
    finite_difference = (loss(0.51, t) - loss(0.49, t)) / 0.02
    # relative to the loss, of which float32 keeps seven digits, while the difference is divided by 0.02
    np.testing.assert_allclose(gradient[1], finite_difference, rtol=1e-2, atol=1e-4 * float(loss(0.5, t).max()))


def test_drawn_times_leave_weights_finite_where_the_ends_would_not(monkeypatch):
    """A draw of exactly 0 from [0, 1), about one in 8 million, where eps's error is infinitely much of x0's."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(): jnp.zeros(shape))
    simple = lambda t: losses.simple(KEY, WHOLE, zeros, data(2, 3), "x0", t=t, weighting=weightings.uniform("eps"))  # noqa: E731
    assert np.isinf(simple(0.0)).all()
    assert np.isfinite(simple(None)).all()


def test_times_out_of_range_are_refused_or_nan():
    schedule, x0 = continuous.cosine(), jnp.zeros((3, 2))
    for t in (1.5, -0.1, np.nan, np.array([0.5, 2, 0])):
        with pytest.raises(ValueError, match="t: expected 0 to 1, received"):
            losses.simple(KEY, schedule, zeros, x0, t=t)
    loss = jax.jit(lambda t: losses.simple(KEY, schedule, lambda x, t: x, x0, t=t))(jnp.array([0.5, 1.5, -0.1]))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True])


def test_what_needs_steps_is_refused_by_name():
    schedule, x0 = continuous.cosine(), jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="schedule: expected one with a number of steps for the prediction 'mean', received"):
        losses.simple(KEY, schedule, zeros, x0, "mean")
    for loss in (losses.vlb, losses.hybrid):
        with pytest.raises(ValueError, match="schedule: expected one with a number of steps for the bound, received one in"):
            loss(KEY, schedule, zeros, x0)
    with pytest.raises(ValueError, match="num_steps: expected a number of steps for importance sampling, received None"):
        losses.timesteps.empty_history(None)


def test_the_loss_of_flow_matching_at_its_optimum():
    """N(0, 1) data: E |u - u*|^2 is 1 / ((1 - t)^2 + t^2), whose mean over uniform t is pi / 2; 4 standard errors."""
    flow, x0 = schedules.flow(), jax.random.normal(jax.random.key(1), (40_000, 4))

    def best(x_t, t):
        alpha, sigma = (a[:, None] for a in flow.level(t)[1:])
        return (sigma - alpha) / (alpha**2 + sigma**2) * x_t

    for t in (None, 0.0, 0.1, 0.5, 0.8, 1.0):
        loss = np.asarray(losses.simple(KEY, flow, best, x0, "flow", t=t), np.float64)
        expected = np.pi / 2 if t is None else 1 / ((1 - t) ** 2 + t**2)
        assert abs(loss.mean() - expected) < 4 * loss.std() / 200
