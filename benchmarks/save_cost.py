"""What a save costs the training steps between its start and its commit, with the state of the CIFAR-10 network.

    python benchmarks/save_cost.py --batch-size 32 --steps 6 --saves 3
    python benchmarks/save_cost.py --batch-size 128 --steps 200 --saves 5 --dtype bfloat16 --steps-per-call 10  # on a GPU

Prints the seconds of a step without a save, the mean of so many before and after; those that the loop was busy with the save;
the steps until it was committed, and what they took longer, in per cent and in steps; and whether what is loaded again is the
state of the moment when it was copied, computed twice, whatever was donated since. As in train.py, a call of the devices is
waited for when the next one has begun, and what was copied between the two is then given to the background.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import cli, factory, sharding
from ddpm_jax.checkpoint import Checkpoints
from ddpm_jax.config import Config
from ddpm_jax.training import footprint
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
    rows = sharding.put_batch(mesh, {"image": np.stack([image] * steps_per_call)}, axis=1)
    batch = rows, sharding.put_number(mesh, steps_per_call)
    compiled = compile_step(several(train_step), state, batch, mesh, print)

    calls = max(steps // steps_per_call, 1)
    save_after = calls // 2 + calls + 1  # half of them untimed: a device changes its speed as it gets warm

    def train(state: TrainState, number: int) -> tuple[TrainState, np.ndarray, int, float]:
        """Trains without a pause, from before a save until after its commit.

        Returns:
            The state, the times when each call's predecessor was seen to end, how many there were at the commit, and the
            seconds for which the loop was busy with the save.
        """
        committed, ends = pathlib.Path(folder) / str(number), list[float]()
        late, copied, done, blocked = None, None, 0, 0.0
        while not done or len(ends) <= done + calls:
            state, metrics = compiled(state, batch)
            jax.block_until_ready(late)
            assert not checkpoints.failed, "it has said why, and there would be no commit to wait for"
            ends.append(time.perf_counter())
            late, done = metrics, done or len(ends) * committed.exists()
            if copied is not None:
                checkpoints.save(number, copied, {})
            copied = checkpoints.copy(number, state.parts()) if len(ends) == save_after else None
            if save_after <= len(ends) <= save_after + 1:
                blocked += time.perf_counter() - ends[-1]
        return state, np.array(ends), done, blocked

    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.prepare(state.parts(), footprint.needed(compiled))  # as train.py does before the first step
        for _ in range(saves):
            again, number = jax.tree.map(jnp.copy, state), int(state.step) + save_after * steps_per_call
            state, ends, done, blocked = train(state, number)
            first, last = save_after - 1, done  # the call before the copy, and the one on its way at the commit, which is late
            before, during, after = np.diff(ends[[first - calls, first, last, last + calls]])
            usual = (before + after) / (2 * calls)
            lost, until = during - usual * (last - first), max(done - save_after - 1, 1)  # one begun ahead
            checkpoints.wait()
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state.parts())
            loaded = checkpoints.load(number, sharding.placed(shapes, layout))
            for _ in range(save_after):
                again, _ = compiled(again, batch)
            same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), loaded, again.parts())
            print(json.dumps({
                "step_seconds": round(usual / steps_per_call, 4), "blocked": round(blocked, 3), "steps": until * steps_per_call,
                "slower_by_percent": round(100 * lost / (usual * until + lost), 1),
                "steps_lost": round(lost / usual * steps_per_call, 2), "loaded_is_saved": all(jax.tree.leaves(same)),
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
