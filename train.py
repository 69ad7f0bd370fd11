"""Trains a diffusion model: `python train.py --config configs/digits.py`. The same command again resumes it."""

import contextlib
import functools
import pathlib
from collections.abc import Sequence

from ddpm_jax.cli import blame, run_script
from ddpm_jax.config import check, everies, read_config
from ddpm_jax.workdir import claim, describe, restore, write_config

CONFIGS = pathlib.Path(__file__).parent / "configs"


def main(argv: Sequence[str]) -> None:
    """Reads the config, builds what it names, and trains it."""
    config = read_config(argv, CONFIGS, default="digits", description=str(__doc__))
    check(config)

    import jax  # here and below, so that --help and mistakes are answered at once

    from ddpm_jax import distributed, factory, images, sharding, writers
    from ddpm_jax.checkpoint import Checkpoints
    from ddpm_jax.data import pipeline
    from ddpm_jax.preemption import Preemption
    from ddpm_jax.training import loop
    from ddpm_jax.training.record import Record
    from ddpm_jax.training.saver import Saver
    from ddpm_jax.training.snapshots import Snapshots
    from ddpm_jax.training.state import TrainState, begin, init_state, num_params
    from ddpm_jax.training.step import make_train_step

    with blame("--devices"):
        first = distributed.join(  # whether this process writes and speaks for all
            config.devices.coordinator, config.devices.num_processes, config.devices.process_id, config.devices.cluster,
            config.devices.timeout,
        )  # fmt: skip

    # What is trained.
    source = factory.make_source(config.data)
    with blame("--data"):
        image_shape = source[0]["image"].shape
    schedule = factory.make_schedule(config.diffusion)
    factory.check_labels(config.network, source)
    network = factory.make_network(config, image_shape)
    loss = factory.make_loss(config.loss, config.diffusion, schedule)
    history, draw_times = factory.make_times(config.loss, schedule.num_steps, config.train.batch_size)
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer = factory.make_optimizer(config.optimizer, learning_rate)
    averages = factory.make_averages(config.ema, config.train.batch_size)
    drawn_with = next(iter(averages))
    draw = factory.make_draw(config, network, schedule, image_shape)

    # Where, and by which step.
    mesh = sharding.make_mesh()
    key = jax.random.key(config.train.seed)
    init = functools.partial(init_state, key, network, optimizer, image_shape, averages, history)
    with blame("--network"):
        shapes = jax.eval_shape(init)
    with blame("--devices.axes"):
        sharded = config.devices.state == "sharded"
        layout = sharding.divided(mesh, shapes, config.devices.axes) if sharded else sharding.replicated(mesh)
    with blame("--train.batch_size"):
        sharding.check_batch_size(mesh, config.train.batch_size, config.train.accumulate)
    with blame("--data"):
        batches = pipeline.batches(
            source, config.train.batch_size, config.train.seed,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
    train_step = make_train_step(
        key, network, loss, draw_times, optimizer, learning_rate, averages, schedule.num_steps,
        accumulate=config.train.accumulate, num_classes=config.network.num_classes,
        label_dropout=config.train.label_dropout, random_flip=config.data.random_flip,
        gather=functools.partial(sharding.gather, mesh),
    )  # fmt: skip

    if config.train.tensorboard:
        with blame("--train.tensorboard"):
            writers.require_tensorboard()

    with contextlib.ExitStack() as stack:
        # From the last checkpoint, or from the start.
        workdir = stack.enter_context(claim(config)) if first else pathlib.Path(config.workdir)
        distributed.wait("claim")
        terminal = stack.enter_context(contextlib.closing(writers.Terminal(config.train.num_steps)))
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.best, terminal.say)
        )
        parts, begun = restore(checkpoints, config, image_shape, sharding.placed(shapes, layout).parts())
        if parts is None:
            state = sharding.create(init, layout)
        elif parts.keys() == {"params"}:
            state = sharding.create(lambda params: begin(params, optimizer, averages, history), layout, parts["params"])
        else:
            state = TrainState.of(parts)
        start = int(state.step)

        # What is written down.
        with blame("--workdir"):
            outputs = writers.make_writers(workdir, start, config.train.tensorboard) if first else []
            if first:
                write_config(workdir, config)
        for output in outputs:
            stack.enter_context(contextlib.closing(output))
        record = Record(
            terminal, outputs, config.train.log_every, config.train.num_steps, config.train.batch_size, begun.get("sums")
        )
        powers = [factory.power_name(width) for width in config.ema.power]
        snapshots = stack.enter_context(Snapshots(workdir, powers, config.ema.snapshot_every, config.ema.snapshots))
        saver = Saver(checkpoints, record, describe(config, image_shape), config.checkpoint.every)

        def draw_grid(state: TrainState) -> None:
            params, ids = sharding.copies(mesh, state.ema[drawn_with]), sharding.put_ids(mesh, range(config.sample.num))
            image = sharding.copies(mesh, draw(jax.random.key(config.sample.seed), params, ids))
            if first:
                images.save_grid(workdir / "samples" / f"{int(state.step)}.png", jax.device_get(image))

        terminal.begin(start)
        steps_per_call = config.train.steps_per_call
        if steps_per_call is None:
            steps_per_call = loop.default_steps_per_call(everies(config).values())
        terminal.say(
            f"{workdir}: {num_params(state.params):,} parameters, {len(source):,} images of {image_shape}, "
            f"{mesh.size} x {jax.devices()[0].device_kind}, from step {start} to {config.train.num_steps}"
            f"{f', {steps_per_call} steps a call' if steps_per_call > 1 else ''}"
        )
        data = stack.enter_context(contextlib.closing(pipeline.iterate(batches, start)))
        loop.train(
            state, train_step, data, mesh, config.train.num_steps, record=record, saver=saver, snapshots=snapshots,
            draw=draw_grid, draw_every=config.train.sample_every, preemption=stack.enter_context(Preemption()),
            steps_per_call=steps_per_call,
        )  # fmt: skip
        terminal.say(f"samples are in {workdir / 'samples'}; for more: python sample.py --workdir {workdir}")


if __name__ == "__main__":
    run_script(main)
