"""Resumable sample output: one file per batch, so that a killed run resumes and memory holds a single batch."""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.devices.files import atomic_write


class SampleFolder:
    """Samples by their numbers. Batch n holds the numbers from n * size on, whatever range is asked for.

    Args:
        folder: Receives samples.npz and grid.png once all samples are generated; until then batches are stored in its folder
            `unfinished`.
        settings: Everything a sample depends on except its number, as JSON; unfinished batches of other settings are deleted.
        numbers: The numbers of the samples.
        size: Images per batch.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: dict[str, Any], numbers: range, size: int):
        self._folder = pathlib.Path(folder)
        self._unfinished = self._folder / "unfinished"
        self._numbers = numbers
        self._size = size
        text, written = json.dumps({**settings, "size": size}), self._unfinished / "settings.json"
        if not written.exists() or written.read_text() != text:
            self._discard()
            self._unfinished.mkdir(parents=True, exist_ok=True)
            atomic_write(written, lambda file: file.write(text.encode()))

    @property
    def _batches(self) -> range:
        return range(self._numbers.start // self._size, -(-self._numbers.stop // self._size))

    @property
    def missing(self) -> list[int]:
        """The batches still to be generated."""
        return [batch for batch in self._batches if not self._file(batch).exists()]

    def numbers(self, batch: int) -> range:
        """The numbers of a batch, always `size` of them, so that one compiled program serves all batches."""
        return range(batch * self._size, (batch + 1) * self._size)

    def add(self, batch: int, image: np.ndarray) -> None:
        """Stores a batch, uint8 [size, H, W, C]."""
        atomic_write(self._file(batch), lambda file: np.save(file, image))

    def finish(self, png: bool = False) -> None:
        """Writes samples.npz (`image`, uint8 [N, H, W, C]), grid.png (the first 256) and, with png, images/<number>.png."""
        atomic_write(self._folder / "samples.npz", self._write_npz)
        shown: list[np.ndarray] = []
        for number, image in zip(self._numbers, self._images(), strict=True):
            if png:
                images.save(self._folder / "images" / f"{number:06d}.png", image)
            elif len(shown) == 256:
                break
            shown.extend([image] if len(shown) < 256 else [])
        images.save_grid(self._folder / "grid.png", np.stack(shown))
        self._discard()

    def _images(self) -> Iterator[np.ndarray]:
        for batch in self._batches:
            wanted = (number in self._numbers for number in self.numbers(batch))
            yield from (image for image, is_wanted in zip(np.load(self._file(batch)), wanted, strict=True) if is_wanted)

    def _write_npz(self, file: Any) -> None:
        shape = (len(self._numbers), *next(self._images()).shape)
        with zipfile.ZipFile(file, "w") as archive, archive.open("image.npy", "w", force_zip64=True) as array:
            np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for image in self._images():
                array.write(np.ascontiguousarray(image).data)

    def _file(self, batch: int) -> pathlib.Path:
        return self._unfinished / f"{batch:08d}.npy"

    def _discard(self) -> None:
        for file in (*self._unfinished.glob("*.npy"), *self._unfinished.glob("*.tmp"), self._unfinished / "settings.json"):
            file.unlink(missing_ok=True)
        if self._unfinished.is_dir() and not any(self._unfinished.iterdir()):
            self._unfinished.rmdir()
