"""Checkpoints: `checkpoints/<step>/` with everything that decides the next step; arrays by Orbax, sums of all files beside.

A checkpoint gets its name last, when all of it is on the disk with `SHA256SUMS`, which `sha256sum -c` reads too: a killed run
leaves an unfinished one under another name. One whose files differ from their sums is passed over for the one before, loudly.
Anything else that cannot be read is refused, and never taken for a fresh start.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Self, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ddpm_jax import array_files
from ddpm_jax.aside import Aside, make_set_aside

Tree = Any
T = TypeVar("T")

SUMS = "SHA256SUMS"
METADATA = "metadata.json"

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for a save under way.

    Args:
        folder: Where they lie, `<workdir>/checkpoints`; made by the first save.
        keep: How many of the latest are kept, or what picks the kept ones of all steps; the rest, and what a killed run left
            unfinished, is removed. None to read only, also beside a run that is alive.
        best: How many of those saved with the smallest loss are kept besides.
        report: Told of what is passed over and of saves that fail.

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
        for name in array_files.NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.failed = False
        self._folder = pathlib.Path(folder).absolute()
        self._keep, self._best, self._report = keep, best, report
        self._damaged: dict[int, str] = {}
        self._whole: set[int] = set()
        self._under_way: concurrent.futures.Future[None] | None = None
        self._set_aside: Callable[[Tree], Aside] | None = None
        if keep is not None:
            self._remove_unfinished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, but for those found to be damaged; ascending."""
        found = (int(path.name) for path in self._folder.glob("*") if path.name.isdecimal() and path.is_dir())
        return sorted(step for step in found if step not in self._damaged)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint whose files are as they were written, or None before the first.

        Raises:
            ValueError: there are some, and all are damaged.
            OSError: one cannot be read, which is another matter: it may be whole.
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

    def pass_over(self, after: int) -> None:
        """Takes those after a step for damaged: for a process that was told the `latest` by another, which has looked."""
        self._damaged |= {step: "as another process found" for step in self.steps if step > after}

    def find(self, which: int | str) -> int:
        """The step of one that was asked for: this step itself, or "best", that of the smallest loss it was saved with.

        Raises:
            ValueError: there is none such, or it is damaged.
        """
        steps = self.steps
        step = min(steps, key=self._loss, default=None) if which == "best" else which
        if step not in steps:
            raise ValueError(f"checkpoint: expected best or one of {steps} in {self._folder}, received {which}")
        if damage := _damage(self._folder / str(step)):
            raise ValueError(f"checkpoint: expected one that is as it was written, in {self._folder / str(step)} {damage}")
        return int(step)

    def save(self, step: int, parts: dict[str, Tree] | Aside, metadata: dict[str, Any], loss: float = 0.0) -> None:
        """Saves in the background; waits only for a save that is still under way.

        A save that fails is reported, and `failed` then; the checkpoints before it are kept.

        Args:
            step: Names the checkpoint; one that exists already is left as it is.
            parts: Trees of arrays by name, which `load` can read one by one; where the arrays will be donated, a `copy`.
            metadata: JSON to keep beside them.
            loss: By which the best are known.
        """
        self.wait()
        if step in self.steps:
            return
        begun = None
        if jax.process_count() > 1:  # they begin together, in the order of what else they do together
            try:
                begun = array_files.begin(self._unfinished(step), _tree(parts))
            except Exception as error:  # of a wide choice, as below
                self.fail(step, error)
                return
        priority = array_files.give_way if isinstance(parts, Aside) else None  # for a copy is of what training goes on with
        background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint", priority)
        self._under_way = background.submit(self._save, step, parts, begun, {"loss": loss} | metadata)
        background.shutdown(wait=False)

    def copy(self, step: int, parts: dict[str, Tree]) -> Aside | None:
        """Copies arrays for a `save` to come, so that they may be donated; waits only for a save that is still under way.

        All that are copied have the shapes, dtypes and shardings of the first.

        Returns:
            The copy, or None where it failed, which is reported.
        """
        self.wait()
        try:
            self._set_aside = self._set_aside or make_set_aside(parts, _is_written_apart())
            return self._set_aside(parts)
        except Exception as error:  # JAX's, or where it is called again, XLA's own
            self.fail(step, error)
            return None

    def prepare(self, parts: dict[str, Tree], needed: int) -> None:
        """Does what the first `copy` and its `save` would take longer for: compiles, takes memory, begins a process.

        Args:
            parts: What is to be copied.
            needed: Bytes that each device needs besides what it holds, for programs to come.
        """
        with contextlib.suppress(Exception):  # which the first save reports, should it come again
            self._set_aside = make_set_aside(parts, _is_written_apart(), needed)
            copy = self._set_aside(parts)
            if _is_written_apart():
                array_files.APART.start()
                for a in copy.arrays:
                    np.asarray(a)

    def wait(self) -> None:
        """Waits for a save under way."""
        if self._under_way is not None:
            self._under_way.result()
        self._under_way = None

    def _unfinished(self, step: int) -> pathlib.Path:
        return self._folder / f"{step}.unfinished"

    def _write(self, folder: pathlib.Path, parts: dict[str, Tree] | Aside) -> None:
        """Writes arrays: copies of what training goes on with by a process apart, and by this one, loudly, where that fails."""
        jax.block_until_ready(parts.arrays if isinstance(parts, Aside) else parts)  # what follows keeps Python from the loop
        folder.mkdir(parents=True, exist_ok=True)  # where that fails, Orbax's threads would wait five minutes for it
        if isinstance(parts, Aside) and _is_written_apart():
            try:
                array_files.APART.write(folder, parts)
                return
            except Exception as error:  # a pipe's, a pickle's, of memory, or what Orbax said there
                self._report(f"step {folder.stem} is saved by this process, for another could not: {_one_line(error)}")
        array_files.begin(folder, _tree(parts)).result()

    def _save(self, step: int, parts: dict[str, Tree] | Aside, begun: Any, metadata: dict[str, Any]) -> None:
        """Writes the arrays, or waits for what was begun; adds what else there is, names it, and removes those not kept."""
        unfinished, finished = self._unfinished(step), self._folder / str(step)
        try:
            self._write(unfinished, parts) if begun is None else begun.result()
            if jax.process_index() == 0:
                (unfinished / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
                _write_sums(unfinished)
                self._set_damaged_aside()
                unfinished.rename(finished)
                _sync(self._folder)
        except Exception as error:
            self.fail(step, error)
            return
        self.failed = False
        self._whole.add(step)
        if jax.process_index() == 0 and self._keep is not None:
            latest = self._keep(self.steps) if callable(self._keep) else self.steps[-self._keep :]
            kept = {*latest, *sorted(self.steps, key=self._loss)[: self._best]}
            for old in set(self.steps) - kept:
                (self._folder / str(old)).rename(self._folder / f"{old}.unfinished")  # at once, or not at all
            self._remove_unfinished()

    def fail(self, step: int, error: Exception) -> None:
        """Reports that a step can't be saved, and makes room for another try."""
        self.failed = True
        with contextlib.suppress(OSError):
            self._remove_unfinished()
        last = max(self.steps, default=None)
        kept = "there is none before it" if last is None else f"the one of step {last} is kept"
        self._report(f"CANNOT SAVE step {step}: {_one_line(error)}; {kept}")

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for path in self._folder.glob("*.unfinished*"):
                shutil.rmtree(path, ignore_errors=True)

    def _set_damaged_aside(self) -> None:
        """Renames the damaged ones to `<step>.damaged`, now that there is a checkpoint newer than what was lost with them."""
        for step in self._damaged:
            aside = self._folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # it was done before
                (self._folder / str(step)).rename(aside)
        self._damaged.clear()

    def _loss(self, step: int) -> float:
        try:
            return float(self.metadata(step)["loss"])
        except (ValueError, KeyError, TypeError):
            return float("inf")

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
            step: Of a checkpoint.
            parts: For each part to load, its shapes, dtypes and shardings, as from `jax.eval_shape`.

        Returns:
            The parts, by name.

        Raises:
            ValueError: the checkpoint cannot be read, or holds other arrays.
        """
        with self._refusing(step):
            return ocp.load_checkpointables(self._folder / str(step), parts)

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
            raise self._cannot_read(step, error) from error

    def _cannot_read(self, step: int, error: Exception) -> ValueError:
        return ValueError(f"expected a checkpoint in {self._folder / str(step)}, cannot read it: {_one_line(error)}")


def _is_written_apart() -> bool:
    """Whether a copy is: not on CPU, whose steps take longer, nor by several processes, which save together."""
    return jax.default_backend() != "cpu" and jax.process_count() == 1


def _tree(parts: dict[str, Tree] | Aside) -> dict[str, Tree]:
    tree: dict[str, Tree] = parts.tree() if isinstance(parts, Aside) else parts
    return tree


def _one_line(error: Exception) -> str:
    words = " ".join((str(error) if str(error) else repr(error)).split())
    return words if len(words) < 200 else f"{words[:200]}..."


def _files(folder: pathlib.Path) -> list[str]:
    """All files of a checkpoint by their relative paths, but for the sums."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != SUMS)


def _sum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_sums(folder: pathlib.Path) -> None:
    """Writes SHA256SUMS, a line a file: its sum, two spaces, its relative path."""
    sums = folder / SUMS
    sums.write_text("".join(f"{_sum(folder / name)}  {name}\n" for name in _files(folder)))
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _damage(folder: pathlib.Path) -> str:
    """The first file that is not as it was written, and why; empty where all are."""
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
