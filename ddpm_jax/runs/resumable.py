"""What has been measured so far, on disk: a killed evaluation goes on where it was."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Record = dict[str, Any]


def resumable(
    path: str | os.PathLike[str],
    settings: Record,
    parts: Iterable[int],
    measure: Callable[[int], dict[str, np.ndarray]],
) -> Iterator[dict[str, np.ndarray]]:
    """Measures part after part, and keeps each as a line of JSON, from which it is read when it is there already.

    Args:
        path: The file. Its first line holds the settings; with other settings it begins anew. A line that was cut short is
            measured again.
        settings: Everything that decides the results, as JSON.
        parts: The numbers of the parts.
        measure: Part -> its results.

    Yields:
        The results of each part, in float64, the same whether measured or read.
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


def _read(path: pathlib.Path, settings: Record) -> dict[int, Record]:
    """The parts in a file of these settings; what follows the last whole line is cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("}\n")]
    if not whole or json.loads(whole[0]) != settings:
        return {}
    path.write_text("".join(whole))
    return {record.pop("part"): record for record in map(json.loads, whole[1:])}
