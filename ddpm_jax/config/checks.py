"""Checks of a config on its own, and the changes that a run may resume with."""

from __future__ import annotations

import math

from ddpm_jax.config.cli import UsageError, options
from ddpm_jax.config.schema import Config

MAY_CHANGE = (
    "workdir", "data.path", "data.data_dir", "optimizer.learning_rate", "train.num_steps", "train.accumulate",
    "train.steps_per_call", "train.log_every", "train.sample_every", "train.remat", "train.tensorboard", "sample.",
    "checkpoint.", "devices.", "ema.snapshot",
)  # fmt: skip
"""Fields whose values may change when a run is resumed; the others decide its results."""

IMPORTED = ("network.", "diffusion.")
"""Fields that are fixed by imported weights; how these are trained is open until they are."""


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The differences between the config of a run and that to resume it with.

    Returns:
        Differences that are allowed (MAY_CHANGE) and those that are not, each as "train.num_steps: 100 -> 200". Fields that
        only one of two kinds has follow from the change of kind.
    """
    allowed: list[str] = []
    refused: list[str] = []
    before, now = options(old), options(new)
    for name in before:
        if name in now and before[name] != now[name]:
            may = not name.startswith(IMPORTED) if old.data.source is None else name.startswith(MAY_CHANGE)
            (allowed if may else refused).append(f"{name}: {before[name]} -> {now[name]}")
    return allowed, refused


def intervals(config: Config) -> dict[str, int]:
    """The fields that are intervals in steps, with their values."""
    names = ["train.log_every", "train.sample_every", "checkpoint.every", *(["ema.snapshot_every"] if config.ema.power else [])]
    return {name: options(config)[name] for name in names}


def check_seed(option: str, seed: int) -> None:
    """Raises UsageError for a seed that JAX cannot take."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"{option}: expected 0 to 4294967295, received {seed}")


POSITIVE = (
    "network.channels", "network.num_blocks", "network.num_groups", "network.num_heads", "network.num_classes",
    "optimizer.learning_rate", "optimizer.clip_norm", "train.num_steps", "train.batch_size", "train.accumulate",
    "train.steps_per_call", "train.log_every", "train.sample_every", "sample.num", "sample.gamma_images", "data.image_size",
    "data.max_pixels", "checkpoint.every", "checkpoint.keep", "ema.snapshot_every", "ema.snapshots", "devices.timeout",
)  # fmt: skip
NOT_NEGATIVE = ("checkpoint.best", "optimizer.warmup_steps")
FRACTIONS = ("network.dropout", "train.label_dropout", "diffusion.beta_start", "diffusion.beta_end", "ema.decay")
"""Numbers in [0, 1)."""


def check(config: Config) -> None:
    """Raises UsageError for numbers that are out of range whatever else is chosen; None passes."""
    values = {name: value for name, value in options(config).items() if value is not None}
    for name in POSITIVE:
        if name in values and not values[name] > 0:
            raise UsageError(f"--{name}: expected a positive number, received {values[name]}")
    for name in NOT_NEGATIVE:
        if values[name] < 0:
            raise UsageError(f"--{name}: expected 0 or more, received {values[name]}")
    for name in FRACTIONS:
        if not 0 <= values.get(name, 0) < 1:
            raise UsageError(f"--{name}: expected 0 or more and below 1, received {values[name]}")
    for name, every in intervals(config).items():
        if config.train.steps_per_call is not None and every % config.train.steps_per_call:
            raise UsageError(
                f"--train.steps_per_call: expected a divisor of --{name} {every}, received {config.train.steps_per_call}"
            )
    if not math.isfinite(config.optimizer.learning_rate):
        raise UsageError(f"--optimizer.learning_rate: expected a finite number, received {config.optimizer.learning_rate}")
    for name in ("train.seed", "sample.seed"):
        check_seed(f"--{name}", values[name])
    if config.devices.axes and config.devices.state != "sharded":
        raise UsageError(f"--devices.axes: expected with --devices.state sharded, received with {config.devices.state}")
    multipliers = values.get("network.multipliers", (1,))
    if not multipliers or min(multipliers) < 1:
        raise UsageError(f"--network.multipliers: expected positive integers, received {multipliers}")
