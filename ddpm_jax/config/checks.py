"""Checks of a config on its own, and the changes that a run may resume with."""

from __future__ import annotations

import math

from ddpm_jax.config.cli import UsageError, options
from ddpm_jax.config.schema import Config

MAY_CHANGE = (
    "workdir", "data.path", "data.data_dir", "optimizer.", "train.num_steps", "train.accumulate", "train.steps_per_call",
    "train.log_every", "train.sample_every", "train.remat", "train.tensorboard", "train.wandb", "sample.", "checkpoint.",
    "devices.", "ema.decay", "ema.half_life", "ema.warmup", "ema.snapshot",
)  # fmt: skip
"""Fields whose values may change when a run is resumed; the others decide its results. A new EMA starts at the parameters,
except `ema.power`, whose profile covers the whole run: its widths may only become fewer."""

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
            may = may or (name == "ema.power" and set(now[name]) < set(before[name]))
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
    "network.channels", "network.num_blocks", "network.num_groups", "network.num_heads", "network.head_dim",
    "network.num_classes", "network.norm_eps", "network.width", "network.depth", "network.patch", "loss.times_std",
    "optimizer.learning_rate", "optimizer.clip_norm", "train.num_steps", "train.batch_size", "train.accumulate",
    "train.steps_per_call", "train.log_every", "train.sample_every", "sample.num", "sample.gamma_images", "data.image_size",
    "data.max_pixels", "checkpoint.every", "checkpoint.keep", "ema.snapshot_every", "ema.snapshots", "devices.timeout",
)  # fmt: skip
NOT_NEGATIVE = ("checkpoint.best", "optimizer.warmup_steps", "optimizer.weight_decay")
FRACTIONS = ("network.dropout", "train.label_dropout", "diffusion.beta_start", "diffusion.beta_end", "ema.decay")
"""Numbers in [0, 1)."""
AT_MOST = {
    "diffusion.num_steps": 1_000_000, "sample.steps": 1_000_000, "sample.num": 10_000, "sample.num_restarts": 1000,
    "network.num_blocks": 1000, "network.depth": 1000, "network.width": 1_000_000, "network.channels": 1_000_000,
    "network.num_classes": 1_000_000, "data.image_size": 16_384,
    "train.accumulate": 10_000, "train.steps_per_call": 10_000, "train.num_steps": 2**31 - 1, "train.batch_size": 2**31 - 1,
    "optimizer.warmup_steps": 2**31 - 1,
}  # fmt: skip
"""Limits far above any use, so that a number with too many digits is refused before it takes memory or time."""


def check(config: Config) -> None:
    """Raises UsageError for numbers that are out of range whatever else is chosen; None passes."""
    values = {name: value for name, value in options(config).items() if value is not None}
    for name, value in values.items():
        if any(number != number for number in (value if isinstance(value, tuple) else [value])):
            raise UsageError(f"--{name}: expected a number, received {value}")
    if not config.workdir:
        raise UsageError("--workdir: expected a folder, received an empty name")
    for name, limit in AT_MOST.items():
        if values.get(name, 0) > limit:
            raise UsageError(f"--{name}: expected at most {limit:,}, received {values[name]:,}")
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
    for name in ("optimizer.learning_rate", "optimizer.weight_decay", "loss.times_mean", "loss.times_std"):
        if not math.isfinite(values[name]):
            raise UsageError(f"--{name}: expected a finite number, received {values[name]}")
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise UsageError(f"--optimizer.betas: expected 0 or more and below 1, received {config.optimizer.betas}")
    for name in ("train.seed", "sample.seed"):
        check_seed(f"--{name}", values[name])
    if config.devices.axes and config.devices.state != "sharded":
        raise UsageError(f"--devices.axes: expected with --devices.state sharded, received with {config.devices.state}")
    multipliers = values.get("network.multipliers", (1,))
    if not multipliers or min(multipliers) < 1:
        raise UsageError(f"--network.multipliers: expected positive integers, received {multipliers}")
