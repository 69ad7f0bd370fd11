"""Checkpoints: `checkpoints/<step>/` holds everything that decides the next step; Orbax writes the arrays.

A checkpoint gets its name last, when all of it is on the disk with `SHA256SUMS`, which `sha256sum -c` can read: a killed run
leaves an unfinished one under another name. A checkpoint that fails its checksums is skipped with a warning, and the previous
one is used. One that cannot be read for any other reason is an error, and never mistaken for a fresh start.
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

from ddpm_jax.runs.state_copies import make_copy

Tree = Any

SUMS = "SHA256SUMS"
METADATA = "metadata.json"

NOISY = ("absl", "asyncio")
"""Loggers through which Orbax reports every file that it writes, and every read that a failed one left behind."""

logger = logging.getLogger(__name__)

_beginning = threading.Lock()
"""Guards the part of Orbax that counts its saves: a checkpoint and a snapshot may begin at the same time."""


class Checkpoints:
    """The checkpoints of one run; as a context manager, waits for a save under way.

    Args:
        folder: Where they are, `<workdir>/checkpoints`; created by the first save.
        keep: How many of the latest to keep, or a function from all steps to those to keep. The others are removed, as is
            anything unfinished that a killed run left behind. None: read only, which is safe beside a live run.
        best: How many of those saved with the smallest loss to keep besides.
        report: Called with a line about each checkpoint that is skipped and each save that fails.

    Attributes:
        failed: Whether the last save that ended has failed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int | Callable[[Sequence[int]], Collection[int]] | None = None,
        best: int = 0,
        report: Callable[[str], None] = logger.warning,
    ):
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.failed = False
        self._folder = pathlib.Path(folder).absolute()
        self._keep, self._best, self._report = keep, best, report
        self._damaged: dict[int, str] = {}
        self._whole: set[int] = set()
        self._under_way: concurrent.futures.Future[None] | None = None
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
        """The step of the newest checkpoint that passes its checksums, or None before the first.

        Raises:
            ValueError: there are checkpoints, but all are damaged.
            OSError: a file cannot be read, which says nothing about whether the checkpoint is whole.
        """
        passed_over = []
        for step in reversed(self.steps):
            if step not in self._whole and (damage := _damage(self._folder / str(step))):
                self._damaged[step] = damage
                passed_over.append(step)
                continue
            self._whole.add(step)
            for newer in passed_over:
                damaged = f"checkpoint {self._folder / str(newer)} is damaged, {self._damaged[newer]}"
                self._report(f"{damaged}: step {step} is taken instead of {newer}")
            return step
        if self._damaged:
            each = "; ".join(f"{step}: {damage}" for step, damage in sorted(self._damaged.items()))
            raise ValueError(f"expected a checkpoint in {self._folder}, all are damaged: {each}")
        return None

    def mark_damaged(self, after: int) -> None:
        """Marks the checkpoints after a step as damaged: for a process that was given `latest` by the one that checked."""
        self._damaged |= {step: "as another process found" for step in self.steps if step > after}

    def find(self, which: int | str) -> int:
        """The step of the checkpoint asked for: that of a given step, or "best", the one saved with the smallest loss.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        steps = self.steps
        step = min(steps, key=self._loss, default=None) if which == "best" else which
        if step not in steps:
            raise ValueError(f"checkpoint: expected best or one of {steps} in {self._folder}, received {which}")
        if damage := _damage(self._folder / str(step)):
            raise ValueError(f"checkpoint: expected one that is as it was written, in {self._folder / str(step)} {damage}")
        return int(step)

    def copy(self, step: int, parts: dict[str, Tree]) -> dict[str, Tree] | None:
        """Copies arrays for a `save` to come, so that they may be donated; blocks only while another save is under way.

        Every copy has the structure, shapes, dtypes and shardings of the first.

        Returns:
            The copy, or None after a failure, which is reported.
        """
        self.wait()
        try:
            self._copy = self._copy or make_copy(parts)
            return self._copy(parts)
        except Exception as error:  # JAX's, or from the second call on XLA's own
            self.fail(step, error)
            return None

    def save(self, step: int, parts: dict[str, Tree], metadata: dict[str, Any], loss: float = 0.0) -> None:
        """Saves in the background; blocks only while another save is under way.

        A save that fails is reported and sets `failed`; earlier checkpoints are kept.

        Args:
            step: Names the checkpoint; an existing one is left as it is.
            parts: Trees of arrays by name, which `load` can read one by one. If the arrays will be donated, a `copy`.
            metadata: JSON to keep beside them.
            loss: Ranks the checkpoint among the best.
        """
        self.wait()
        if step in self.steps:
            return
        begun = None
        if jax.process_count() > 1:  # all processes begin together, in order with everything else they do together
            try:
                begun = _begin(self._unfinished(step), parts)
            except Exception as error:  # any type, see `load`
                self.fail(step, error)
                return
        background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._under_way = background.submit(self._save, step, parts, begun, {"loss": loss} | metadata)
        background.shutdown(wait=False)

    def _save(self, step: int, parts: dict[str, Tree], begun: Any, metadata: dict[str, Any]) -> None:
        """Writes the arrays, or waits for what was begun; completes and names the checkpoint; removes those not kept."""
        unfinished = self._unfinished(step)
        try:
            if begun is None:
                jax.block_until_ready(parts)  # leaves the interpreter to training, as what follows does not
                unfinished.mkdir(parents=True, exist_ok=True)  # if it fails here, Orbax's threads don't wait five minutes
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
        self._whole.add(step)
        if jax.process_index() == 0 and self._keep is not None:
            self._remove_old(self._keep)

    def wait(self) -> None:
        """Waits for a save under way."""
        if self._under_way is not None:
            self._under_way.result()
        self._under_way = None

    def fail(self, step: int, error: Exception) -> None:
        """Reports that a step cannot be saved, and removes what was written of it."""
        self.failed = True
        with contextlib.suppress(OSError):
            self._remove_unfinished()
        last = max(self.steps, default=None)
        kept = "there is none before it" if last is None else f"the one of step {last} is kept"
        self._report(f"CANNOT SAVE step {step}: {_one_line(error)}; {kept}")

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON that was saved beside a checkpoint.

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

    def load(self, step: int, parts: dict[str, Tree]) -> dict[str, Tree]:
        """Loads parts of a checkpoint.

        Args:
            step: The checkpoint's.
            parts: For each part to load, its shapes, dtypes and shardings, as from `jax.eval_shape`.

        Returns:
            The parts, by name.

        Raises:
            ValueError: the checkpoint cannot be read, or holds other arrays.
        """
        try:
            return ocp.load_checkpointables(self._folder / str(step), parts)
        except Exception as error:  # Orbax and TensorStore raise all kinds
            raise self._cannot_read(step, error) from error

    def _unfinished(self, step: int) -> pathlib.Path:
        return self._folder / f"{step}.unfinished"

    def _remove_old(self, keep: int | Callable[[Sequence[int]], Collection[int]]) -> None:
        steps = self.steps
        latest = keep(steps) if callable(keep) else steps[-keep:]
        best = sorted(steps, key=self._loss)[: self._best]
        for old in set(steps) - {*latest, *best}:
            (self._folder / str(old)).rename(self._folder / f"{old}.unfinished")  # at once, or not at all
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for path in self._folder.glob("*.unfinished*"):
                shutil.rmtree(path, ignore_errors=True)

    def _set_damaged_aside(self) -> None:
        """Renames damaged checkpoints to `<step>.damaged`, now that a newer one is about to replace what was lost."""
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
        return ValueError(f"expected a checkpoint in {self._folder / str(step)}, cannot read it: {_one_line(error)}")


def _begin(folder: pathlib.Path, parts: dict[str, Tree]) -> Any:
    """Begins to write trees of arrays, which must not change until the returned handle's `result()` is back."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # random digits hardly shrink, and the CPU has better things to do
    context.memory.deepcopy_host_arrays = False
    if jax.process_count() == 1:
        parts = jax.device_get(parts)  # on CPU the same memory; numpy arrays take Orbax half the time
    with _beginning, context:
        return ocp.save_checkpointables_async(folder, parts, overwrite=True)


def _one_line(error: Exception) -> str:
    words = " ".join((str(error) if str(error) else repr(error)).split())
    return words if len(words) < 200 else f"{words[:200]}..."


def _files(folder: pathlib.Path) -> list[str]:
    """The relative paths of all files of a checkpoint except the sums."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != SUMS)


def _sum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_sums(folder: pathlib.Path) -> None:
    """Writes SHA256SUMS, one line per file: its sum, two spaces, its relative path; flushes everything to the disk."""
    sums = folder / SUMS
    sums.write_text("".join(f"{_sum(folder / name)}  {name}\n" for name in _files(folder)))
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _damage(folder: pathlib.Path) -> str:
    """Names the first file that is not as it was written, and why; empty if all are."""
    try:
        lines = (folder / SUMS).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return f"{SUMS} is missing"
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in _files(folder):
        if name not in written:
            return f"{name} has no sum in {SUMS}"
        if _sum(folder / name) != written.pop(name):
            return f"{name} is not as it was written"
    return f"{min(written)} is missing" if written else ""
