"""When a run is saved, and the retry policy for saves that fail."""

from __future__ import annotations

import time
from typing import Any

import jax

from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.training.metrics import MetricLog
from ddpm_jax.training.state import TrainState

TRIES, PAUSE = 3, 5.0
"""How often the last save of a run is tried, and how many seconds apart."""


class Saver:
    """Saves states with the record of the run.

    Several processes save together, and none knows whether another has failed: then nothing is tried again.

    Args:
        checkpoints: Where to.
        log: Its lines are on the disk before the checkpoint is, and its sums are part of it.
        metadata: JSON to keep beside the arrays.
        every: Steps between saves. A save that failed is tried again after a tenth of them.
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
        """Begins to save; a failure is reported, then or later, and training may go on.

        Args:
            step: The state's.
            state: Copied first, since the next step will overwrite it.
            is_last: Whether there is no next step, and no copy.
        """
        self._tried = step
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

    def finish(self, step: int, state: TrainState) -> bool:
        """Waits until the last state is saved; if that fails, tries again.

        Returns:
            Whether it is.
        """
        for _ in range(TRIES - 1 if self._alone else 0):
            self._checkpoints.wait()
            if not self._checkpoints.failed:
                return True
            time.sleep(PAUSE)
            self.save(step, state, is_last=True)
        self._checkpoints.wait()
        return not self._checkpoints.failed
