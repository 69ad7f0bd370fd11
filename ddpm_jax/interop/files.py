"""Files of named arrays: safetensors, .npz and PyTorch's. They are read without being trusted, and written atomically."""

from __future__ import annotations

import json
import math
import os
import pathlib
import stat
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ddpm_jax.devices.files import atomic_write
from ddpm_jax.interop import pickles

Path = str | os.PathLike[str]

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""The dtypes that are read from safetensors, whose numpy functions do not support BF16."""

SMALL, RATIO = 2**30, 20
"""An .npz file may expand to this many bytes, or to this many times its size."""
PYTORCH = (".bin", ".ckpt", ".pt", ".pth")
"""The suffixes of files by PyTorch."""


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file.

    Args:
        path: .safetensors, .npz, or a PyTorch state dict: .bin, .ckpt, .pt or .pth.

    Returns:
        The arrays by name, read-only; those of safetensors are views of the file, and change with it.

    Raises:
        ValueError: the file is in none of these formats, is damaged, or contains anything but arrays.
        OSError: it cannot be read.
    """
    path = pathlib.Path(path)
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz} | dict.fromkeys(PYTORCH, pickles.read)
    if path.suffix not in readers:
        raise ValueError(f"{path.name}: expected .safetensors, .npz, .bin, .ckpt, .pt or .pth")
    check_regular(path)
    try:
        return readers[path.suffix](path)
    except MemoryError as error:
        raise ValueError(f"{path.name}: expected arrays that fit in memory, received more") from error


def check_regular(path: pathlib.Path) -> None:
    """Raises ValueError for a device or a pipe, which may never end, and OSError if there is no such file."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name}: expected a regular file, received a folder, device or pipe")


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name.

    Args:
        path: .safetensors or .npz; replaced if it exists.
        arrays: By name.

    Raises:
        ValueError: another suffix.
        OSError: it cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"{path.name}: expected a name that ends in .safetensors or .npz")
    if path.suffix == ".npz":
        atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    else:  # diffusers requires this metadata: arrays in PyTorch's layouts
        content = safetensors.numpy.save(dict(arrays), metadata={"format": "pt"})
        atomic_write(path, lambda file: file.write(content))


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Views of the mapped file, so that tensors of the wrong names or shapes are refused without being read."""
    try:
        with safetensors.safe_open(path, "np"):
            pass  # it has compared the header with the file's size
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:begin].tobytes())
        header.pop("__metadata__", None)
        return {name: _view(content[begin:], name, tensor) for name, tensor in header.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name}: expected a safetensors file, cannot read it: {error}") from error
    except ValueError as error:  # also for shapes that NumPy lacks, such as those of 65 dimensions
        raise ValueError(f"{path.name}: {error}") from error


def _view(content: np.ndarray, name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    if tensor["dtype"] not in DTYPES:
        raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, received {tensor['dtype']}")
    return content[slice(*tensor["data_offsets"])].view(DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        try:
            _check_npz(file)
            arrays = np.load(file, allow_pickle=False)
            return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # NumPy and zipfile raise exceptions of all types for damaged files
            raise ValueError(f"{path.name}: expected an .npz file of arrays, cannot read it: {error}") from error


def _check_npz(file: BinaryIO) -> None:
    """Compares the sizes in the headers with those of the file, since NumPy allocates what a header says."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = readers[version](member)
                if math.prod(shape) * dtype.itemsize != entry.file_size - member.tell():
                    raise ValueError(f"{entry.filename} has {entry.file_size} bytes, not {shape} numbers of {dtype}")
        expanded = sum(entry.file_size for entry in archive.infolist())
    if expanded > max(SMALL, RATIO * file.seek(0, os.SEEK_END)):  # weights hardly compress
        raise ValueError(f"its arrays expand to {expanded} bytes")
    file.seek(0)
