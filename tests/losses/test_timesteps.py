import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import schedules
from ddpm_jax.losses import timesteps
from ddpm_jax.schedules import continuous

KEY = jax.random.key(0)


def test_stratified_times_are_spread_evenly_and_each_is_uniform():
    """In one batch every tenth of the times has its share; over 2,000 keys one example visits all alike."""
    t = np.asarray(timesteps.stratified(KEY, 1000, jnp.arange(500), 500))
    counts = np.histogram(t, 10, (0, 1000))[0]
    assert np.abs(counts - 50).max() <= 1
    draw = jax.vmap(lambda key: timesteps.stratified(key, 10, jnp.array([3]), 8)[0])
    counts = np.bincount(draw(jax.random.split(KEY, 2000)), minlength=10)
    assert np.abs(counts - 200).max() < 4 * np.sqrt(2000 * 0.1 * 0.9)


@pytest.mark.parametrize("num_steps", [1000, None], ids=["discrete", "continuous"])
@pytest.mark.parametrize("draw", [timesteps.uniform, lambda key, n, ids: timesteps.stratified(key, n, ids, 64)])
def test_an_example_keeps_its_time_in_any_batch(draw, num_steps):
    whole = draw(KEY, num_steps, jnp.arange(64))
    np.testing.assert_array_equal(draw(KEY, num_steps, jnp.array([40, 7])), whole[jnp.array([40, 7])])
    assert not np.array_equal(whole, draw(jax.random.key(1), num_steps, jnp.arange(64)))


def test_stratified_real_times_are_evenly_spread_too():
    """Neighbours of a batch of 500 lie 1/500 apart; over 2,000 keys one example visits all tenths alike."""
    t = np.sort(timesteps.stratified(KEY, None, jnp.arange(500), 500))
    np.testing.assert_allclose(np.diff(t), 1 / 500, atol=1e-6)
    draw = jax.vmap(lambda key: timesteps.stratified(key, None, jnp.array([3]), 8)[0])
    counts = np.histogram(draw(jax.random.split(KEY, 2000)), 10, (0, 1))[0]
    assert np.abs(counts - 200).max() < 4 * np.sqrt(2000 * 0.1 * 0.9)


def filled(losses):
    """A history in which every time has ten equal losses."""
    history = timesteps.empty_history(len(losses))
    t = jnp.repeat(jnp.arange(len(losses)), timesteps.HISTORY)
    return timesteps.remember(history, t, jnp.repeat(jnp.asarray(losses), timesteps.HISTORY))


def test_importance_is_uniform_until_all_times_are_known():
    history = timesteps.remember(timesteps.empty_history(4), jnp.array([0, 0, 1]), jnp.array([9.0, 9.0, 1.0]))
    np.testing.assert_allclose(timesteps.probabilities(history), 0.25)
    t, weight = timesteps.importance(KEY, history, jnp.arange(100))
    np.testing.assert_allclose(weight, 1)
    assert set(np.asarray(t)) == {0, 1, 2, 3}


def test_importance_goes_where_the_loss_is_and_keeps_the_expectation():
    """20,000 draws of losses 1, 2, 3, 4: p is proportional to them, and weighted losses all are the mean."""
    losses = np.array([1.0, 2.0, 3.0, 4.0])
    t, weight = timesteps.importance(KEY, filled(losses), jnp.arange(20_000))
    share = np.bincount(t, minlength=4) / 20_000
    np.testing.assert_allclose(share, losses / 10, atol=4 * 0.5 / np.sqrt(20_000) + 0.001)
    np.testing.assert_allclose(losses[np.asarray(t)] * weight, 2.5, rtol=0.01)
    flat = timesteps.probabilities(filled(losses), uniform_share=1.0)
    np.testing.assert_allclose(flat, 0.25)


def test_losses_that_are_all_zero_are_drawn_alike():
    np.testing.assert_allclose(timesteps.probabilities(filled(np.zeros(4))), 0.25)


def test_the_history_is_that_of_one_loss_after_the_other():
    """Batches of 25 losses at 3 times, more than ten at once of some, against a list for each time."""
    rng = np.random.default_rng(0)
    history, lists = timesteps.empty_history(3), [[], [], []]
    for _ in range(5):
        t, losses = rng.choice(3, 25, p=[0.7, 0.25, 0.05]), rng.random(25)
        history = jax.jit(timesteps.remember)(history, jnp.asarray(t), jnp.asarray(losses))
        for time, loss in zip(t, losses, strict=True):
            lists[time].append(loss)
    for time in range(3):
        ours = np.asarray(history.losses[time])[: min(len(lists[time]), 10)]
        np.testing.assert_allclose(np.sort(ours), np.sort(lists[time][-10:]), rtol=1e-6)
    np.testing.assert_array_equal(history.seen, [len(each) for each in lists])


CONTINUOUS = {
    "flow": schedules.flow(),
    "flow, shift 3": schedules.flow(3.0),
    "cosine": continuous.cosine(),
    "linear": continuous.linear_vp(),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_normal_noise_levels_have_their_moments(name):
    """10,000 draws with EDM's mean and standard deviation, within 4 standard errors."""
    schedule, mean, std, num = CONTINUOUS[name], -1.2, 1.2, 10_000
    t = timesteps.log_normal(KEY, schedule, jnp.arange(num), mean, std)
    log_rho = -np.asarray(schedule.level(t).log_snr) / 2
    assert abs(log_rho.mean() - mean) < 4 * std / np.sqrt(num)
    assert abs(log_rho.var() - std**2) < 4 * std**2 * np.sqrt(2 / num)


def test_log_normal_is_logit_normal_in_the_time_of_flow_matching():
    """Quartiles of logit-normal(0.5, 0.8), of 10,000 draws; the shift k moves the logit of t by -log k."""
    t = timesteps.log_normal(KEY, schedules.flow(), jnp.arange(10_000), 0.5, 0.8)
    quartiles = 1 / (1 + np.exp(-(0.5 + 0.8 * np.array([-0.6744898, 0.0, 0.6744898]))))
    below = np.mean(np.asarray(t)[:, None] < quartiles, axis=0)
    np.testing.assert_allclose(below, [0.25, 0.5, 0.75], atol=4 * 0.5 / np.sqrt(10_000))
    shifted = timesteps.log_normal(KEY, schedules.flow(3.0), jnp.arange(100), 0.5, 0.8)
    logit = lambda t: np.log(t / (1 - t))  # noqa: E731
    np.testing.assert_allclose(logit(shifted), logit(t[:100]) - np.log(3), atol=1e-5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_normal_times_stay_within_the_schedule(name):
    """Standard deviation 50, compiled and not: most levels lie beyond the schedule's, or beyond float32."""
    draw = lambda: timesteps.log_normal(KEY, CONTINUOUS[name], jnp.arange(1000), 0.0, 50.0)  # noqa: E731
    for t in (draw(), jax.jit(draw)()):
        assert np.all((t > 0) & (t < 1))
        assert np.mean(t < 1e-3) > 0.3 and np.mean(t > 0.99) > 0.3


def test_a_log_normal_time_depends_on_key_and_id_alone():
    draw = lambda key, ids: timesteps.log_normal(key, schedules.flow(), jnp.asarray(ids), -1.2, 1.2)  # noqa: E731
    whole = draw(KEY, range(64))
    np.testing.assert_array_equal(draw(KEY, [40, 7]), whole[jnp.array([40, 7])])
    np.testing.assert_allclose(jax.jit(draw)(KEY, [40, 7]), whole[jnp.array([40, 7])], rtol=1e-6)
    assert len(np.unique(whole)) == 64 and not np.array_equal(whole, draw(jax.random.key(1), range(64)))


def test_log_normal_refuses_bad_input():
    for std in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="std: expected a finite number above 0"):
            timesteps.log_normal(KEY, schedules.flow(), jnp.arange(4), 0.0, std)
    with pytest.raises(ValueError, match="mean: expected a finite number"):
        timesteps.log_normal(KEY, schedules.flow(), jnp.arange(4), np.inf, 1.0)
    with pytest.raises(ValueError, match="schedule: expected one in continuous time"):
        timesteps.log_normal(KEY, schedules.linear(1000), jnp.arange(4), 0.0, 1.0)
    with pytest.raises(TypeError, match="schedule"):
        timesteps.log_normal(KEY, schedules.flow, jnp.arange(4), 0.0, 1.0)
