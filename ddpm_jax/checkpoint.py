"""Checkpoints by Orbax: `checkpoints/<step>/` with everything that decides the next step.

A checkpoint appears under its name only once it is complete: a killed run leaves an unfinished one under another name, which
is passed over. Anything else that cannot be read is refused, and never taken for a fresh start.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from orbax.checkpoint import v1 as ocp

Tree = Any


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for a save under way.

    Args:
        folder: Where they lie, `<workdir>/checkpoints`; made by the first save.
        keep: How many of the latest are kept, and that the rest, and what a killed run left unfinished, is removed; None to
            read only, also beside a run that is alive.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int | None = None):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file that it writes
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and every read that a failed one left behind
        self._folder = pathlib.Path(folder).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=keep is not None,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None before the first."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, parts: dict[str, Tree], metadata: dict[str, Any]) -> None:
        """Saves in the background; waits only for a save that is still under way, and for a copy of the arrays.

        Args:
            step: Names the checkpoint; one that exists already is left as it is.
            parts: Trees of arrays by name, which `load` can read one by one.
            metadata: JSON to keep beside them.
        """
        if step not in {checkpoint.step for checkpoint in self._checkpointer.checkpoints}:
            self._checkpointer.save_checkpointables_async(step, parts, force=True, custom_metadata=metadata)

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON that was saved beside a checkpoint.

        Raises:
            ValueError: it cannot be read.
        """
        with self._refusing(step):
            found = self._checkpointer.checkpointables_metadata(step).custom_metadata
            if not isinstance(found, dict):
                raise ValueError(f"metadata is {found}")
            return found

    def load(self, step: int, parts: dict[str, Tree]) -> dict[str, Tree]:
        """Loads parts of a checkpoint.

        Args:
            step: Of a checkpoint.
            parts: For each part to load, its shapes, dtypes and shardings, as from `jax.eval_shape`.

        Returns:
            The parts, by name.

        Raises:
            ValueError: the checkpoint cannot be read, or holds other arrays.
        """
        with self._refusing(step):
            return self._checkpointer.load_checkpointables(step, parts)

    @contextlib.contextmanager
    def _refusing(self, step: int) -> Iterator[None]:
        """Turns whatever Orbax and TensorStore raise, which is a wide choice, into one ValueError.

        After a failure their threads print the same traceback hundreds of times, until the process ends: from then on
        sys.stderr is the bin, and sys.__stderr__ what it was.
        """
        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            yield
            sys.stderr = stderr
        except Exception as error:
            reason = " ".join((str(error) if str(error) else repr(error)).split())[:200]
            raise ValueError(f"expected a checkpoint in {self._folder / str(step)}, cannot read it: {reason}") from error
