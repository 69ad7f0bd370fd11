"""When to save, and the retry policy for failed saves."""

from __future__ import annotations

import time
from typing import Any

import jax

from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.training.metrics import MetricLog
from ddpm_jax.training.state import TrainState

TRIES, PAUSE = 3, 5.0
"""Attempts at the last save of a run, and the seconds between them."""


class Saver:
    """Saves training states together with the sums of the metric log.

    Multiple processes save together, and none knows whether another has failed, so that they do not retry.

    Args:
        checkpoints: The checkpoints of the run.
        log: Its lines are written to disk before each checkpoint, and its sums are part of the checkpoint.
        metadata: JSON to store beside the arrays.
        every: Steps between saves. A failed save is retried after a tenth of them.
    """

    def __init__(self, checkpoints: Checkpoints, log: MetricLog, metadata: dict[str, Any], every: int):
        self._checkpoints, self._log, self._metadata, self._every = checkpoints, log, metadata, every
        self._alone = jax.process_count() == 1
        self._tried = 0

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        again = self._checkpoints.failed and self._alone
        return step % self._every == 0 or (again and step - self._tried >= self._every // 10)

    def save(self, step: int, state: TrainState, is_last: bool = False) -> None:
        """Begins to save; a failure is reported, now or later, and training may continue.

        Args:
            step: The step of the state.
            state: Copied first, because the next step will overwrite it.
            is_last: Whether there is no next step, so that no copy is needed.
        """
        self._tried = step
        self._checkpoints.retry = self._retry(is_last)
        parts = state.parts() if is_last else self._checkpoints.copy(step, state.parts())
        if parts is None:
            return
        try:
            self._log.flush()
        except OSError as error:
            self._checkpoints.wait()
            self._checkpoints.fail(step, error)
            if self._alone:
                return
        metadata = self._metadata | {"sums": self._log.sums()}
        self._checkpoints.save(step, parts, metadata, self._log.loss_since_save())

    def _retry(self, is_last: bool) -> str:
        """What follows if a save fails, for its report."""
        if is_last:
            return ""
        every = max(self._every // 10, 1) if self._alone else self._every
        return f"trying again {f'every {every} steps' if every > 1 else 'at every step'}"

    def finish(self, step: int, state: TrainState) -> bool:
        """Waits until the last state is saved, with retries.

        Returns:
            Whether it is saved.
        """
        for _ in range(TRIES - 1 if self._alone else 0):
            self._checkpoints.wait()
            if not self._checkpoints.failed:
                return True
            time.sleep(PAUSE)
            self.save(step, state, is_last=True)
        self._checkpoints.wait()
        return not self._checkpoints.failed
