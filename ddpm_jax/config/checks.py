"""Which configs are refused whatever else is chosen, and which changes a run may resume with."""

from __future__ import annotations

import math

from ddpm_jax.config.cli import UsageError, options
from ddpm_jax.config.schema import Config

MAY_CHANGE = (
    "workdir", "data.path", "data.data_dir", "optimizer.learning_rate", "train.num_steps", "train.accumulate",
    "train.steps_per_call", "train.log_every", "train.sample_every", "train.remat", "train.tensorboard", "sample.",
    "checkpoint.", "devices.", "ema.snapshot",
)  # fmt: skip
"""Fields that a run may resume with other values of; the others decide what it is."""

IMPORTED = ("network.", "diffusion.")
"""Fields that weights from elsewhere decide; what they are trained on and how is open until they are."""


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """What differs between the config of a run and that to resume it with.

    Returns:
        Differences that are allowed (MAY_CHANGE) and those that are not, each as "train.num_steps: 100 -> 200".
    """
    allowed: list[str] = []
    refused: list[str] = []
    now = options(new)
    for name, before in options(old).items():
        if before != now[name]:
            may = not name.startswith(IMPORTED) if old.data.source is None else name.startswith(MAY_CHANGE)
            (allowed if may else refused).append(f"{name}: {before} -> {now[name]}")
    return allowed, refused


def intervals(config: Config) -> dict[str, int]:
    """The fields that say what is done every so many steps, with their values."""
    names = ["train.log_every", "train.sample_every", "checkpoint.every", *(["ema.snapshot_every"] if config.ema.power else [])]
    return {name: options(config)[name] for name in names}


def check_seed(option: str, seed: int) -> None:
    """Raises UsageError for a seed that JAX cannot take."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"{option}: expected 0 to 4294967295, received {seed}")


def check(config: Config) -> None:
    """Raises UsageError for numbers that are out of range whatever else is chosen."""
    positive = {
        "network.channels": config.network.channels,
        "network.num_blocks": config.network.num_blocks,
        "network.num_groups": config.network.num_groups,
        "network.num_heads": config.network.num_heads,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.clip_norm": config.optimizer.clip_norm,
        "train.num_steps": config.train.num_steps,
        "train.batch_size": config.train.batch_size,
        "train.accumulate": config.train.accumulate,
        "train.steps_per_call": 1 if config.train.steps_per_call is None else config.train.steps_per_call,
        "train.log_every": config.train.log_every,
        "train.sample_every": config.train.sample_every,
        "sample.num": config.sample.num,
        "network.num_classes": 1 if config.network.num_classes is None else config.network.num_classes,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "ema.snapshot_every": config.ema.snapshot_every,
        "ema.snapshots": config.ema.snapshots,
        "devices.timeout": config.devices.timeout,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UsageError(f"--{name}: expected a positive number, received {value}")
    for name, every in intervals(config).items():
        if config.train.steps_per_call is not None and every % config.train.steps_per_call:
            raise UsageError(
                f"--train.steps_per_call: expected a divisor of --{name} {every}, received {config.train.steps_per_call}"
            )
    if not math.isfinite(config.optimizer.learning_rate):
        raise UsageError(f"--optimizer.learning_rate: expected a finite number, received {config.optimizer.learning_rate}")
    if config.checkpoint.best < 0:
        raise UsageError(f"--checkpoint.best: expected 0 or more, received {config.checkpoint.best}")
    if config.optimizer.warmup_steps < 0:
        raise UsageError(f"--optimizer.warmup_steps: expected 0 or more, received {config.optimizer.warmup_steps}")
    if config.data.image_size is not None and config.data.image_size < 1:
        raise UsageError(f"--data.image_size: expected a positive number, received {config.data.image_size}")
    for name, seed in {"train.seed": config.train.seed, "sample.seed": config.sample.seed}.items():
        check_seed(f"--{name}", seed)
    shares = {
        "network.dropout": config.network.dropout,
        "train.label_dropout": config.train.label_dropout,
        "diffusion.beta_start": config.diffusion.beta_start,
        "diffusion.beta_end": config.diffusion.beta_end,
        "ema.decay": 0.0 if config.ema.decay is None else config.ema.decay,
    }
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UsageError(f"--{name}: expected 0 or more and below 1, received {share}")
    if config.devices.axes and config.devices.state != "sharded":
        raise UsageError(f"--devices.axes: expected with --devices.state sharded, received with {config.devices.state}")
    if not config.network.multipliers or min(config.network.multipliers) < 1:
        raise UsageError(f"--network.multipliers: expected positive integers, received {config.network.multipliers}")
