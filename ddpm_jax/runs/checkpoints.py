"""Checkpoints: `checkpoints/<step>/` holds everything the next step depends on; Orbax writes the arrays.

A checkpoint gets its final name only when all of it is on disk, including `SHA256SUMS`, which `sha256sum -c` can read: a
killed run leaves an unfinished one under another name. A checkpoint that fails its checksums is skipped with a warning, and
the previous one is used. Any other read error is raised, never mistaken for a fresh start.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

from ddpm_jax.runs.failures import Failures, cause, quiet_orbax
from ddpm_jax.runs.state_copies import make_copy

Tree = Any

SUMS = "SHA256SUMS"
METADATA = "metadata.json"

logger = logging.getLogger(__name__)

_begin_lock = threading.Lock()
"""Guards Orbax's count of its saves: a checkpoint and a snapshot may begin at the same time."""


class Checkpoints:
    """The checkpoints of one run; as a context manager, it waits for a pending save.

    Args:
        folder: `<workdir>/checkpoints`; created by the first save.
        keep: Number of latest checkpoints to keep, or a function from all steps to those to keep. The others are deleted,
            as is anything unfinished that a killed run left behind. None: read only, which is safe beside a live run.
        best: Number of checkpoints with the smallest loss to keep in addition.
        report: Called with one line per skipped checkpoint, and for failed saves at most once per minute.

    Attributes:
        failed: Whether the last completed save failed.
        retry: When a failed save is tried again, for its line, such as "trying again every 5 steps".
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int | Callable[[Sequence[int]], Collection[int]] | None = None,
        best: int = 0,
        report: Callable[[str], None] = logger.warning,
    ):
        quiet_orbax()
        self.failed, self.retry = False, ""
        self._failures = Failures(report)
        self._folder = pathlib.Path(folder).absolute()
        self._keep, self._best, self._report = keep, best, report
        self._damaged: dict[int, str] = {}
        self._intact: set[int] = set()
        self._pending: concurrent.futures.Future[None] | None = None
        self._copy: Callable[[dict[str, Tree]], dict[str, Tree]] | None = None
        if keep is not None:
            self._remove_unfinished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints except those found to be damaged; ascending."""
        found = (int(path.name) for path in self._folder.glob("*") if path.name.isdecimal() and path.is_dir())
        return sorted(step for step in found if step not in self._damaged)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint that passes its checksums, or None if there are no checkpoints.

        Raises:
            ValueError: there are checkpoints, but all are damaged.
            OSError: a file cannot be read, so that the checkpoint may or may not be intact.
        """
        skipped = []
        for step in reversed(self.steps):
            if step not in self._intact and (damage := _damage(self._folder / str(step))):
                self._damaged[step] = damage
                skipped.append(step)
                continue
            self._intact.add(step)
            for newer in skipped:
                damaged = f"checkpoint {self._folder / str(newer)} is damaged, {self._damaged[newer]}"
                self._report(f"{damaged}: step {step} is used instead of {newer}")
            return step
        if self._damaged:
            each = "; ".join(f"{step}: {damage}" for step, damage in sorted(self._damaged.items()))
            raise ValueError(f"expected an intact checkpoint in {self._folder}, all are damaged: {each}")
        return None

    def mark_damaged(self, after: int) -> None:
        """Marks later checkpoints as damaged, on a process that received `latest` from the one that checked."""
        self._damaged |= {step: "as another process found" for step in self.steps if step > after}

    def find(self, which: int | str) -> int:
        """The step of a checkpoint: `which` itself, or for "best" the one with the smallest loss.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged.
        """
        steps = self.steps
        step = min(steps, key=self._loss, default=None) if which == "best" else which
        if step not in steps:
            raise ValueError(f"checkpoint: expected best or one of {steps} in {self._folder}, received {which}")
        if damage := _damage(self._folder / str(step)):
            raise ValueError(f"checkpoint: expected an intact one, received {self._folder / str(step)}, in which {damage}")
        return int(step)

    def copy(self, step: int, parts: dict[str, Tree]) -> dict[str, Tree] | None:
        """Copies arrays for a later `save`, so that they may be donated; blocks only while another save is pending.

        All calls take the structure, shapes, dtypes and shardings of the first.

        Returns:
            The copy, or None after a failure, which is reported.
        """
        self.wait()
        try:
            self._copy = self._copy or make_copy(parts)
            return self._copy(parts)
        except Exception as error:  # JAX's own type at the first call, XLA's from the second on
            self.fail(step, error)
            return None

    def save(self, step: int, parts: dict[str, Tree], metadata: dict[str, Any], loss: float = 0.0) -> None:
        """Saves in the background; blocks only while another save is pending.

        A failed save is reported and sets `failed`; earlier checkpoints are kept.

        Args:
            step: Names the checkpoint; an existing one is left as it is.
            parts: Trees of arrays by name, each of which `load` can read alone. If the arrays will be donated, a `copy`.
            metadata: JSON to store beside them.
            loss: Ranks the checkpoint for `best`.
        """
        self.wait()
        if step not in self._damaged and (self._folder / str(step)).is_dir():
            return
        begun = None
        if jax.process_count() > 1:  # all processes begin together, in the same order as their other collectives
            try:
                begun = _begin(self._unfinished(step), parts)
            except Exception as error:  # any type, see `load`
                self.fail(step, error)
                return
        background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending = background.submit(self._save, step, parts, begun, {"loss": loss} | metadata)
        background.shutdown(wait=False)

    def _save(self, step: int, parts: dict[str, Tree], begun: Any, metadata: dict[str, Any]) -> None:
        """Writes the arrays, or waits for the save already begun; completes and names the checkpoint; deletes old ones."""
        unfinished = self._unfinished(step)
        try:
            if begun is None:
                jax.block_until_ready(parts)  # releases Python's lock to training while it waits
                unfinished.mkdir(parents=True, exist_ok=True)  # fails here, or else Orbax's threads would wait five minutes
                begun = _begin(unfinished, parts)
            begun.result()
            if jax.process_index() == 0:
                (unfinished / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
                _write_sums(unfinished)
                self._set_damaged_aside()
                unfinished.rename(self._folder / str(step))
                _sync(self._folder)
        except Exception as error:
            self.fail(step, error)
            return
        self.failed = False
        self._intact.add(step)
        self._failures.succeeded(f"saving works again: step {step} is saved")
        if jax.process_index() == 0 and self._keep is not None:
            with contextlib.suppress(OSError):  # the next save tries again
                self._remove_old(self._keep)

    def wait(self) -> None:
        """Waits for a pending save."""
        if self._pending is not None:
            self._pending.result()
        self._pending = None

    def fail(self, step: int, error: Exception) -> None:
        """Reports that a step cannot be saved, and deletes its partial files."""
        self.failed = True
        kept = ""
        with contextlib.suppress(OSError):
            self._remove_unfinished()
            kept = f"; step {max(self.steps)} is kept" if self.steps else "; there is no earlier checkpoint"
        self._failures.failed(f"CANNOT SAVE step {step}: {cause(error)}{kept}{'; ' if self.retry else ''}{self.retry}")

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON stored beside a checkpoint.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            found = json.loads((self._folder / str(step) / METADATA).read_text())
            if not isinstance(found, dict):
                raise ValueError(f"{METADATA} is {found}")
        except (OSError, ValueError) as error:
            raise self._cannot_read(step, error) from error
        return found

    def parts(self, step: int) -> set[str]:
        """The names of the parts of a checkpoint."""
        return {path.name for path in (self._folder / str(step)).iterdir() if path.is_dir()}

    def load(self, step: int, parts: dict[str, Tree]) -> dict[str, Tree]:
        """Loads parts of a checkpoint.

        Args:
            step: The step of the checkpoint.
            parts: For each part to load, its shapes, dtypes and shardings, as from `sharding.abstract`.

        Returns:
            The parts, by name.

        Raises:
            ValueError: the checkpoint cannot be read, or its arrays have other shapes.
        """
        try:
            return ocp.load_checkpointables(self._folder / str(step), parts)
        except Exception as error:  # any type: Orbax and TensorStore raise many
            raise self._cannot_read(step, error) from error

    def _unfinished(self, step: int) -> pathlib.Path:
        return self._folder / f"{step}.unfinished"

    def _remove_old(self, keep: int | Callable[[Sequence[int]], Collection[int]]) -> None:
        steps = self.steps
        latest = keep(steps) if callable(keep) else steps[-keep:]
        best = sorted(steps, key=self._loss)[: self._best]
        for old in set(steps) - {*latest, *best}:
            (self._folder / str(old)).rename(self._folder / f"{old}.unfinished")  # atomic; deleting a folder is not
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for path in self._folder.glob("*.unfinished*"):
                shutil.rmtree(path, ignore_errors=True)

    def _set_damaged_aside(self) -> None:
        """Renames damaged checkpoints to `<step>.damaged`, now that a newer one is about to replace them."""
        for step in self._damaged:
            aside = self._folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # already done
                (self._folder / str(step)).rename(aside)
        self._damaged.clear()

    def _loss(self, step: int) -> float:
        try:
            return float(self.metadata(step)["loss"])
        except (ValueError, KeyError, TypeError):
            return float("inf")

    def _cannot_read(self, step: int, error: Exception) -> ValueError:
        return ValueError(f"expected a checkpoint in {self._folder / str(step)}, cannot read it: {cause(error)}")


def _begin(folder: pathlib.Path, parts: dict[str, Tree]) -> Any:
    """Begins to write trees of arrays, which must not change until the `result()` of the returned handle returns."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # parameters hardly compress
    context.memory.deepcopy_host_arrays = False
    if jax.process_count() == 1:
        parts = jax.device_get(parts)  # on CPU the same memory; Orbax writes numpy arrays in half the time
    with _begin_lock, context:
        return ocp.save_checkpointables_async(folder, parts, overwrite=True)


def _files(folder: pathlib.Path) -> list[str]:
    """The relative paths of all files of a checkpoint except the checksums."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != SUMS)


def _sum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Flushes a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_sums(folder: pathlib.Path) -> None:
    """Writes SHA256SUMS, one line per file: its checksum, two spaces, its relative path; flushes everything to disk."""
    sums = folder / SUMS
    sums.write_text("".join(f"{_sum(folder / name)}  {name}\n" for name in _files(folder)))
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _damage(folder: pathlib.Path) -> str:
    """Names the first file that fails its checksum, is missing or unlisted; empty if the checkpoint is intact."""
    try:
        lines = (folder / SUMS).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return f"{SUMS} is missing"
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in _files(folder):
        if name not in written:
            return f"{name} is not listed in {SUMS}"
        if _sum(folder / name) != written.pop(name):
            return f"{name} fails its checksum"
    return f"{min(written)} is missing" if written else ""
