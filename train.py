"""Trains a diffusion model: `python train.py --config configs/digits.py`. The same command again resumes it."""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from grain import MapDataset
from jax.sharding import Mesh

from ddpm_jax import factory
from ddpm_jax.config import Config, check, intervals, read_config
from ddpm_jax.config.cli import as_usage_error, run_script
from ddpm_jax.data import images, pipeline
from ddpm_jax.data.sources import Source
from ddpm_jax.devices import distributed, sharding
from ddpm_jax.devices.preemption import Preemption
from ddpm_jax.runs import metric_writers, progress
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.runs.failures import Failures, cause
from ddpm_jax.runs.workdir import checkpoint_metadata, claim, restore, write_config
from ddpm_jax.training import loop, memory
from ddpm_jax.training.metrics import MetricLog
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.saving import Saver
from ddpm_jax.training.snapshots import Snapshots
from ddpm_jax.training.state import TrainState, init_state, num_params, state_from_params
from ddpm_jax.training.step import make_train_step

CONFIGS = pathlib.Path(__file__).parent / "configs"


def main(argv: Sequence[str]) -> None:
    """Reads the config, builds its objects, and trains."""
    config = read_config(argv, CONFIGS, str(__doc__))
    check(config)
    is_first = join(config)  # whether this process writes and prints for all

    # The data, the objective, and the step.
    source, image_shape = read_data(config)
    mesh, key = sharding.make_mesh(), jax.random.key(config.train.seed)
    objective = factory.make_objective(factory.with_label_indices(config, source.classes), image_shape)
    objective = objective._replace(frozen=sharding.replicate(mesh, objective.frozen))
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer = factory.make_optimizer(config.optimizer, learning_rate)
    averages = factory.make_averages(config.ema, config.train.batch_size)
    gather = functools.partial(sharding.gather, mesh)
    train_step = make_train_step(
        key, objective, optimizer, learning_rate, averages, accumulate=config.train.accumulate, gather=gather
    )
    batches = read_batches(config, source, mesh)
    init = functools.partial(init_state, key, objective, optimizer, averages)
    shapes, layout = place(config, init, mesh)
    check_extras(config)

    with contextlib.ExitStack() as stack:
        # The state: from the last checkpoint, from imported weights, or new.
        workdir = stack.enter_context(claim(config)) if is_first else pathlib.Path(config.workdir)
        distributed.barrier("claim")
        terminal = stack.enter_context(metric_writers.Terminal(config.train.num_steps, config.train.batch_size))
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.best, terminal.say)
        )
        with terminal.doing("preparing the state", after=10.0):
            parts, saved = restore(checkpoints, config, image_shape, sharding.placed(shapes, layout).parts(), source.classes)
            if parts is None:
                state = sharding.create(init, layout)
            elif parts.keys() == {"params"}:
                begun = functools.partial(state_from_params, optimizer=optimizer, averages=averages, history=objective.memory)
                state = sharding.create(begun, layout, parts["params"])
            else:
                state = TrainState.from_parts(parts)

        # Metrics, checkpoints, snapshots and samples.
        log = open_log(config, workdir if is_first else None, terminal, int(state.step), saved.get("sums"), stack)
        saver = Saver(checkpoints, log, checkpoint_metadata(config, image_shape, source.classes), config.checkpoint.every)
        ema, powers = config.ema, [factory.power_name(width) for width in config.ema.power]
        snapshots = stack.enter_context(Snapshots(workdir, powers, ema.snapshot_every, ema.snapshots, terminal.say))
        draw = sample_drawer(config, objective, mesh, workdir if is_first else None, terminal)
        steps_per_call = announce(config, state, source, mesh, terminal)
        loop.train(
            state, train_step, stack.enter_context(contextlib.closing(pipeline.iterate(batches, int(state.step)))), mesh,
            config.train.num_steps, log=log, saver=saver, snapshots=snapshots,
            preemption=stack.enter_context(Preemption()), hooks=[(config.train.sample_every, draw)],
            average=next(iter(averages)), frozen=objective.frozen, steps_per_call=steps_per_call,
        )  # fmt: skip
        more = f"python sample.py --workdir {shlex.quote(str(workdir))}"
        terminal.say(f"samples are in {workdir / 'samples'}; for more: {more}")


def check_extras(config: Config) -> None:
    """Raises UsageError if an optional package is missing."""
    if config.train.tensorboard:
        with as_usage_error("--train.tensorboard"):
            metric_writers.require("tensorboardX", "tensorboard")
    if config.train.wandb is not None:
        with as_usage_error("--train.wandb"):
            metric_writers.require("wandb", "wandb")


def join(config: Config) -> bool:
    """Joins the other processes of the run, if there are any; returns whether this is the first."""
    devices = config.devices
    with as_usage_error("--devices"):
        return distributed.join(
            devices.coordinator, devices.num_processes, devices.process_id, devices.cluster, devices.timeout
        )


def read_data(config: Config) -> tuple[Source, tuple[int, int, int]]:
    """The images, and their shape (H, W, C)."""
    with progress.doing("reading the data"):
        source = factory.make_source(config.data)
        with as_usage_error("--data"):
            image_shape = source[0]["image"].shape
    factory.check_labels(config.network, source)
    return source, image_shape


def read_batches(config: Config, source: Source, mesh: Mesh) -> MapDataset:
    """This process's part of each batch."""
    with as_usage_error("--train.batch_size"):
        sharding.check_batch_size(mesh, config.train.batch_size, config.train.accumulate)
        num_bytes = config.train.batch_size * np.prod(source[0]["image"].shape, dtype=float) * 4
        memory.check_fits(int(num_bytes) // mesh.size, "images")
    with as_usage_error("--data"):
        return pipeline.batches(
            source, config.train.batch_size, config.train.seed,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip


def place(config: Config, init: Callable[[], TrainState], mesh: Mesh) -> tuple[Any, Any]:
    """The shapes of the state, and where each array lives."""
    with as_usage_error("--network."):
        shapes = jax.eval_shape(init)
    layout: Any = sharding.replicated(mesh)
    if config.devices.state == "sharded":
        with as_usage_error("--devices.axes"):
            layout = sharding.sharded(mesh, shapes, config.devices.axes)
    with as_usage_error("--network"):
        memory.check_fits(sharding.bytes_per_device(sharding.placed(shapes, layout)), "parameters, optimizer state and EMA")
    return shapes, layout


def open_log(
    config: Config,
    workdir: pathlib.Path | None,
    terminal: metric_writers.Terminal,
    step: int,
    sums: dict[str, Any] | None,
    stack: contextlib.ExitStack,
) -> MetricLog:
    """The metric log of the run from a step on; writes into the workdir, if this process has one, until the stack closes."""
    outputs = []
    if workdir is not None:
        with as_usage_error("--workdir"):
            outputs = metric_writers.make_writers(
                workdir, step, config.train.tensorboard, config.train.wandb, dataclasses.asdict(config)
            )
            write_config(workdir, config)
    for output in outputs:
        stack.enter_context(contextlib.closing(output))
    return MetricLog(terminal, outputs, config.train.log_every, config.train.num_steps, config.train.batch_size, sums)


def announce(config: Config, state: TrainState, source: Source, mesh: Mesh, terminal: metric_writers.Terminal) -> int:
    """Prints the model, data, devices and doubts, and begins to show progress; returns the steps per dispatch."""
    steps_per_call = config.train.steps_per_call
    if steps_per_call is None:
        steps_per_call = loop.default_steps_per_call(intervals(config).values())
    step, num_steps = int(state.step), config.train.num_steps
    data = f"{len(source):,} images of {source[0]['image'].shape}"
    terminal.say(
        f"{config.workdir}: {num_params(state.params):,} parameters, {data}, {mesh.size} x {jax.devices()[0].device_kind}, "
        f"from step {step} to {num_steps}{f', {steps_per_call} steps per dispatch' if steps_per_call > 1 else ''}"
    )
    if classes := factory.describe_classes(config.network, source):
        terminal.say(classes)
    if step >= num_steps:
        terminal.say(f"nothing to do: step {step} is reached; to train on, give --train.num_steps above it")
    for line in factory.notes(config) if step < num_steps else ():
        terminal.say(f"note: {line}")
    terminal.begin(step)
    return steps_per_call


def sample_drawer(
    config: Config, objective: Objective, mesh: Mesh, workdir: pathlib.Path | None, terminal: metric_writers.Terminal
) -> Callable[[int, Any], None]:
    """The hook that generates a grid of samples; all processes compute it, and the one that has a workdir writes it."""
    failures = Failures(terminal.say)

    def draw(step: int, params: Any) -> None:
        image = sharding.replicate(mesh, objective.preview(params, jax.random.key(config.sample.seed), objective.frozen))
        if workdir is None or image is None:
            return
        try:
            images.save_grid(workdir / "samples" / f"{step}.png", jax.device_get(image))
        except OSError as error:  # no room is no reason to end the run
            failures.failed(f"CANNOT DRAW step {step}: {cause(error)}")
        else:
            failures.succeeded(f"samples are drawn again, from step {step} on")

    return draw


if __name__ == "__main__":
    run_script(main)
