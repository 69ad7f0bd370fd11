"""What a save costs the training steps between its start and its commit, with the state of the CIFAR-10 network.

    python benchmarks/save_cost.py --batch-size 32 --steps 6 --saves 3

Prints the seconds of a step without a save, those that starting the save blocked, the steps until it was committed, and what
they took longer than they would have, starting included, in per cent of their time; and whether what is loaded again is the
state of the moment when the save was started, whatever was donated since.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from ddpm_jax import cli, factory, sharding
from ddpm_jax.checkpoint import Checkpoints
from ddpm_jax.config import Config
from ddpm_jax.training.loop import compile_step
from ddpm_jax.training.state import TrainState, init_state
from ddpm_jax.training.step import make_train_step


def main(batch_size: int, steps: int, saves: int) -> None:
    """Trains on noise, and saves in between."""
    config, key = Config(workdir=""), jax.random.key(0)
    network, schedule = factory.make_network(config, (32, 32, 3)), factory.make_schedule(config.diffusion)
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer, averages = factory.make_optimizer(config.optimizer, learning_rate), factory.make_averages(config.ema, batch_size)
    history, draw_times = factory.make_times(config.loss, schedule.num_steps, batch_size)
    mesh = sharding.make_mesh()
    layout = sharding.replicated(mesh)
    state = sharding.create(lambda: init_state(key, network, optimizer, (32, 32, 3), averages, history), layout)
    loss = factory.make_loss(config.loss, config.diffusion, schedule)
    train_step = make_train_step(key, network, loss, draw_times, optimizer, learning_rate, averages, schedule.num_steps)
    image = np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    batch = sharding.put_batch(mesh, {"image": image})
    compiled = compile_step(train_step, state, batch, mesh)

    def timed_step(state: TrainState) -> tuple[TrainState, float]:
        began = time.perf_counter()
        state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        return state, time.perf_counter() - began

    state, _ = timed_step(state)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        for _ in range(saves):
            alone = []
            for _ in range(steps):
                state, seconds = timed_step(state)
                alone.append(seconds)
            number, expected = int(state.step), jax.tree.map(np.array, state.parts())
            began = time.perf_counter()
            checkpoints.save(number, state.parts(), {})
            blocked, during = time.perf_counter() - began, []
            while not (pathlib.Path(folder) / str(number)).exists():
                state, seconds = timed_step(state)
                during.append(seconds)
            checkpoints.wait()
            usual = statistics.median(alone)
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), expected)
            loaded = checkpoints.load(number, sharding.placed(shapes, layout))
            same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), b), loaded, expected)
            print(json.dumps({
                "step_seconds": round(usual, 3), "blocked": round(blocked, 3), "steps": len(during),
                "slower_by_percent": round(100 * (blocked + sum(during) - usual * len(during)) / sum(during), 1),
                "loaded_is_saved": all(jax.tree.leaves(same)),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--saves", type=int, default=3)
    given = parser.parse_args()
    cli.take_huge_pages()
    main(given.batch_size, given.steps, given.saves)
