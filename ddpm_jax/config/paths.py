"""Paths that the user gives: local ones, in which ~ is the home folder."""

from __future__ import annotations

import os
import re
from typing import Annotated

import tyro

IS_PATH = tyro.conf.arg(metavar="PATH")
LocalPath = Annotated[str, IS_PATH]
"""The type of options that are paths; `values.checked` makes each `local`."""


def local(path: str) -> str:
    """The path with ~ expanded.

    Raises:
        ValueError: a URL, such as that of a bucket.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise ValueError(f"expected a local path, received {path}; mount the bucket, and give the path of the mount")
    return os.path.expanduser(path)
