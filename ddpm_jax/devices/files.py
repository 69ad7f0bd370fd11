"""Atomic writes: a file or folder appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path for a file or folder, which is renamed to `path` on success and deleted otherwise."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise


def atomic_write(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Writes a file atomically.

    Args:
        path: The file.
        write: Called with the file, open for binary writing.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        write(file)
