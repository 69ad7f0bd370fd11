"""When a run is saved, and what becomes of saves that fail."""

from __future__ import annotations

import time
from typing import Any

import jax

from ddpm_jax.aside import Aside
from ddpm_jax.checkpoint import Checkpoints
from ddpm_jax.training.record import Record
from ddpm_jax.training.state import TrainState

TRIES, PAUSE = 3, 5.0
"""How often the last save of a run is tried, and how many seconds apart."""


class Saver:
    """Saves states with the record of the run.

    Several processes save together, and none knows whether another has failed: then nothing is tried again.

    Args:
        checkpoints: Where to.
        record: Its lines are on the disk before the checkpoint is, and its sums are part of it.
        metadata: JSON to keep beside the arrays.
        every: Steps between saves. A save that failed is tried again after a tenth of them.
    """

    def __init__(self, checkpoints: Checkpoints, record: Record, metadata: dict[str, Any], every: int):
        self._checkpoints, self._record, self._metadata, self._every = checkpoints, record, metadata, every
        self._alone = jax.process_count() == 1
        self._tried = 0

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        again = self._checkpoints.failed and self._alone
        return step % self._every == 0 or (again and step - self._tried >= self._every // 10)

    def prepare(self, state: TrainState, needed: int) -> None:
        """Does what the first save would take longer for; needed are the bytes that a device needs for a step besides."""
        self._checkpoints.prepare(state.parts(), needed)

    def copy(self, step: int, state: TrainState) -> Aside | None:
        """A copy to give to `save`, of a state that will be donated; None where that fails, which is reported."""
        self._tried = step
        return self._checkpoints.copy(step, state.parts())

    def save(self, step: int, parts: dict[str, Any] | Aside) -> None:
        """Begins to save; a failure is reported, then or later, and training may go on.

        Args:
            step: The state's.
            parts: Of a state that is not donated; else a `copy`.
        """
        try:
            self._record.flush()
        except OSError as error:
            self._checkpoints.wait()
            self._checkpoints.fail(step, error)
            if self._alone:
                return
        metadata = self._metadata | {"sums": self._record.sums()}
        self._checkpoints.save(step, parts, metadata, self._record.loss_since_save())

    def finish(self, step: int, state: TrainState) -> bool:
        """Waits until the last state, whose parts were given to `save`, is saved; where that fails, tries again.

        Returns:
            Whether it is.
        """
        for _ in range(TRIES - 1 if self._alone else 0):
            self._checkpoints.wait()
            if not self._checkpoints.failed:
                return True
            time.sleep(PAUSE)
            self.save(step, state.parts())
        self._checkpoints.wait()
        return not self._checkpoints.failed
