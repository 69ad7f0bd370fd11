"""Our training step and sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import cli, factory, sharding
from ddpm_jax.config import Config
from ddpm_jax.training.loop import compile_step
from ddpm_jax.training.state import init_state, num_params
from ddpm_jax.training.step import make_train_step
from sides.turns import Run

cli.keep_programs()


def training(config: Config, shape: tuple[int, int, int]) -> tuple[Run, int]:
    """One step of training, its metrics waited for; and the number of parameters."""
    batch_size = config.train.batch_size
    schedule, network = factory.make_schedule(config.diffusion), factory.make_network(config, shape)
    history, draw_times = factory.make_times(config.loss, schedule.num_steps, batch_size)
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer = factory.make_optimizer(config.optimizer, learning_rate)
    averages = factory.make_averages(config.ema, batch_size)
    key, mesh = jax.random.key(0), sharding.make_mesh()
    step = make_train_step(
        key, network, factory.make_loss(config.loss, config.diffusion, schedule), draw_times, optimizer, learning_rate,
        averages, schedule.num_steps, random_flip=config.data.random_flip,
    )  # fmt: skip
    init = functools.partial(init_state, key, network, optimizer, shape, averages, history)
    state = sharding.create(init, sharding.replicated(mesh))
    image = np.random.default_rng(0).integers(0, 256, (batch_size, *shape), np.uint8)
    batch = sharding.put_batch(mesh, {"image": image})
    compiled = compile_step(step, state, batch, mesh)
    held, num = [state], num_params(state.params)
    del state

    def run() -> None:
        state, metrics = compiled(held.pop(), batch)
        held.append(state)
        jax.block_until_ready(metrics)

    return run, num


def sampling(config: Config, shape: tuple[int, int, int]) -> tuple[Run, int]:
    """As many images as config.sample says, with its sampler and sample.py's devices."""
    sharding.divide_cores(config.sample.num)
    schedule, network = factory.make_schedule(config.diffusion), factory.make_network(config, shape)
    mesh, zeros = sharding.make_mesh(), (jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32))
    params = sharding.copies(mesh, jax.jit(network.init)(jax.random.key(0), *zeros))
    draw = factory.make_draw(config, network, schedule, shape)
    ids = sharding.put_ids(mesh, range(config.sample.num))
    print(f"ours: {mesh.size} devices")
    return lambda: jax.block_until_ready(draw(jax.random.key(0), params, ids)), num_params(params)


def matmul(a: np.ndarray) -> Run:
    """The product of a matrix by itself."""
    product, on_device = jax.jit(jnp.matmul), jnp.asarray(a)
    jax.block_until_ready(product(on_device, on_device))
    return lambda: jax.block_until_ready(product(on_device, on_device))
