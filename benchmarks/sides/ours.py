"""Our training step and sampler."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import factory
from ddpm_jax.config import Config
from ddpm_jax.devices import compiler, sharding
from ddpm_jax.training.loop import compile_step
from ddpm_jax.training.state import init_state, num_params
from ddpm_jax.training.step import make_train_step
from sides.turns import Run, seconds

compiler.enable_compilation_cache()
programs: list[Any] = []  # the compiled program of this process


def training(config: Config, shape: tuple[int, int, int]) -> tuple[Run, int]:
    """The training step, and the number of parameters."""
    batch_size = config.train.batch_size
    objective = factory.make_objective(config, shape)
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer = factory.make_optimizer(config.optimizer, learning_rate)
    averages = factory.make_averages(config.ema, batch_size)
    key, mesh = jax.random.key(0), sharding.make_mesh()
    gather = functools.partial(sharding.gather, mesh)
    step = make_train_step(key, objective, optimizer, learning_rate, averages, gather=gather)
    init = functools.partial(init_state, key, objective, optimizer, averages)
    state = sharding.create(init, sharding.replicated(mesh))
    image = np.random.default_rng(0).integers(0, 256, (batch_size, *shape), np.uint8)
    labels = {} if config.network.num_classes is None else {"label": np.zeros(batch_size, np.int32)}
    batch = sharding.put_batch(mesh, {"image": image} | labels)
    compiled = compile_step(step, state, batch, (), mesh)
    programs.append(compiled)
    held, num = [state], num_params(state.params)
    del state

    def run() -> Callable[[], Any]:
        state, metrics = compiled(held.pop(), batch, ())
        held.append(state)
        return lambda: jax.block_until_ready(metrics)

    return run, num


def sampling(config: Config, shape: tuple[int, int, int]) -> tuple[Run, int]:
    """The sampler of config.sample, with its number of images and the devices of sample.py."""
    compiler.divide_cores(config.sample.num)
    schedule, network = factory.make_schedule(config.diffusion), factory.make_network(config, shape)
    mesh, zeros = sharding.make_mesh(), (jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32))
    params = sharding.replicate(mesh, jax.jit(network.init)(jax.random.key(0), *zeros))
    generate: Any = factory.make_generator(config, network, schedule, shape)
    ids = sharding.put_ids(mesh, range(config.sample.num))
    print(f"ours: {mesh.size} devices")
    key = jax.random.key(0)
    programs.append(generate.lower(key, params, ids).compile())
    return functools.partial(_begin, lambda: programs[0](key, params, ids)), num_params(params)


def _begin(compute: Callable[[], Any]) -> Callable[[], Any]:
    begun = compute()
    return lambda: jax.block_until_ready(begun)


def cost() -> dict[str, float]:
    """XLA's counts for the program on one device: `flops`, `bytes` read and written, `memory` beside its arguments."""
    counted, memory = programs[0].cost_analysis(), programs[0].memory_analysis()
    return {"flops": counted["flops"], "bytes": counted["bytes accessed"], "memory": memory.temp_size_in_bytes}


def bandwidth(megabytes: int = 256) -> float:
    """Bytes read and written per second when adding to an array: the best of 20."""
    add, a = jax.jit(lambda a: a + 1), jnp.zeros(megabytes << 18)
    run = functools.partial(_begin, lambda: add(a))
    run()()
    return 2 * a.nbytes / min(seconds(run) for _ in range(20))


def memory() -> int:
    """Peak GPU memory in bytes; 0 without a GPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def matmul(a: np.ndarray, dtype: str) -> Run:
    """The product of a matrix with itself."""
    product, on_device = jax.jit(jnp.matmul), jnp.asarray(a, dtype)
    run = functools.partial(_begin, lambda: product(on_device, on_device))
    run()()
    return run
