"""Resumable sample output: one file per batch, so that a killed run resumes and memory holds a single batch.

Several processes may fill one folder at the same time, each with numbers of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import math
import os
import pathlib
import re
import weakref
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.devices.files import atomic_write
from ddpm_jax.runs.resumable import flat

SETTINGS = "settings.json"


class SampleFolder:
    """Samples by their numbers. Batch n holds the numbers from n * size on, of which those asked for are kept.

    samples.npz holds `image`, uint8 [N, H, W, C], and `index`, their numbers, ascending. Until all samples asked for are
    generated, their batches are stored in the folder `unfinished`.

    Args:
        folder: The folder; created if missing.
        settings: Everything a sample depends on except its number, as JSON; written to settings.json.
        numbers: The numbers of the samples. They stay reserved for this object until `finish`, or until it is deleted.
        size: Images per batch.
        png: Whether to write each sample as images/<number>.png too.
        about: Also written to settings.json, for its readers; it may differ when the folder is used again.

    Raises:
        ValueError: the folder holds samples of other settings, files of those names that are not its own, or a damaged
            samples.npz; or some of the numbers are reserved by another process.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: dict[str, Any],
        numbers: range,
        size: int,
        png: bool = False,
        about: dict[str, Any] | None = None,
    ):
        self._folder = pathlib.Path(folder)
        self._unfinished = self._folder / "unfinished"
        self._numbers, self._size, self._png = numbers, size, png
        settings = json.loads(json.dumps(settings))
        self._check(settings)  # before anything is written
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._check(settings)
            if not (self._folder / SETTINGS).exists():
                text = json.dumps((about or {}) | settings, indent=2) + "\n"
                atomic_write(self._folder / SETTINGS, lambda file: file.write(text.encode()))
            self._unfinished.mkdir(exist_ok=True)
            self._release = self._reserve()

    @property
    def missing(self) -> list[int]:
        """The batches still to be generated."""
        there = self._finished().union(*self._stored().values())
        batches = range(self._numbers.start // self._size, -(-self._numbers.stop // self._size))
        return [batch for batch in batches if not there.issuperset(self._asked_for(batch))]

    def numbers(self, batch: int) -> range:
        """The numbers of a batch, always `size` of them, so that one compiled program serves all batches."""
        return range(batch * self._size, (batch + 1) * self._size)

    def add(self, batch: int, image: np.ndarray) -> None:
        """Stores a batch, uint8 [size, H, W, C]."""
        asked_for, first = self._asked_for(batch), batch * self._size
        kept = image[asked_for.start - first : asked_for.stop - first]
        atomic_write(self._unfinished / f"{_name(asked_for)}.npy", lambda file: np.save(file, kept))

    def finish(self) -> None:
        """Adds the samples to samples.npz, writes grid.png (the first 256 there) and the PNGs, and releases the numbers."""
        with self._locked():
            stored = {path: numbers for path, numbers in self._stored().items() if _overlap(numbers, self._numbers)}
            new = set(self._numbers) - self._finished()
            if new:
                atomic_write(self._folder / "samples.npz", lambda file: self._write_npz(file, stored, new))
            self._write_images()
            finished = self._finished()
            for path, numbers in stored.items():
                if finished.issuperset(numbers):
                    path.unlink()
            for path in self._unfinished.glob("*.tmp"):  # of a killed run
                if (unwritten := _numbers(path, ".npy.tmp")) and _overlap(unwritten, self._numbers):
                    path.unlink()
            (self._unfinished / f"{_name(self._numbers)}.lock").unlink(missing_ok=True)
            self._release()
            with contextlib.suppress(OSError):  # others use it
                self._unfinished.rmdir()

    def _asked_for(self, batch: int) -> range:
        numbers = self.numbers(batch)
        return range(max(numbers.start, self._numbers.start), min(numbers.stop, self._numbers.stop))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock of the folder, after waiting for it; the system releases it however the process ends."""
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check(self, settings: dict[str, Any]) -> None:
        """Raises ValueError for samples of other settings, files of our names that are not ours, or a damaged samples.npz."""
        names = ["samples.npz", "grid.png", "unfinished", *(["images"] if self._png else [])]
        found = [name for name in names if (self._folder / name).exists()]  # first: other processes write settings before them
        file, received = self._folder / SETTINGS, f"{found[0]} without {SETTINGS}" if found else ""
        if file.exists():
            received = _differences(file, settings)
        if received:
            expected = "expected an empty folder or one of the same settings"
            raise ValueError(f"{expected}, {self._folder} has {received}; choose another --out")
        self._index()

    def _reserve(self) -> weakref.finalize:
        """Reserves the numbers, and returns the function that releases them. The folder must be locked."""
        for path in self._unfinished.glob("*.lock"):
            numbers = _numbers(path, ".lock")
            if not numbers or not _overlap(numbers, self._numbers):
                continue
            with path.open("w") as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    samples = f"samples {numbers.start} to {numbers.stop - 1} of {self._folder}"
                    raise ValueError(f"expected samples of no other process, {samples} are being generated") from None
            path.unlink()  # of a killed run
        lock = os.open(self._unfinished / f"{_name(self._numbers)}.lock", os.O_CREAT | os.O_WRONLY, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return weakref.finalize(self, os.close, lock)

    def _finished(self) -> set[int]:
        """The numbers in samples.npz."""
        return set(self._index())

    def _index(self) -> list[int]:
        """The numbers in samples.npz, ascending. ValueError if it is damaged, or holds anything but one image for each."""
        file = self._folder / "samples.npz"
        if not file.exists():
            return []
        try:
            with np.load(file) as arrays:
                index = arrays["index"].tolist()
            with zipfile.ZipFile(file) as archive, archive.open("image.npy") as array:
                shape, is_fortran, dtype = _header(array)
            if (shape[0], is_fortran, dtype) != (len(index), False, np.uint8):
                raise ValueError(f"{len(index)} numbers for image {dtype}{list(shape)}")
            return index
        except Exception as error:  # exceptions of all types for damaged files
            raise ValueError(f"expected images and their index in {file}, cannot read it: {error}") from error

    def _stored(self) -> dict[pathlib.Path, range]:
        """The files of complete batches, with the numbers in each."""
        found = {path: _numbers(path, ".npy") for path in sorted(self._unfinished.glob("*.npy"))}
        return {path: numbers for path, numbers in found.items() if numbers}

    def _write_npz(self, file: Any, stored: dict[pathlib.Path, range], new: set[int]) -> None:
        """Writes the samples of samples.npz and the new ones, in the order of their numbers."""
        index = np.array(sorted(self._finished() | new))
        merged = heapq.merge(self._samples(), _of_batches(stored, sorted(new)), key=lambda sample: sample[0])
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("index.npy", "w") as array:
                np.save(array, index)
            with archive.open("image.npy", "w", force_zip64=True) as array:
                for position, (_, image) in enumerate(merged):
                    if position == 0:
                        header = {"descr": "|u1", "fortran_order": False, "shape": (len(index), *image.shape)}
                        np.lib.format.write_array_header_1_0(array, header)
                    array.write(np.ascontiguousarray(image).data)

    def _samples(self) -> Iterator[tuple[int, np.ndarray]]:
        """The samples of samples.npz, one after another, with their numbers."""
        file = self._folder / "samples.npz"
        if not file.exists():
            return
        with zipfile.ZipFile(file) as archive, archive.open("image.npy") as array:
            shape, _, _ = _header(array)
            for number in self._index():
                pixels = array.read(math.prod(shape[1:]))
                yield number, np.frombuffer(pixels, np.uint8).reshape(shape[1:])

    def _write_images(self) -> None:
        shown: list[np.ndarray] = []
        for number, image in self._samples():
            if len(shown) < 256:
                shown.append(image)
            if self._png and number in self._numbers:
                images.save(self._folder / "images" / f"{number:06d}.png", image)
            if len(shown) == 256 and (not self._png or number >= self._numbers.stop):
                break
        images.save_grid(self._folder / "grid.png", np.stack(shown))


def _header(array: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of a .npy file: shape, whether in Fortran's order, and dtype."""
    np.lib.format.read_magic(array)
    return np.lib.format.read_array_header_1_0(array)


def _of_batches(stored: dict[pathlib.Path, range], numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Samples of stored batches, one batch in memory at a time."""
    path, image = None, np.empty(0)
    for number in numbers:
        if path is None or number not in stored[path]:
            path = next((path for path, there in stored.items() if number in there), None)
            if path is None:
                raise ValueError(f"expected all samples asked for before they are finished, sample {number} is missing")
            image = np.load(path)
        yield number, image[number - stored[path].start]


def _differences(file: pathlib.Path, settings: dict[str, Any]) -> str:
    """How the settings in a file differ from others, of which alone it is compared; empty if they don't."""
    try:
        before, now = flat(json.loads(file.read_text())), flat(settings)
    except (ValueError, AttributeError):
        return f"another {SETTINGS}"
    before = {name: value for name, value in before.items() if name.split(".")[0] in settings}
    differing = [name for name in before | now if before.get(name) != now.get(name)]
    return "; ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in differing[:4])


def _name(numbers: range) -> str:
    return f"{numbers.start:08d}-{numbers.stop - 1:08d}"


def _numbers(path: pathlib.Path, ending: str) -> range | None:
    """The inverse of `_name`; None for other files."""
    found = re.fullmatch(rf"(\d{{8,}})-(\d{{8,}}){re.escape(ending)}", path.name)
    return None if found is None else range(int(found[1]), int(found[2]) + 1)


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop
