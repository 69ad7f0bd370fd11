import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ddpm_jax.training import ema

RATES = {
    "exponential": ema.exponential(0.999),
    "warm": ema.exponential(0.999, warmup=True),
    "half-life": ema.half_life(500.0, batch_size=64),
    "power": ema.power(0.1),
    "mean": ema.power(ema.MAX_WIDTH),
}


def track(rate, values):
    """The average after each update, for values [N, D]."""

    def step(average, at):
        n, value = at
        average = ema.update(average, value, n, rate)
        return average, average

    start = jnp.full(values.shape[1:], 5.0)
    return jax.lax.scan(step, start, (jnp.arange(len(values)), jnp.asarray(values, jnp.float32)))[1]


@pytest.mark.parametrize("name", RATES)
def test_the_first_update_is_a_copy(name):
    assert ema.update(jnp.float32(5.1), jnp.float32(0.7), jnp.int32(0), RATES[name]) == jnp.float32(0.7)


@pytest.mark.parametrize("name", RATES)
def test_the_average_of_a_constant_is_the_constant(name):
    values = np.full((300, 1), 0.7)
    np.testing.assert_array_equal(track(RATES[name], values), jnp.asarray(values, jnp.float32))


def test_exponential_is_the_weighted_sum_of_all_parameters():
    """ema_n = d^n p_0 + (1 - d) sum_k d^(n-k) p_k."""
    p = np.random.default_rng(0).normal(size=(20, 1))
    weights = 0.1 * 0.9 ** np.arange(19, -1, -1)
    weights[0] = 0.9**19
    np.testing.assert_allclose(track(ema.exponential(0.9), p)[-1], weights @ p, rtol=1e-5)


def test_warm_up_forgets_the_start_and_ends_at_the_decay():
    values = np.ones((200, 1))
    values[0] = 0
    assert track(ema.exponential(0.9999), values)[-1] < 0.03
    assert track(ema.exponential(0.9999, warmup=True), values)[-1] > 0.999
    late = [ema.exponential(0.9999, warmup)(jnp.int32(10**7)) for warmup in (True, False)]
    assert late[0] == late[1]


def test_a_half_life_is_independent_of_the_batch_size():
    """After a first update and k half-lives of 512 images, the average of a unit step is 1 - 2^-k, for k up to 12."""
    for batch_size in (64, 128):
        values = np.ones((1 + 12 * 512 // batch_size, 1))
        values[0] = 0
        found = track(ema.half_life(512.0, batch_size), values)
        np.testing.assert_allclose(1 - found[512 // batch_size :: 512 // batch_size, 0], 0.5 ** np.arange(1.0, 13), rtol=2e-3)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25, ema.MAX_WIDTH])
def test_power_functions_have_the_right_width_and_weights(width):
    """The weights of a float64 recursion; their standard deviation is sigma_rel times the length of the run."""
    num_steps = 2000
    found = track(ema.power(width), np.eye(num_steps)[:, ::40])[-1]
    weights = oracles.power_weights(num_steps, num_steps, width)
    np.testing.assert_allclose(found, weights[::40], rtol=2e-4, atol=1e-9)
    k = np.arange(num_steps) + 0.5
    spread = np.sqrt(weights @ k**2 - (weights @ k) ** 2) / num_steps
    np.testing.assert_allclose(spread, width, rtol=1e-3)


def test_the_maximum_width_is_the_mean():
    values = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(track(ema.power(ema.MAX_WIDTH), values)[-1], values.mean(axis=0), atol=1e-6)


def snapshots(every, num_steps, widths):
    return [(n, width) for n in range(every, num_steps + 1, every) for width in widths]


@pytest.mark.parametrize("width", [0.03, 0.075, 0.15, 0.2])
def test_a_reconstruction_is_the_best_possible_from_its_snapshots(width):
    """Compared with numpy's least squares on whole profiles in float64; 24 snapshots of two widths are within 3 %."""
    num_steps, kept = 1920, snapshots(80, 1920, (0.05, 0.1))
    profiles = np.stack([oracles.power_weights(n, num_steps, w) for n, w in kept], axis=1)
    wanted = oracles.power_weights(num_steps, num_steps, width)
    best = profiles @ np.linalg.lstsq(profiles, wanted, rcond=None)[0]
    found = profiles @ ema.coefficients(*zip(*kept, strict=True), num_steps, width)
    error = lambda made: np.linalg.norm(made - wanted) / np.linalg.norm(wanted)  # noqa: E731
    assert error(found) < 1.02 * error(best) + 1e-4
    assert error(found) < 0.03
    assert abs(found.sum() - 1) < 1e-6


def test_a_reconstruction_of_parameters_matches_the_tracked_average():
    """A random walk of parameters, reconstructed at three widths and compared with averages tracked at those widths."""
    num_steps, rng = 1920, np.random.default_rng(0)
    values = 1 + rng.normal(size=(num_steps, 50)).cumsum(axis=0) / num_steps**0.5
    tracked = {width: np.asarray(track(ema.power(width), values), np.float64) for width in (0.05, 0.075, 0.1, 0.15, 0.2)}
    kept = snapshots(60, num_steps, (0.05, 0.1))
    for width in (0.075, 0.15, 0.2):
        weights = ema.coefficients(*zip(*kept, strict=True), num_steps, width)
        made = sum(c * tracked[w][n - 1] for c, (n, w) in zip(weights, kept, strict=True))
        error = np.abs(made - tracked[width][-1]).max()
        assert error < 2e-3, (width, error)
        assert np.abs(tracked[0.1][-1] - tracked[width][-1]).max() > 20 * error, "no stored average would pass"


def test_a_reconstruction_of_a_stored_average_is_that_average():
    kept = snapshots(100, 800, (0.05, 0.1))
    for n, width in kept:
        weights = ema.coefficients(*zip(*kept, strict=True), n, width)
        np.testing.assert_allclose(weights, [float((n, width) == one) for one in kept], atol=1e-6)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.289, float("nan")])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(ValueError, match=r"width: expected above 0 and at most 0\.2887"):
        ema.power(width)


@pytest.mark.parametrize("num_images", [0.0, -1.0, float("inf"), float("nan")])
def test_half_lives_out_of_range_are_refused(num_images):
    with pytest.raises(ValueError, match="half_life: expected a positive number of images"):
        ema.half_life(num_images, 1)


def test_a_reconstruction_needs_a_snapshot():
    with pytest.raises(ValueError, match="expected at least one snapshot"):
        ema.coefficients([], [], 10, 0.1)
