"""Shared by the samplers' tests: exact denoisers, orders of convergence, moments, and diffusers' check of schedulers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from ddpm_jax import diffusion, samplers, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.schedules import Level

SCHEDULE = schedules.linear(1000)
KEY = jax.random.key(0)
MIXTURE = (np.array([0.3, 0.7]), np.array([-0.5, 0.4]), np.array([0.15, 0.1]))
GAUSSIAN = (np.ones(1), np.array([0.5]), np.array([0.04]))
STARTS = np.linspace(-2, 2, 9)


def exact(parameters):
    """The exact Denoise of a mixture."""

    def denoise(x, level):
        x0 = oracles.posterior_mean(x, level.alpha, level.sigma, *parameters, xp=jnp)
        return Denoised(x0, diffusion.eps_from_x0(level, x, x0))

    return denoise


@functools.cache
def exact_ends(noisiest, cleanest):
    return oracles.mixture_flow(STARTS, noisiest, cleanest, *MIXTURE)


def orders(sampler, steps=(40, 80, 160), ends=(-8.0, 8.0), path=np.hypot):
    """The orders of convergence on mixture data between numbers of steps uniform in log_snr, and the last error.

    path(alpha, sigma) is 1 on the path: levels of unit variance are divided by it, and x with them.
    """
    errors = []
    with jax.enable_x64(True):
        for num_steps in steps:
            alpha, sigma = oracles.log_snr_grid(*ends, num_steps)
            scale = path(alpha, sigma)
            levels = Level(np.zeros(num_steps + 1), alpha / scale, sigma / scale)
            x_init = jnp.asarray(STARTS / scale[0])
            x = samplers.sample(None, sampler, exact(MIXTURE), levels, x_init.shape, x_init=x_init)
            assert x.dtype == jnp.float64
            errors.append(np.abs(np.asarray(x) * scale[-1] - exact_ends(*ends)).max())
    return np.log2(np.array(errors[:-1]) / errors[1:]), errors[-1]


def assert_moments(sampler, levels, mean, var, num=40_000):
    """Standard errors with 40,000 samples: std / 200 for the mean, and sqrt(2 / 40,000) = 0.0071 of the variance."""
    draw = jax.jit(lambda key: samplers.sample(key, sampler, exact(GAUSSIAN), levels, (num,)))
    x = np.asarray(draw(KEY), np.float64)
    assert abs(x.mean() - mean) < 4 * np.sqrt(var / num)
    assert abs(x.var() / var - 1) < 4 * np.sqrt(2 / num)


def scheduler_check(sampler, levels, prediction="eps", schedule=SCHEDULE, wrap=lambda denoise: denoise):
    """|x| at the end of the loop that diffusers' tests run (tests/schedulers/test_schedulers.py): its sum and its mean."""
    x = jnp.asarray(np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2) / 768)
    predict = lambda x, t: x * (t / (t + 1)).reshape(-1, 1, 1, 1)  # noqa: E731
    denoise = wrap(make_denoise(schedule, predict, prediction, clip=False))
    end = np.abs(samplers.sample(None, sampler, denoise, levels, x.shape, x_init=x))
    return end.sum(), end.mean()


def variance_exploding_check(sampler, prediction="eps"):
    """The same for diffusers' schedulers that work in x / alpha, whose test feeds the network's scaled input back to them.

    1100 steps of the linear schedule, 10 times from 1099 to 0, sigma / alpha interpolated between whole times.
    """
    schedule = schedules.linear(1100)
    times = np.linspace(1099, 0, 10)
    rho = np.interp(times, np.arange(1100), np.asarray(schedule.sigma, np.float64) / np.asarray(schedule.alpha))
    levels = Level(np.append(times, 0), np.ones(11), np.append(rho, 0))

    def denoise(x, level):
        x = x / jnp.sqrt(1 + level.sigma**2)
        output = x * level.t / (level.t + 1)
        eps = output
        if prediction == "v":
            x0 = x / (level.sigma**2 + 1) - output * level.sigma / jnp.sqrt(level.sigma**2 + 1)
            eps = (x - x0) / level.sigma
        return Denoised(x - level.sigma * eps, eps)

    x = jnp.asarray(np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2) / 768)
    return np.abs(samplers.sample(None, sampler, denoise, levels, x.shape, x_init=x * rho[0])).sum()
