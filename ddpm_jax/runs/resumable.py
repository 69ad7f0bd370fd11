"""Partial results on disk, so that a killed evaluation resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax.devices.files import atomic_write

Json = dict[str, Any]


def resumable(
    path: str | os.PathLike[str],
    settings: Json,
    parts: Iterable[int],
    measure: Callable[[int], dict[str, np.ndarray]],
) -> Iterator[dict[str, np.ndarray]]:
    """Measures part after part and stores each as a line of JSON; parts that are already stored are read instead.

    Args:
        path: The file. Its first line holds the settings. The part of an incomplete last line is measured again.
        settings: Everything the results depend on, as JSON.
        parts: The indices of the parts.
        measure: Part -> its results.

    Yields:
        The results of each part in float64, identical whether measured or read.

    Raises:
        ValueError: the file holds results of other settings, which are kept.
    """
    path = pathlib.Path(path)
    known = stored(path, settings)
    if not known:
        path.write_text(json.dumps(settings) + "\n")
    with path.open("a", buffering=1) as file:
        for part in parts:
            if part not in known:
                known[part] = {name: np.asarray(a, np.float64).tolist() for name, a in measure(part).items()}
                file.write(json.dumps({"part": part, **known[part]}) + "\n")
            yield {name: np.asarray(a, np.float64) for name, a in known[part].items()}


def stored(path: str | os.PathLike[str], settings: Json) -> dict[int, Json]:
    """The parts stored in a file of these settings; removes an incomplete last line.

    Raises:
        ValueError: the file holds results of other settings; it is left as it is.
    """
    path = pathlib.Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    complete = [line for line in lines if line.endswith("}\n")]
    if not complete:
        return {}
    before, now = flat(json.loads(complete[0])), flat(json.loads(json.dumps(settings)))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        differences = "; ".join(f"{name}: {before.get(name)} -> {now.get(name)}" for name in names)
        raise ValueError(f"expected the settings of the results in {path}, received {differences}; another folder keeps both")
    if complete != lines:
        atomic_write(path, lambda file: file.write("".join(complete).encode()))
    return {part.pop("part"): part for part in map(json.loads, complete[1:])}


def flat(settings: Json, prefix: str = "") -> Json:
    """Nested settings by their dotted names."""
    found: Json = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def fingerprint(tree: Any) -> str:
    """A hash of all arrays and numbers in a tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]
