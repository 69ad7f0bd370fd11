"""A safe reader of PyTorch's files of tensors, which needs no PyTorch and executes nothing from the file.

A pickle is a program: it may call anything that it can import. This reader lets it import only stand-ins for the few names that
a dict of tensors needs, each of which merely records its arguments; any other name is refused. The recorded arguments are then
checked against the bytes in the file, and converted to arrays.

Formats: the zip archive of torch >= 1.6 (`<folder>/data.pkl`, `<folder>/data/<key>`), and the format before it: several
consecutive pickles, followed by the storages' bytes (torch/serialization.py).

Sizes that a file states are compared with the size of the file before memory is allocated.
"""

from __future__ import annotations

import collections
import io
import mmap
import pathlib
import pickle
import pickletools
import reprlib
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """A one-dimensional buffer, possibly of several tensors."""

    dtype: np.dtype
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage, with offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuild:
    """Stand-in for torch._utils._rebuild_tensor_v2, without a __dict__, so that a pickle cannot set attributes."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        return Tensor(storage, offset, shape, strides)


class _RebuildParameter:
    """Stand-in for torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Unpickler(pickle.Unpickler):
    """Accepts the names in STORAGES and the functions that rebuild tensors; refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Rebuild()
            case "torch._utils", "_rebuild_parameter":
                return _RebuildParameter()
            case "torch", _ if name in STORAGES:
                return name  # a harmless string
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", str(name), str(key), _, int(size), *_) if name in STORAGES and size >= 0:
                return Storage(STORAGES[name], key, size)
        raise pickle.UnpicklingError(f"it contains {reprlib.repr(pid)[:80]}, which is not a storage")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Args:
        path: A file written by `torch.save` that contains a dict of tensors.

    Returns:
        The tensors by name.

    Raises:
        ValueError: the file is damaged, or contains anything but tensors.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _read(file, path.name)


def _read(file: BinaryIO, name: str) -> dict[str, np.ndarray]:
    """The file's tensors; any error in reading them becomes a ValueError."""
    try:
        is_zip = zipfile.is_zipfile(file)
        file.seek(0)
        return _read_zip(file) if is_zip else _read_before_zip(file)
    except ValueError as error:
        raise ValueError(f"{name}: expected a file of tensors by PyTorch: {error}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, AttributeError, IndexError, KeyError, TypeError,
            ImportError, OSError, OverflowError, MemoryError, NotImplementedError, RuntimeError) as error:  # fmt: skip
        # The exceptions that the libraries raise for a manipulated pickle or archive.
        raise ValueError(f"{name}: expected a file of tensors by PyTorch, cannot read it: {error!r}") from error


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its archive is compressed, unlike PyTorch's")
        if sum(entry.file_size for entry in archive.infolist()) > file.seek(0, io.SEEK_END):
            raise ValueError("its archive claims to contain more than the file")
        index = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(index) != 1:
            raise ValueError("its archive has no data.pkl")
        folder = index[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in sizes and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        state = _unpickle(io.BytesIO(archive.read(index[0])))
        keys = {tensor.storage.key for tensor in _tensors(state).values()}
        return _arrays(state, {key: archive.read(f"{folder}data/{key}") for key in keys})


def _read_before_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # no read allocates more than there is
        if _unpickle(content) != MAGIC:
            raise ValueError("it does not begin with PyTorch's magic number")
        _, system, state, keys = (_unpickle(content) for _ in range(4))
        if not system["little_endian"]:
            raise ValueError("its numbers are not little-endian")
        storages = {tensor.storage.key: tensor.storage for tensor in _tensors(state).values()}
        contents = {}
        for key in keys:
            size = int.from_bytes(content.read(8), "little")
            if size != storages[key].size:
                raise ValueError(f"storage {key} has {size} numbers, not {storages[key].size}")
            contents[key] = content.read(size * storages[key].dtype.itemsize)
        return _arrays(state, contents)


def _unpickle(content: io.BytesIO | mmap.mmap) -> Any:
    """The next object. Python would allocate memory for the largest index in the unpickler's memo, whatever it is."""
    begin = content.tell()
    for opcode, argument, position in pickletools.genops(content):  # type: ignore[arg-type]
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > int(position or 0):
            raise ValueError(f"its pickle numbers an object {argument}")
    content.seek(begin)
    return _Unpickler(content).load()


def _tensors(state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise ValueError(f"it contains a {type(state).__name__}, not tensors by name")
    for name, tensor in state.items():
        match tensor:
            case Tensor(Storage(), int(), tuple(shape), tuple(strides)) if isinstance(name, str):
                if not all(type(n) is int and n >= 0 for n in (tensor.offset, *shape, *strides)) or len(shape) != len(strides):
                    raise ValueError(f"{name} has shape {reprlib.repr(shape)}, strides {reprlib.repr(strides)}")
            case _:
                word = name[:80] if isinstance(name, str) else reprlib.repr(name)[:80]
                raise ValueError(f"{word} is a {type(tensor).__name__}, not a tensor")
    return state


def _arrays(state: Any, contents: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The tensors as views, since any number of them may have one storage."""
    found = {}
    for name, tensor in _tensors(state).items():
        raw, storage = contents[tensor.storage.key], tensor.storage
        if len(raw) != storage.size * storage.dtype.itemsize:
            raise ValueError(f"{name} has {len(raw)} bytes, not {storage.size} numbers of {storage.dtype}")
        size = int(np.prod(tensor.shape, dtype=object))
        last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        if size > storage.size or (size and last >= storage.size):
            raise ValueError(f"{name} of shape {tensor.shape} reaches beyond its {storage.size} numbers")
        flat = np.frombuffer(raw, storage.dtype)[tensor.offset :]
        strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
        found[name] = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    return found
