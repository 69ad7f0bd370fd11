"""Every sampler on the path of flow matching, alpha = 1 - t and sigma = t, with both ends: pure noise and clean data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_checks import GAUSSIAN, KEY, assert_moments, exact, orders

from ddpm_jax import denoiser, diffusion, preconditioning, samplers, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.samplers import Churn, grids
from ddpm_jax.schedules import Level

FLOW = schedules.flow()
GRID = grids.spaced(FLOW, 5)  # t = 1, 4/5, ..., 1/5, 0
BACK_AND_FORTH = Level(*(a[[0, 1, 2, 1, 2, 3, 5]] for a in GRID))
RUNGE_KUTTA = grids.at(FLOW, [0.9, 0.85, 0.85, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5, 0.4, 0.4, 0.2])
CENTRED = (np.array([0.3, 0.7]), np.array([-0.7, 0.3]), np.array([0.15, 0.1]))  # of mean 0: the best x0 at alpha = 0
SIGMA_DATA = 0.5
X_INIT = np.tile(np.linspace(-2, 2, 7), (4, 1))
KNOWN, MASK = jnp.full((4, 7), 0.25), np.tile(np.float32([1, 0, 0, 0, 0, 0, 1]), (4, 1))
METHODS = {
    "ddpm small": lambda schedule: samplers.ddpm("fixed_small"),
    "ddpm large": lambda schedule: samplers.ddpm("fixed_large"),
    "ddpm learned": lambda schedule: samplers.ddpm("learned"),
    "analytic_dpm": lambda schedule: samplers.analytic_dpm(np.linspace(0.5, 0.9, 2)),
    "ddim": lambda schedule: samplers.ddim(),
    "ddim, eta": lambda schedule: samplers.ddim(0.7),
    "euler, churn": lambda schedule: samplers.euler(schedule, Churn(3.0, noise=1.01)),
    "heun, churn": lambda schedule: samplers.heun(schedule, Churn(3.0, 0.05, 5.0)),
    "euler_ancestral": lambda schedule: samplers.euler_ancestral(0.8),
    "dpm_solver_pp 3M": lambda schedule: samplers.dpm_solver_pp(3, lower_order_final=True),
    "dpm_solver_pp 2M, SDE": lambda schedule: samplers.dpm_solver_pp(2, sde=True),
    "dpm_solver_pp 2S": samplers.dpm_solver_pp_2s,
    "unipc": lambda schedule: samplers.unipc(3),
    "deis": lambda schedule: samplers.deis(4),
    "pndm": lambda schedule: samplers.pndm(),
    "langevin": lambda schedule: samplers.langevin(samplers.ddim()),
    "inpaint": lambda schedule: samplers.inpaint(samplers.ddim(), KNOWN, MASK),
    "repaint": lambda schedule: samplers.repaint(samplers.ddpm(), KNOWN, MASK),
}


class Rescaled(NamedTuple):
    """The variance-preserving process of the same log_snr at the same times: its levels divided by hypot(alpha, sigma)."""

    num_steps: None = None
    last: float = 1.0

    def level(self, t):
        return rescaled(FLOW.level(t))

    def level_at(self, log_snr):
        return rescaled(FLOW.level_at(log_snr))


def rescaled(level):
    h = np.hypot(level.alpha, level.sigma)
    return Level(level.t, level.alpha / h, level.sigma / h)


def grid(name):
    return BACK_AND_FORTH if name == "repaint" else GRID


def of_data(x, level):
    """The exact prediction for the mixture, with a learned variance."""
    x0 = oracles.posterior_mean(x, level.alpha, level.sigma, *CENTRED, xp=jnp)
    return Denoised(x0, diffusion.eps_from_x0(level, x, x0), 0.3 + 0 * x0)


def edm_network(y, noise):
    """F of the exact D; it knows s by c_noise alone, whose largest value stands for an infinite s."""
    s = jnp.exp(4 * noise[0])
    of_s = preconditioning.coefficients(s, SIGMA_DATA)
    y = y / of_s.input
    x0 = oracles.posterior_mean(y, 1.0, s, *CENTRED, xp=jnp)
    return jnp.where(noise[0] < preconditioning.FARTHEST / 4, (x0 - of_s.skip * y) / of_s.out, 0.0)


def read_in_all_ways(x, level):
    """Four rows, each by another reading of its exact network, which knows the noise level by t alone (EDM's by c_noise)."""
    of_t = FLOW.level(level.t)
    x0, eps, _ = of_data(x, of_t)

    def by(prediction, i):
        output = diffusion.target(of_t, x0[i], eps[i], prediction)[None]
        return denoiser.read(FLOW, level, x[i : i + 1], output, prediction)

    readings = [by(prediction, i) for i, prediction in enumerate(("eps", "v", "flow"))]
    readings.append(preconditioning.edm(edm_network, SIGMA_DATA)(x[3:], level))
    x0, eps = (jnp.concatenate(a) for a in zip(*(reading[:2] for reading in readings), strict=True))
    return Denoised(x0, eps, jnp.full_like(x, 0.3))


def run(sampler, denoise, levels):
    """Four equal samples, with the same noise, in float64; step by step, which is cheaper here than to compile."""
    with jax.enable_x64(True), jax.disable_jit():
        x_init = jnp.asarray(X_INIT * np.hypot(levels.alpha[0], levels.sigma[0]))
        return np.asarray(samplers.sample(KEY, sampler, denoise, levels, x_init.shape, np.zeros(4, int), x_init))


@pytest.mark.parametrize("name", METHODS)
def test_every_reading_of_a_network_gives_the_samples_of_the_variance_preserving_process(name):
    """x / hypot(alpha, sigma) is variance-preserving, and networks of eps, v, flow and EDM's F say the same: to 1e-10."""
    levels = grid(name)
    x = run(METHODS[name](FLOW), read_in_all_ways, levels)
    expected = run(METHODS[name](Rescaled()), of_data, rescaled(levels))
    assert x.dtype == np.float64 and np.std(expected[0]) > 0.05
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_no_coefficient_is_infinite_at_either_end(name):
    plan = METHODS[name](FLOW).plan(grid(name))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(plan))


DETERMINISTIC = {
    "ddim": samplers.ddim(),
    "heun": samplers.heun(),
    "dpm_solver_pp 2M": samplers.dpm_solver_pp(2),
    "dpm_solver_pp 2S": samplers.dpm_solver_pp_2s(FLOW),
    "unipc": samplers.unipc(2),
    "deis": samplers.deis(3),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_its_order_of_convergence(name):
    found, _ = orders(DETERMINISTIC[name], (80, 160), path=lambda alpha, sigma: alpha + sigma)
    assert np.all(np.abs(found - DETERMINISTIC[name].order) < 0.6)


@pytest.mark.parametrize("name", ["heun", "dpm_solver_pp 2S", "unipc"])
def test_inversion_between_both_ends_is_finite(name):
    denoise = make_denoise(FLOW, lambda x, t: jnp.tanh(x + t[:, None]), "flow", clip=False)
    x_init = jnp.asarray(X_INIT)
    x = samplers.sample(None, DETERMINISTIC[name], denoise, grids.reversed(GRID), x_init.shape, x_init=x_init)
    assert np.all(np.isfinite(x)) and np.std(x) > 0.1


def test_the_runge_kutta_start_of_pndm():
    sampler = samplers.pndm("runge_kutta")
    x, expected = run(sampler, read_in_all_ways, RUNGE_KUTTA), run(sampler, of_data, rescaled(RUNGE_KUTTA))
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-10)


def test_the_flow_of_normal_data():
    """N(0.3, 0.6^2): x* and its velocity v at t = 0.7, 0.9 standard scores from the mean, and the average velocity to t = 0.2.

    The values are of the closed form z_t = alpha m + xi sqrt(alpha^2 s^2 + sigma^2), v = dz/dt and u = (z_t - z_r) / (t - r).
    """
    normal, levels = (np.ones(1), np.array([0.3]), np.array([0.36])), grids.at(FLOW, np.linspace(0.7, 0.2, 401), clean=False)
    z_t, v, u = 0.7404951960, 0.4371614778, 0.0649903920
    with jax.enable_x64(True):
        x, start = jnp.array([z_t]), Level(*(a[0] for a in levels))
        velocity = lambda x, t: diffusion.target(FLOW.level(t[0]), *exact(normal)(x, FLOW.level(t[0]))[:2], "flow")  # noqa: E731
        denoise = make_denoise(FLOW, velocity, "flow", clip=False)
        denoised = denoise(x, start)
        z_r = samplers.sample(None, samplers.unipc(3), denoise, levels, (1,), x_init=x)
        x0, eps, z_r = (np.asarray(a) for a in (denoised.x0, denoised.eps, z_r))
    np.testing.assert_allclose(x0, (0.3 * 0.36 * z_t + 0.7**2 * 0.3) / (0.3**2 * 0.36 + 0.7**2), rtol=1e-12)
    np.testing.assert_allclose(eps - x0, v, atol=1e-9)
    np.testing.assert_allclose((z_t - z_r) / (0.7 - 0.2), u, atol=1e-8)
    np.testing.assert_allclose((z_t - 0.3 * 0.3) / np.hypot(0.3 * 0.6, 0.7), 0.9, atol=1e-9)


def test_samples_have_the_moments_of_the_data():
    """100 steps of order 2 from pure noise, spaced by SD3's shift."""
    _, mean, var = (a[0] for a in GAUSSIAN)
    assert_moments(samplers.dpm_solver_pp(2), grids.spaced(schedules.flow(3.0), 100), mean, var)


def test_editing_with_perfect_knowledge_of_the_image_returns_it():
    x0 = jnp.asarray(X_INIT / 4)
    perfect = lambda x, level: Denoised(x0, diffusion.eps_from_x0(level, x, x0))  # noqa: E731
    np.testing.assert_allclose(samplers.sdedit(KEY, samplers.ddim(), perfect, GRID, x0, 0.5), x0, atol=1e-6)
