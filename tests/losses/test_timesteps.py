import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.losses import timesteps

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
