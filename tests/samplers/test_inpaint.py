import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_checks import GAUSSIAN, KEY, SCHEDULE, exact

from ddpm_jax import samplers
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.samplers import grids

KNOWN = jax.random.uniform(KEY, (4, 6, 5, 3), minval=-1)
MASK = jnp.zeros((4, 6, 5, 3)).at[:, :3].set(1)
WRAPPERS = {"inpaint": samplers.inpaint, "repaint": samplers.repaint}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
DENOISE = make_denoise(SCHEDULE, lambda x, t: jnp.tanh(x))


def correlated(covariance):
    """The exact Denoise of pairs [B, 2] of zero mean."""

    def denoise(x, level):
        alpha, sigma = level.alpha, level.sigma
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(2))
        x0 = x @ gain.T
        return Denoised(x0, (x - alpha * x0) / jnp.maximum(sigma, 1e-6))

    return denoise


@every_wrapper
def test_known_pixels_are_kept_exactly(wrap):
    levels = grids.back_and_forth(grids.spaced(SCHEDULE, 12), 3, 2) if wrap is samplers.repaint else grids.spaced(SCHEDULE, 12)
    x = samplers.sample(KEY, wrap(samplers.ddpm(), KNOWN, MASK), DENOISE, levels, KNOWN.shape)
    np.testing.assert_array_equal(x[:, :3], KNOWN[:, :3])
    assert np.abs(x[:, 3:] - KNOWN[:, 3:]).min() < np.abs(x[:, 3:] - KNOWN[:, 3:]).max()
    assert not np.allclose(x[:, 3:], KNOWN[:, 3:], atol=0.1)


@every_wrapper
def test_a_mask_of_one_channel_is_that_mask_in_all(wrap):
    levels, x = grids.spaced(SCHEDULE, 5), KNOWN[::-1]
    plan = jax.tree.map(lambda a: a[-1], wrap(samplers.ddim(), KNOWN, MASK).plan(levels))
    keys = jax.random.split(KEY, 4)
    step = lambda mask: wrap(samplers.ddim(), KNOWN, mask).step(keys, DENOISE, x, (), plan)[0]  # noqa: E731
    np.testing.assert_array_equal(step(MASK[..., :1] > 0), step(MASK))
    np.testing.assert_array_equal(step(MASK)[:, :3], KNOWN[:, :3])


def test_resampling_finds_what_replacement_misses():
    """Pairs of correlation 0.9, the first known to be 1: E[second] = 0.9. RePaint is nearer than replacement (section 4.2)."""
    covariance = jnp.array([[1.0, 0.9], [0.9, 1.0]])
    known, mask = jnp.tile(jnp.array([[1.0, 0.0]]), (4000, 1)), jnp.tile(jnp.array([[1.0, 0.0]]), (4000, 1))
    levels = grids.spaced(SCHEDULE, 25)
    draw = lambda sampler, levels: np.asarray(  # noqa: E731
        samplers.sample(KEY, sampler, correlated(covariance), levels, known.shape)[:, 1]
    )
    replaced = draw(samplers.inpaint(samplers.ddpm("fixed_small"), known, mask), levels)
    repainted = draw(samplers.repaint(samplers.ddpm("fixed_small"), known, mask), grids.back_and_forth(levels, 5, 8))
    assert abs(repainted.mean() - 0.9) < abs(replaced.mean() - 0.9) / 2


def test_steps_to_noise_and_back_keep_the_marginals():
    """RePaint of independent Gaussian pixels is ancestral sampling of the unknown ones. 20,000 samples of variance 0.04."""
    levels = grids.back_and_forth(grids.spaced(SCHEDULE, 100), 10, 2)
    known, mask = jnp.zeros((20_000, 2)), jnp.zeros((20_000, 2)).at[:, 0].set(1)
    sampler = samplers.repaint(samplers.analytic_dpm(gamma()), known, mask)
    x = np.asarray(samplers.sample(KEY, sampler, exact(GAUSSIAN), levels, known.shape)[:, 1], np.float64)
    assert abs(x.mean() - 0.5) < 4 * 0.2 / np.sqrt(20_000)
    assert abs(x.var() / 0.04 - 1) < 4 * np.sqrt(2 / 20_000)


def gamma():
    alpha, sigma = np.asarray(SCHEDULE.alpha, np.float64), np.asarray(SCHEDULE.sigma, np.float64)
    return sigma**2 / (alpha**2 * 0.04 + sigma**2)


def test_with_noise_of_its_own_it_is_deterministic():
    """Pixels are independent, so an unknown one follows the probability flow."""
    levels, x_init = grids.uniform_log_snr(SCHEDULE, 100), jnp.linspace(-2, 2, 12).reshape(6, 2)
    known, mask = jnp.full((6, 2), 0.3), jnp.tile(jnp.array([[1.0, 0.0]]), (6, 1))
    sampler = samplers.inpaint(samplers.dpm_solver_pp(2), known, mask, noise=x_init)
    x = samplers.sample(None, sampler, exact(GAUSSIAN), levels, x_init.shape, x_init=x_init)
    np.testing.assert_array_equal(x[:, 0], known[:, 0])
    end = oracles.gaussian_flow(np.asarray(x_init)[:, 1], levels.alpha[0], levels.sigma[0], 1.0, 0.0, 0.5, 0.04)
    np.testing.assert_allclose(x[:, 1], end, atol=1e-3)


def test_a_step_to_noise_calls_no_network():
    called = []

    def predict(x, t):
        jax.debug.callback(lambda t: called.append(float(t[0])), t)
        return x

    levels = grids.back_and_forth(grids.spaced(SCHEDULE, 6), 2, 3)
    sampler = samplers.repaint(samplers.ddpm(), KNOWN, MASK)
    jax.block_until_ready(samplers.sample(KEY, sampler, make_denoise(SCHEDULE, predict), levels, KNOWN.shape))
    jax.effects_barrier()
    down = np.append(np.diff(levels.t) < 0, False)
    down[-2] = True  # from t = 0 to the clean level, whose t is 0 too
    assert sorted(called) == sorted(levels.t[down].tolist())


@every_wrapper
def test_mistakes_are_refused(wrap):
    for mask, what in (
        (MASK[:, :4], "shape"), (MASK[0], "shape"), (0 * MASK, "zeros alone"), (2 * MASK, "0 to 1"), (jnp.nan * MASK, "0 to 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            wrap(samplers.ddpm(), KNOWN, mask)
    with pytest.raises(ValueError, match="known data"):
        samplers.sample(KEY, wrap(samplers.ddpm(), KNOWN, MASK), DENOISE, grids.spaced(SCHEDULE, 3), (2, 6, 5, 3))


def test_mistakes_of_each_are_refused():
    levels = grids.spaced(SCHEDULE, 6)
    with pytest.raises(ValueError, match="noise"):
        samplers.inpaint(samplers.ddim(), KNOWN, MASK, noise=KNOWN[:2])
    with pytest.raises(ValueError, match="less noisy"):
        samplers.inpaint(samplers.ddim(), KNOWN, MASK).plan(grids.back_and_forth(levels, 2, 2))
    with pytest.raises(ValueError, match="received none"):
        samplers.repaint(samplers.ddim(), KNOWN, MASK).plan(grids.reversed(levels))
    with pytest.raises(ValueError, match="at least 3 steps"):
        samplers.repaint(samplers.dpm_solver_pp(3), KNOWN, MASK).plan(grids.back_and_forth(levels, 1, 2))
