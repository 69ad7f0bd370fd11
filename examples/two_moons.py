"""Denoising diffusion in one file: `python examples/two_moons.py two_moons.png` learns two moons in half a minute on a CPU."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

from ddpm_jax import denoiser, losses, networks, samplers, schedules


class Network(nn.Module):
    @nn.compact
    def __call__(self, x_t, t):
        h = jnp.concatenate([nn.Dense(128)(x_t), networks.timestep_embedding(t, 128)], axis=-1)
        for _ in range(3):
            h = nn.swish(nn.Dense(128)(h))
        return nn.Dense(2)(h)


def main(path="two_moons.png"):
    # The data x0, the forward process q(x_t | x0) = N(alpha_t x0, sigma_t^2 I), and the network eps_theta(x_t, t).
    x0 = jnp.asarray(make_moons(1000, noise=0.05, random_state=0)[0], jnp.float32)
    schedule, keys = schedules.linear(1000), jax.random.split(jax.random.key(0), 1502)

    def eps_theta(params):
        return lambda x_t, t: Network().apply(params, x_t, t)

    # Algorithm 1, training: gradient steps on L_simple = E || eps - eps_theta(alpha_t x0 + sigma_t eps, t) ||^2.
    @jax.jit
    def train_step(params, opt_state, key):
        gradient = jax.grad(lambda params: losses.simple(key, schedule, eps_theta(params), x0).mean())(params)
        update, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, update), opt_state

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))
    params = Network().init(keys[0], x0, jnp.zeros(len(x0)))
    opt_state = optimizer.init(params)
    for key in keys[2:]:
        params, opt_state = train_step(params, opt_state, key)

    # Algorithm 2, sampling: from noise to data, in 20 steps of DPM-Solver++ instead of 1000 ancestral ones.
    denoise = denoiser.make_denoise(schedule, eps_theta(params), clip=False)  # the data extend beyond [-1, 1]
    levels = samplers.grids.uniform_log_snr(schedule, 20)
    x = jax.jit(lambda: samplers.sample(keys[1], samplers.dpm_solver_pp(2), denoise, levels, shape=x0.shape))()

    # The data (left) and the samples (right).
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, points in zip(figure.subplots(1, 2, sharex=True, sharey=True), (x0, x), strict=True):
        axes.scatter(points[:, 0], points[:, 1], s=2)
    figure.savefig(path)
    return x0, x


if __name__ == "__main__":
    main(*sys.argv[1:2])
