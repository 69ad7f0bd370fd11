"""Files of named arrays: safetensors, .npz and PyTorch's. They are read without being trusted, and written atomically."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

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


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file.

    Args:
        path: .safetensors, .npz, or a PyTorch state dict: .bin, .ckpt, .pt or .pth.

    Returns:
        The arrays by name.

    Raises:
        ValueError: the file is in none of these formats, is damaged, or contains anything but arrays.
        OSError: it cannot be read.
    """
    path = pathlib.Path(path)
    match path.suffix:
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return _read_npz(path)
        case ".bin" | ".ckpt" | ".pt" | ".pth":
            return pickles.read(path)
    raise ValueError(f"{path.name}: expected .safetensors, .npz, .bin, .ckpt, .pt or .pth")


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
    try:
        found = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name}: expected a safetensors file, cannot read it: {error}") from error
    for name, tensor in found:
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"{path.name}: {name}: expected one of {', '.join(DTYPES)}, received {tensor['dtype']}")
    return {name: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"]) for name, t in found}


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        try:
            arrays = np.load(file, allow_pickle=False)
            return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # NumPy and zipfile raise exceptions of all types for damaged files
            raise ValueError(f"{path.name}: expected an .npz file of arrays, cannot read it: {error}") from error
