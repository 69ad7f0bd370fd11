"""Files and folders that appear at once, or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a path to write a file or folder at; it gets its real name when all is written, or else is removed."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise


def atomic_write(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Writes a file at once, or not at all.

    Args:
        path: The file.
        write: Is given it, open in binary.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        write(file)
