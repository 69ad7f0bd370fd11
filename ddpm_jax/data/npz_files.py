"""Reading .npz files that may be damaged or hostile: nothing is unpickled, and sizes are checked before memory is allocated."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

MAX_COMPRESSION = 1032
"""The largest ratio that deflate can reach."""

MAX_HEADER = 2**14
"""Bytes that the header of an array may have; NumPy writes 128."""


class Header(NamedTuple):
    """What an array says of itself.

    Attributes:
        dtype: Its dtype.
        shape: Its shape.
    """

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read(
    path: str | os.PathLike[str], names: Sequence[str], check: Callable[[dict[str, Header]], None]
) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file.

    Args:
        path: The file.
        names: The arrays to read, if the file has them; others are ignored.
        check: Called with the headers of the arrays before they are read; raises ValueError if they are not as expected.

    Returns:
        The arrays by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an .npz file, is damaged, or has arrays of objects or too large for the memory. No file raises
            another exception.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"npz: expected an .npz file, there is none at {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"npz: expected an .npz file, received a truncated one or another kind of file, in {path}")
    with contextlib.ExitStack() as stack:
        with _as_damage(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            found = [name for name in names if f"{name}.npy" in archive.namelist()]
            headers = {name: _header(archive, name, path.stat().st_size) for name in found}
        check(headers)
        with _as_damage(path):
            return {name: _array(archive, name) for name in headers}


@contextlib.contextmanager
def _as_damage(path: pathlib.Path) -> Iterator[None]:
    """Turns all errors into a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # NumPy and zipfile raise exceptions of all types for damaged files
        raise ValueError(
            f"npz: expected plain arrays, all images in one shape, received one that cannot be read in {path}: "
            f"{' '.join(str(error).split())}"
        ) from error


def _header(archive: zipfile.ZipFile, name: str, file_size: int) -> Header:
    """The header of an array whose size agrees with it, and with that of the file. Raises exceptions of all types."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        start = io.BytesIO(file.read(MAX_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is of version {version} of the format")
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = parse(start)
    if dtype.hasobject:
        raise ValueError(f"{name} is an array of objects")
    header, size = Header(dtype, shape), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or dtype.itemsize == 0 or start.tell() + size != member.file_size:
        raise ValueError(f"{name} is {header} by its header, but has {member.file_size - start.tell():,} bytes")
    if size > MAX_COMPRESSION * file_size:
        raise ValueError(f"{name} is {header} by its header, more than {file_size:,} bytes can hold")
    if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ValueError(f"{name} is {header}, more than the {memory:,} bytes of memory")
    return header


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
