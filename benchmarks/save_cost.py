"""What a save costs the training steps between its start and its commit, with the state of the CIFAR-10 network.

    python benchmarks/save_cost.py --batch-size 32 --steps 6 --saves 3
    python benchmarks/save_cost.py --batch-size 128 --steps 200 --saves 5 --dtype bfloat16 --steps-per-call 10  # on a GPU

Prints the seconds of a step without a save, those that starting the save blocked, the steps until it was committed, and what
they took longer than as many without a save, starting included: in per cent, and in steps; and whether what is loaded again
is the state of the moment when the save was started, whatever was donated since. A call of the devices is waited for when the
next one has begun, as train.py does it.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import cli, factory, sharding
from ddpm_jax.checkpoint import Checkpoints
from ddpm_jax.config import Config
from ddpm_jax.training.loop import compile_step
from ddpm_jax.training.state import TrainState, init_state
from ddpm_jax.training.step import make_train_step, several


def main(batch_size: int, steps: int, saves: int, dtype: Any, steps_per_call: int) -> None:
    """Trains on noise, and saves in between."""
    config, key = Config(workdir=""), jax.random.key(0)
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, dtype=dtype))
    network, schedule = factory.make_network(config, (32, 32, 3)), factory.make_schedule(config.diffusion)
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer, averages = factory.make_optimizer(config.optimizer, learning_rate), factory.make_averages(config.ema, batch_size)
    history, draw_times = factory.make_times(config.loss, schedule.num_steps, batch_size)
    mesh = sharding.make_mesh()
    layout = sharding.replicated(mesh)
    state = sharding.create(lambda: init_state(key, network, optimizer, (32, 32, 3), averages, history), layout)
    loss = factory.make_loss(config.loss, config.diffusion, schedule)
    train_step = make_train_step(
        key, network, loss, draw_times, optimizer, learning_rate, averages, schedule.num_steps, random_flip=True,
        gather=functools.partial(sharding.gather, mesh),
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    batch: Any = sharding.put_batch(mesh, {"image": image})
    if steps_per_call > 1:
        rows = sharding.put_batch(mesh, {"image": np.stack([image] * steps_per_call)}, axis=1)
        train_step, batch = several(train_step), (rows, sharding.put_number(mesh, steps_per_call))
    compiled = compile_step(train_step, state, batch, mesh, print)

    def train(state: TrainState, goes_on: Callable[[int], bool]) -> tuple[TrainState, float, int]:
        began, num, late = time.perf_counter(), 0, None
        while goes_on(num):
            state, metrics = compiled(state, batch)
            jax.block_until_ready(late)
            late, num = metrics, num + steps_per_call
        jax.block_until_ready(state)
        return state, time.perf_counter() - began, num

    state, *_ = train(state, lambda num: num < 2 * steps_per_call)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        for _ in range(saves):
            state, alone, num = train(state, lambda num: num < steps)
            usual, number, expected = alone / num, int(state.step), jax.tree.map(np.array, state.parts())
            committed = pathlib.Path(folder) / str(number)
            began = time.perf_counter()
            checkpoints.save(number, state.parts(), {})
            blocked = time.perf_counter() - began
            state, seconds, num = train(state, lambda num: not committed.exists())  # noqa: B023
            lost, until = blocked + seconds - usual * num, max(num - steps_per_call, steps_per_call)  # a call has begun ahead
            checkpoints.wait()
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), expected)
            loaded = checkpoints.load(number, sharding.placed(shapes, layout))
            same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), b), loaded, expected)
            print(json.dumps({
                "step_seconds": round(usual, 4), "blocked": round(blocked, 3), "steps": until,
                "slower_by_percent": round(100 * lost / (usual * until + lost), 1), "steps_lost": round(lost / usual, 2),
                "loaded_is_saved": all(jax.tree.leaves(same)),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps-per-call", type=int, default=1)
    given = parser.parse_args()
    cli.take_huge_pages()
    cli.keep_programs()
    main(**vars(given))
