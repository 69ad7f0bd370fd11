"""Partial results on disk, so that a killed evaluation resumes where it stopped."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Json = dict[str, Any]


def resumable(
    path: str | os.PathLike[str],
    settings: Json,
    parts: Iterable[int],
    measure: Callable[[int], dict[str, np.ndarray]],
) -> Iterator[dict[str, np.ndarray]]:
    """Measures part after part and stores each as a line of JSON; parts that are already stored are read instead.

    Args:
        path: The file. Its first line holds the settings; if they differ, the file is started again. The part of an
            incomplete last line is measured again.
        settings: Everything the results depend on, as JSON.
        parts: The indices of the parts.
        measure: Part -> its results.

    Yields:
        The results of each part in float64, identical whether measured or read.
    """
    path = pathlib.Path(path)
    known = _read(path, settings)
    if not known:
        path.write_text(json.dumps(settings) + "\n")
    with path.open("a", buffering=1) as file:
        for part in parts:
            if part not in known:
                known[part] = {name: np.asarray(a, np.float64).tolist() for name, a in measure(part).items()}
                file.write(json.dumps({"part": part, **known[part]}) + "\n")
            yield {name: np.asarray(a, np.float64) for name, a in known[part].items()}


def _read(path: pathlib.Path, settings: Json) -> dict[int, Json]:
    """The parts stored in a file of these settings; removes an incomplete last line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    complete = [line for line in lines if line.endswith("}\n")]
    if not complete or json.loads(complete[0]) != settings:
        return {}
    path.write_text("".join(complete))
    return {stored.pop("part"): stored for stored in map(json.loads, complete[1:])}
