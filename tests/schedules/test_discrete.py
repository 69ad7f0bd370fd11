import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import schedules

LINEAR = schedules.linear(1000)


@pytest.mark.parametrize(("x64", "rtol"), [(True, 1e-9), (False, 1e-7)])
def test_linear_has_the_papers_values(x64, rtol):
    """Recomputed in float64 from beta = linspace(1e-4, 0.02, 1000), Ho et al. 2020."""
    with jax.enable_x64(x64):
        linear = schedules.linear(1000)
    alpha_bar = np.asarray(linear.alpha_bar)
    np.testing.assert_allclose(alpha_bar[[0, 499, 999]], [0.9999, 0.0785872429, 4.0358297654e-5], rtol=rtol)
    log_snr = 2 * np.log(np.asarray(linear.alpha) / np.asarray(linear.sigma))
    np.testing.assert_allclose(log_snr[[0, -1]], [9.2102404, -10.1176732], rtol=max(rtol, 1e-8))


def test_cosine_has_the_papers_values():
    """Recomputed in float64 from Eq. 17 of Nichol & Dhariwal 2021."""
    cosine = schedules.cosine(1000)
    np.testing.assert_allclose(np.asarray(cosine.beta)[[0, -1]], [4.128422e-5, 0.999], rtol=1e-6)
    np.testing.assert_allclose(cosine.alpha_bar[0], 0.9999587158, rtol=1e-7)


@pytest.mark.parametrize(("make", "num_steps"), [(schedules.linear, 1000), (schedules.cosine, 50), (schedules.linear, 1)])
def test_tables_are_computed_in_float64(make, num_steps):
    with jax.enable_x64(True):
        schedule = make(num_steps)
    for table, stored in zip(schedule, make(num_steps), strict=True):
        assert table.dtype == np.float64
        assert table.shape == (num_steps,)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, np.asarray(table).astype(np.float32))
    schedule = schedules.Schedule(*map(np.asarray, schedule))
    np.testing.assert_allclose(schedule.alpha_bar, np.cumprod(1 - schedule.beta), rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha**2, schedule.alpha_bar, rtol=1e-14)
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=1e-14)


def test_one_more_step_of_noise_gives_the_next_level():
    """q(x_s), then q(x_t | x_s) = N(sqrt(1 - beta) x_s, beta), is q(x_t): the variances add up."""
    with jax.enable_x64(True):
        beta, _, alpha, sigma = map(np.asarray, schedules.linear(1000))
    keep = np.sqrt(1 - beta[1:])
    np.testing.assert_allclose(keep * alpha[:-1], alpha[1:], rtol=1e-12)
    np.testing.assert_allclose(keep**2 * sigma[:-1] ** 2 + beta[1:], sigma[1:] ** 2, rtol=1e-12)


def test_sigma_is_exact_in_float32_near_the_data():
    """sqrt(1 - alpha_bar) in float32 is off by 8e-5 of itself at t = 0; the table by no more than rounding."""
    assert float(LINEAR.level(0).sigma) == np.float32(0.01)
    assert float(jnp.sqrt(1 - jnp.float32(LINEAR.alpha_bar[0]))) > 0.01 * (1 + 5e-5)


def test_level_reads_the_tables():
    t = jnp.array([[0, 499], [998, 999]])
    level = jax.jit(LINEAR.level)(t)
    np.testing.assert_allclose(level.alpha, LINEAR.alpha[np.asarray(t)], rtol=1e-6)
    np.testing.assert_allclose(level.sigma, LINEAR.sigma[np.asarray(t)], rtol=1e-6)
    np.testing.assert_array_equal(level.t, t)


@pytest.mark.parametrize("t", [-1, 1000, np.array([3, 1000]), jnp.array([-1])])
def test_level_refuses_times_out_of_range(t):
    with pytest.raises(ValueError, match=r"0\.\.999"):
        LINEAR.level(t)


@pytest.mark.parametrize("t", [0.5, 3.0, np.zeros(2), True])
def test_level_refuses_times_that_are_not_integers(t):
    with pytest.raises(TypeError, match="integers"):
        LINEAR.level(t)


def test_a_traced_time_out_of_range_gives_nan_never_a_neighbour():
    level = jax.jit(LINEAR.level)(jnp.array([-1, 0, 999, 1000]))
    np.testing.assert_array_equal(np.isnan(level.alpha), [True, False, False, True])
    np.testing.assert_array_equal(np.isnan(level.sigma), [True, False, False, True])


def test_tables_take_traced_times_and_can_be_made_in_a_compiled_function():
    read = jax.jit(lambda t: schedules.linear(1000).alpha[t] + LINEAR.alpha[t])
    np.testing.assert_allclose(read(jnp.array([7])), 2 * LINEAR.alpha[7:8])


def test_a_schedule_can_be_an_argument_of_a_compiled_function():
    sigma = jax.jit(lambda schedule, t: schedule.level(t).sigma)(LINEAR, jnp.array([5]))
    np.testing.assert_allclose(sigma, LINEAR.sigma[5:6], rtol=1e-6)


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0, 0.1], [0.1, 1.0], [0.1, np.nan], 0.1])
def test_from_betas_refuses_what_is_no_schedule(betas):
    with pytest.raises(ValueError, match="betas"):
        schedules.from_betas(betas)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_a_schedule_has_steps(make):
    with pytest.raises(ValueError, match="num_steps"):
        make(0)


def test_level_at_finds_the_schedules_own_levels_and_those_between():
    own = LINEAR.level_at(LINEAR.log_snr)
    np.testing.assert_allclose(own.t, np.arange(1000), atol=1e-6)
    np.testing.assert_allclose(own.alpha, LINEAR.alpha, rtol=1e-6)
    np.testing.assert_allclose(own.sigma, LINEAR.sigma, rtol=1e-6)
    between = LINEAR.level_at(np.mean(LINEAR.log_snr[10:12]))
    np.testing.assert_allclose(between.t, 10.5, rtol=1e-6)
    np.testing.assert_allclose(between.alpha**2 / between.sigma**2, np.exp(np.mean(LINEAR.log_snr[10:12])), rtol=1e-9)
    assert LINEAR.level_at(np.inf) == (0, 1, 0)


def test_level_at_refuses_what_the_schedule_does_not_reach():
    with pytest.raises(ValueError, match=r"log_snr: expected -10\.1177 to 9\.21024"):
        LINEAR.level_at(12.0)
    t, alpha, _ = jax.jit(LINEAR.level_at)(jnp.array([12.0, 0.0, -11.0, jnp.inf]))
    np.testing.assert_array_equal(np.isnan(t), [True, False, True, False])
    assert not np.isnan(alpha).any()


FAMILY = {
    "linear": schedules.linear(100, 1e-3, 0.2),
    "quadratic": schedules.quadratic(100, 1e-3, 0.2),
    "constant": schedules.constant(100),
    "warmup": schedules.warmup(100, 0.5, 1e-3, 0.2),
    "jsd": schedules.jsd(100),
    "cosine": schedules.cosine(100),
    "sigmoid": schedules.sigmoid(100),
    "zero terminal SNR": schedules.zero_terminal_snr(schedules.linear(100, 1e-3, 0.2)),
    "from_log_snr": schedules.from_log_snr(np.linspace(9, -9, 100)),
}


@pytest.mark.parametrize("name", FAMILY)
def test_every_table_agrees_with_the_betas(name):
    schedule = FAMILY[name]
    alpha_bar = np.cumprod(1 - np.asarray(schedule.beta, np.float64))
    np.testing.assert_allclose(schedule.alpha_bar, alpha_bar, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(schedule.alpha, np.sqrt(alpha_bar), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(schedule.sigma, np.sqrt(1 - alpha_bar), rtol=1e-5)
    assert np.all(np.diff(schedule.log_snr) < 0)
    assert schedule.num_steps == 100


def test_the_authors_other_betas():
    """Each from the description of its name in the code of Ho et al. 2020."""
    np.testing.assert_allclose(np.sqrt(schedules.quadratic(3, 0.01, 0.09).beta), [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(schedules.constant(3, 0.02).beta, [0.02] * 3, rtol=1e-6)
    np.testing.assert_allclose(schedules.warmup(10, 0.5, 0.1, 0.5).beta, [0.1, 0.2, 0.3, 0.4] + [0.5] * 6, rtol=1e-6)
    np.testing.assert_allclose(schedules.jsd(4).beta, [1 / 4, 1 / 3, 1 / 2, 1], rtol=1e-6)
    np.testing.assert_allclose(schedules.jsd(4).alpha_bar, [3 / 4, 2 / 4, 1 / 4, 0], rtol=1e-6)


def test_sigmoid_is_symmetric_and_starts_and_ends_slowly():
    alpha_bar = np.asarray(schedules.sigmoid(1000).alpha_bar)
    np.testing.assert_allclose(alpha_bar[499], 0.5, atol=1e-6)
    np.testing.assert_allclose(alpha_bar[:499] + alpha_bar[499:998][::-1], 1, atol=2e-3)
    middle, start = alpha_bar[450] - alpha_bar[550], alpha_bar[0] - alpha_bar[100]
    assert middle > 3 * start


def test_zero_terminal_snr_keeps_the_start_and_ends_without_signal():
    schedule = schedules.zero_terminal_snr(LINEAR)
    np.testing.assert_allclose(schedule.alpha[0], LINEAR.alpha[0], rtol=1e-7)
    assert schedule.alpha[-1] == 0
    assert schedule.sigma[-1] == 1
    assert schedule.beta[-1] == 1
    kept = np.asarray(schedule.alpha)[:-1] / np.asarray(LINEAR.alpha - LINEAR.alpha[-1])[:-1]
    np.testing.assert_allclose(kept, kept[0], rtol=1e-4), "a shift and a scale of alpha, nothing else"
    assert schedule.level_at(-np.inf).t == 999


def test_steps_from_log_snr_have_it():
    log_snr = np.linspace(14, -14, 57)
    schedule = schedules.from_log_snr(log_snr)
    np.testing.assert_allclose(schedule.log_snr, log_snr, atol=1e-6)
    assert schedules.from_log_snr([3.0, -np.inf]).alpha[-1] == 0


@pytest.mark.parametrize("make", [schedules.quadratic, schedules.constant, schedules.warmup, schedules.jsd, schedules.sigmoid])
def test_a_schedule_without_steps_is_refused(make):
    with pytest.raises(ValueError, match="num_steps: expected at least 1, received 0"):
        make(0)


def test_schedules_out_of_range_are_refused():
    with pytest.raises(ValueError, match="each below the one before"):
        schedules.from_log_snr([1.0, 2.0])
    with pytest.raises(ValueError, match="each below the one before"):
        schedules.from_log_snr([np.inf, 2.0])
    with pytest.raises(ValueError, match="one dimension"):
        schedules.from_log_snr([[1.0]])
    with pytest.raises(ValueError, match="betas"):
        schedules.constant(10, 1.0)
    with pytest.raises(ValueError, match="fraction"):
        schedules.warmup(10, 1.5)
    with pytest.raises(ValueError, match="start < end"):
        schedules.sigmoid(10, 3.0, -3.0)
    with pytest.raises(ValueError, match="2 steps"):
        schedules.zero_terminal_snr(schedules.linear(1))
