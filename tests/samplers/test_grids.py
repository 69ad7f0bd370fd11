import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ddpm_jax import diffusion, samplers, schedules
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level, continuous

pytestmark = pytest.mark.filterwarnings("ignore:prediction. expected v, flow or x0")  # eps on the whole cosine, in closed form
SCHEDULE = schedules.linear(1000)
WHOLE = continuous.cosine(-np.inf, np.inf)
"""alpha = cos(pi t / 2), from clean data to pure noise."""


@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("leading", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("quadratic", [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]),
    ],
)
def test_ten_of_a_thousand(spacing, times):
    """Those of DDIM's code (leading, quadratic) and of Table 2 of Lin et al. 2023 (linspace, trailing)."""
    levels = grids.spaced(SCHEDULE, 10, spacing)
    np.testing.assert_array_equal(levels.t, [*times, 0])
    np.testing.assert_array_equal(levels.alpha, [*np.asarray(SCHEDULE.alpha)[times], 1])
    np.testing.assert_array_equal(levels.sigma, [*np.asarray(SCHEDULE.sigma)[times], 0])


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_all_steps_are_the_schedule_itself(spacing):
    np.testing.assert_array_equal(grids.spaced(SCHEDULE, spacing=spacing).t, [*range(999, -1, -1), 0])


@pytest.mark.parametrize("spacing", grids.SPACINGS)
def test_every_grid_falls_within_the_schedule_without_repeats(spacing):
    for num_steps in range(1, 1001):
        t = grids.spaced(SCHEDULE, num_steps, spacing).t[:-1]
        assert np.all(np.diff(t) < 0)
        assert 0 <= t[-1] <= t[0] <= 999
        assert len(t) == num_steps or spacing == "quadratic"
        assert t[0] == 999 or spacing in ("leading", "quadratic")


@pytest.mark.parametrize(
    ("num_steps", "first"), [(5, 800), (30, 957), (90, 979), (250, 996), (334, 997), (501, 998), (600, 998), (999, 998)]
)
def test_leading_steps_start_at_the_noise_also_if_they_do_not_divide_the_schedule(num_steps, first):
    """DDIM's and diffusers' stride T // N, unless that leaves more than two strides above it, as 334, 501 and 600 would."""
    t = grids.spaced(SCHEDULE, num_steps).t[:-1]
    assert (len(t), t[0], t[-1]) == (num_steps, first, 0)
    if num_steps in (5, 30, 90, 250, 999):
        np.testing.assert_array_equal(t[::-1], np.arange(num_steps) * (1000 // num_steps))
    assert np.ptp(np.diff(t)) <= 1


@pytest.mark.parametrize("total", [*range(1, 40), 101])
def test_leading_steps_of_any_schedule_reach_its_last_two_strides(total):
    schedule = schedules.constant(total)
    for num_steps in range(1, total + 1):
        t = grids.spaced(schedule, num_steps).t[:-1]
        assert len(t) == num_steps
        assert t[0] >= total - 2 * (total // num_steps) - 1


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(num_steps):
    with pytest.raises(ValueError, match="1 to 1000"):
        grids.spaced(SCHEDULE, num_steps)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="spacing"):
        grids.spaced(SCHEDULE, 10, "even")


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("leading", [1, 0.75, 0.5, 0.25]),
        ("linspace", [1, 0.75, 0.5, 0.25]),
        ("trailing", [1, 0.75, 0.5, 0.25]),
        ("quadratic", [1, 0.5625, 0.25, 0.0625]),
    ],
)
def test_four_steps_in_continuous_time(spacing, times, clean):
    """Without the clean level they end at the schedule's t = 0, log_snr = 15."""
    levels = grids.spaced(continuous.cosine(), 4, spacing, clean)
    np.testing.assert_array_equal(levels.t, [*times, 0])
    np.testing.assert_allclose(levels.alpha[[0, -1]] ** 2, [1 / (1 + np.exp(15)), 1 if clean else 1 / (1 + np.exp(-15))])
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1)
    assert np.all(np.diff(levels.alpha) > 0)
    assert (levels.sigma[-1] == 0) == clean
    assert all(type(a) is np.ndarray for a in levels)


def test_continuous_time_has_a_hundred_steps_by_default():
    assert len(grids.spaced(continuous.cosine()).t) == 101
    assert len(grids.spaced(continuous.cosine(), 5000).t) == 5001
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="num_steps: expected at least 1"):
            grids.spaced(continuous.cosine(), wrong)
    with pytest.raises(ValueError, match="spacing"):
        grids.spaced(continuous.cosine(), 10, "even")


def test_explicit_times_in_continuous_time():
    levels = grids.at(WHOLE, [0.5, 0.2])
    np.testing.assert_array_equal(levels.t, [0.5, 0.2, 0])
    np.testing.assert_allclose(levels.alpha, [np.sqrt(0.5), np.cos(0.1 * np.pi), 1])
    with pytest.raises(ValueError, match="t: expected 0 to 1"):
        grids.at(WHOLE, [1.5, 0.2])
    with pytest.raises(ValueError, match="a number of steps for a Runge-Kutta start"):
        grids.runge_kutta_start(WHOLE, np.array([0.9, 0.6, 0.3, 0.1]))


DATA = (np.ones(1), np.array([0.5]), np.array([0.04]))


def exact(schedule):
    """The Denoise of an exact network for N(0.5, 0.04) data, which gets the noise level from t alone."""

    def predict(x, t):
        level = schedule.level(t)
        return diffusion.eps_from_x0(
            level, x, oracles.posterior_mean(x, level.alpha[:, None], level.sigma[:, None], *DATA, xp=jnp)
        )

    return make_denoise(schedule, predict, clip=False)


@pytest.mark.parametrize(
    ("sampler", "levels"),
    [
        (samplers.ddim(), grids.spaced(continuous.cosine(), 1000)),
        (samplers.dpm_solver_pp(), grids.spaced(continuous.cosine(), 100, "quadratic")),
        (samplers.dpm_solver_pp(), grids.uniform_log_snr(continuous.cosine(), 50)),
    ],
    ids=["ddim", "dpm_solver_pp", "dpm_solver_pp, log_snr"],
)
def test_samples_in_continuous_time_have_the_moments_of_the_data(sampler, levels):
    """40,000 samples; the grids are fine enough for a discretization error below 1 % of the variance."""
    denoise = exact(continuous.cosine())
    x = np.asarray(
        jax.jit(lambda key: samplers.sample(key, sampler, denoise, levels, (40_000,)))(jax.random.key(0)), np.float64
    )
    assert abs(x.mean() - 0.5) < 4 * 0.2 / 200
    assert abs(x.var() / 0.04 - 1) < 4 * np.sqrt(2 / 40_000) + 0.01


@pytest.mark.parametrize("schedule", [continuous.linear_vp(), WHOLE], ids=["linear_vp", "whole cosine"])
def test_ancestral_samples_in_continuous_time_have_the_moments_of_ten_steps(schedule):
    """Both schedules are clean at t = 0, and the cosine has no signal at t = 1."""
    levels = grids.spaced(schedule, 10)
    sampler, denoise = samplers.ddpm("fixed_small"), exact(schedule)
    mean, var = oracles.ancestral_moments(levels.alpha, levels.sigma, 0.5, 0.04, "fixed_small")
    x = np.asarray(
        jax.jit(lambda key: samplers.sample(key, sampler, denoise, levels, (40_000,)))(jax.random.key(0)), np.float64
    )
    assert abs(x.mean() - mean) < 4 * np.sqrt(var / 40_000)
    assert abs(x.var() / var - 1) < 4 * np.sqrt(2 / 40_000)


def test_explicit_times():
    np.testing.assert_array_equal(grids.at(SCHEDULE, [500, 20]).t, [500, 20, 0])
    for wrong in ([], [[1]], [1000], [-1]):
        with pytest.raises(ValueError, match="t: expected"):
            grids.at(SCHEDULE, np.array(wrong, np.int32))
    with pytest.raises(TypeError):
        grids.at(SCHEDULE, np.array([0.5]))
    np.testing.assert_array_equal(grids.at(SCHEDULE, [500, 20], clean=False).t, [500, 20])
    with pytest.raises(ValueError, match="at least 2"):
        grids.at(SCHEDULE, [500], clean=False)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_a_grid_may_end_at_its_last_level(spacing):
    levels = grids.spaced(SCHEDULE, 10, spacing, clean=False)
    np.testing.assert_array_equal(levels.t, grids.spaced(SCHEDULE, 11, spacing).t[:-1])
    assert len(levels.t) == 11
    assert levels.sigma[-1] > 0
    assert len(grids.spaced(SCHEDULE, clean=False).t) == 1000
    with pytest.raises(ValueError, match="1 to 999"):
        grids.spaced(SCHEDULE, 1000, clean=False)


def log_snr(levels):
    return 2 * np.log(levels.alpha / levels.sigma)


ENDS = (float(SCHEDULE.log_snr[-1]), float(SCHEDULE.log_snr[0]))


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("schedule", [SCHEDULE, WHOLE], ids=["discrete", "continuous"])
def test_spacings_in_log_snr(schedule, clean):
    uniform = grids.uniform_log_snr(schedule, 9, ENDS, clean)
    karras, edm = grids.karras(schedule, 9, 7.0, ENDS, clean), grids.karras(schedule, 9, 1.0, ENDS, clean)
    power = grids.exponential(schedule, 9, 2.0, ENDS, clean)
    for levels in (uniform, karras, edm, power):
        assert len(levels.alpha) == 10
        assert (levels.sigma[-1] == 0) == clean
        noisy = Level(*(a[: len(a) - clean] for a in levels))
        np.testing.assert_allclose(log_snr(noisy)[[0, -1]], ENDS, rtol=1e-9)
        np.testing.assert_allclose(noisy.alpha**2 + noisy.sigma**2, 1, rtol=1e-12)
        assert np.all(np.diff(noisy.t) < 0)
    noisy = slice(0, 10 - clean)
    np.testing.assert_allclose(np.diff(np.diff(log_snr(Level(*(a[noisy] for a in uniform))))), 0, atol=1e-9)
    rho = lambda levels: (levels.sigma / levels.alpha)[noisy]  # noqa: E731
    np.testing.assert_allclose(np.diff(np.diff(rho(karras) ** (1 / 7))), 0, atol=1e-9)
    np.testing.assert_allclose(np.diff(np.diff(rho(edm))), 0, atol=1e-9)
    np.testing.assert_allclose(np.diff(np.diff(np.sqrt(np.log(rho(power) / rho(power)[-1])))), 0, atol=1e-6)


def test_karras_sigmas_of_edm():
    """The 18 sigmas that the generate.py of NVlabs/edm visits for CIFAR-10, as it prints them; the last is 0.002."""
    levels = grids.karras(WHOLE, 18, log_snr=(-2 * np.log(80.0), -2 * np.log(0.002)))
    expected = [80, 57.58598472, 40.78557380, 28.37458460, 19.35245298, 12.91008238, 8.40093531, 5.31519452, 3.25682152]
    np.testing.assert_allclose((levels.sigma / levels.alpha)[:9], expected, rtol=1e-8)
    np.testing.assert_allclose((levels.sigma / levels.alpha)[10:12], [1.08817064, 0.58534812], rtol=1e-8)


def test_the_default_range_is_the_schedules():
    levels = grids.uniform_log_snr(SCHEDULE, 10)
    np.testing.assert_allclose(levels.t[[0, -2, -1]], [999, 0, 0], atol=1e-6)
    levels = grids.karras(continuous.cosine(-8.0, 12.0), 10)
    np.testing.assert_allclose(levels.t[[0, -2]], [1, 0], atol=1e-9)
    np.testing.assert_allclose(log_snr(Level(*(a[:-1] for a in levels)))[[0, -1]], [-8, 12], rtol=1e-9)
    # instead of infinite ends, the times 1/1000 and 1 - 1/1000 in continuous time, and the last step with signal in discrete
    for schedule, last in (
        (continuous.linear_vp(), 1),
        (WHOLE, 0.999),
        (schedules.flow(), 0.999),
        (schedules.flow(3.0), 0.999),
    ):
        np.testing.assert_allclose(grids.karras(schedule, 10).t[[0, -2, -1]], [last, 0.001, 0], rtol=1e-6)
    t = grids.uniform_log_snr(schedules.zero_terminal_snr(SCHEDULE), 10).t
    np.testing.assert_allclose(t[[0, -2]], [998, 0], atol=1e-3)
    for wrong in ((2.0, 1.0), (-np.inf, 1.0)):
        with pytest.raises(ValueError, match="rising"):
            grids.karras(SCHEDULE, 10, log_snr=wrong)
    with pytest.raises(ValueError, match="log_snr"):
        grids.uniform_log_snr(SCHEDULE, 10, (-30.0, 0.0))
    with pytest.raises(ValueError, match="rho"):
        grids.karras(SCHEDULE, 10, rho=0.0)
    with pytest.raises(ValueError, match="power"):
        grids.exponential(SCHEDULE, 10, power=-1.0)
    with pytest.raises(ValueError, match="num_steps"):
        grids.uniform_log_snr(SCHEDULE, 0)
    with pytest.raises(ValueError, match="finite"):
        grids.at_log_snr(SCHEDULE, [0.0, np.inf])


def test_reversed_and_partial_grids():
    levels = grids.spaced(SCHEDULE, 4)
    np.testing.assert_array_equal(grids.reversed(levels).t, [0, 0, 250, 500, 750])
    np.testing.assert_array_equal(grids.reversed(levels).sigma, levels.sigma[::-1])
    np.testing.assert_array_equal(grids.starting_at(levels, 0.5).t, [250, 0, 0])
    np.testing.assert_array_equal(grids.starting_at(levels, 1.0).t, levels.t)
    np.testing.assert_array_equal(grids.starting_at(levels, 0.0).alpha, [1.0])
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            grids.starting_at(levels, strength)


def test_back_and_forth():
    """Six steps, jumps of two, each stretch twice: positions 4 (from 6 levels) and 2, 0 by hand."""
    levels = grids.spaced(SCHEDULE, 6, "linspace")
    order = [0, 1, 2, 3, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    np.testing.assert_array_equal(grids.back_and_forth(levels, 2, 2).t, levels.t[order])
    np.testing.assert_array_equal(grids.back_and_forth(levels, 3, 1).t, levels.t)
    for wrong in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="jump_length"):
            grids.back_and_forth(levels, *wrong)


def test_restart():
    """Times 999, 799, 599, 400, 200, 0 and the clean level: the interval from 200 to 600 has three of them."""
    levels = grids.spaced(SCHEDULE, 6, "linspace")
    order = [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5, 6]
    found = grids.restart(levels, 600, 200, 2)
    for a, b in zip(found, levels, strict=True):
        np.testing.assert_array_equal(a, b[order])
    np.testing.assert_array_equal(grids.restart(levels, 600, 200, 0).t, levels.t)
    np.testing.assert_array_equal(grids.restart(levels, 300, 0).t, levels.t[[0, 1, 2, 3, 4, 5, 4, 5, 6]])
    with pytest.raises(ValueError, match="at least two levels"):
        grids.restart(levels, 100, 0)
    with pytest.raises(ValueError, match="num_restarts"):
        grids.restart(levels, 600, 200, -1)


def test_the_length_of_repaints_own_grid():
    """T = 250, jumps of 10, ten resamplings: 4570 steps in the authors' code, 2410 of them with a network evaluation."""
    levels = grids.back_and_forth(grids.spaced(SCHEDULE, 250), 10, 10)
    jumps = np.diff(levels.sigma) > 0
    assert jumps.sum() * 10 + (~jumps).sum() == 4570
    assert (~jumps).sum() == 2410
