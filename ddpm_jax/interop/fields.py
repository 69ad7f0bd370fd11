"""JSON configs with declared fields: the values that each accepts, and its default in older files that lack it."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.interop.files import check_regular

REQUIRED = object()
"""The default of a field that every version has."""
MOST = 1_000_000
"""The largest integer that a field accepts, so that no table or shape becomes absurd."""
LARGE = 1e300
"""An upper bound on numbers: an integer beyond the range of float64 cannot be converted."""


class Field(NamedTuple):
    """A field of a config.

    Attributes:
        expected: The accepted values, in words.
        accepts: Whether a value is accepted.
        default: The value if the field is missing, as in files that are older than the field.
    """

    expected: str
    accepts: Callable[[Any], bool]
    default: Any = REQUIRED


def one_of(*values: Any, default: Any = REQUIRED) -> Field:
    """A field that accepts these JSON values."""
    words = [json.dumps(value) for value in values]
    return Field(" or ".join(words), lambda value: any(_same(value, known) for known in values), default)


def integer(default: Any = REQUIRED, null: bool = False, most: int = MOST) -> Field:
    """A field that accepts a positive integer, at most `most`."""
    expected = f"an integer from 1 to {most}" + (" or null" if null else "")
    return Field(expected, lambda value: (_is_size(value) and value <= most) or (null and value is None), default)


def number(default: Any = REQUIRED, least: float = 0.0, below: float = math.inf) -> Field:
    """A field that accepts a number in [least, below)."""
    return Field(
        f"a number from {least:g}" + ("" if below == math.inf else f" and below {below:g}"),
        lambda value: type(value) in (int, float) and least <= value < below and value < LARGE,
        default,
    )


def integers(default: Any = REQUIRED) -> Field:
    """A field that accepts a non-empty list of positive integers."""
    return Field(
        f"integers from 1 to {MOST}",
        lambda value: isinstance(value, list) and value != [] and all(map(_is_size, value)),
        default,
    )


def words(*known: str) -> Field:
    """A field that accepts a list of these words."""
    return Field(
        f"a list of {', '.join(known)}", lambda value: isinstance(value, list) and all(word in known for word in value)
    )


def read(path: pathlib.Path, classes: Mapping[str, Mapping[str, Field]]) -> tuple[str, dict[str, Any]]:
    """Reads a config file of diffusers.

    Args:
        path: The file.
        classes: The fields of each accepted class.

    Returns:
        The class, and all its fields.

    Raises:
        ValueError: the file is not a JSON object or is of another class, or a field is unknown, missing or has a value that is
            not accepted; the message names it.
        OSError: the file cannot be read.
    """
    found = read_json(path)
    name = found.pop("_class_name", None)
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"{path.name}: _class_name: expected {' or '.join(classes)}, received {json.dumps(name)[:80]}")
    version = found.pop("_diffusers_version", "0.1.1")
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+.*", version):
        raise ValueError(f"{path.name}: _diffusers_version: expected such as 0.1.1, received {json.dumps(version)[:80]}")
    found.pop("_name_or_path", None)
    fields = classes[name]
    for field in found:
        if field not in fields:
            raise ValueError(
                f"{path.name}: {field}: expected no such field of {name}, received {json.dumps(found[field])[:80]}"
            )
    values = {field: found.get(field, known.default) for field, known in fields.items()}
    for field, value in values.items():
        if value is REQUIRED:
            raise ValueError(f"{path.name}: {field}: expected {fields[field].expected}, received no such field")
        if field in found and not fields[field].accepts(value):
            received = json.dumps(value)[:80]
            raise ValueError(f"{path.name}: {field}: expected {fields[field].expected}, received {received}")
    return name, values


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object. Raises ValueError if the file does not contain one, or a key occurs twice."""
    check_regular(path)
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:  # also if it is not text
        raise ValueError(f"{path.name}: expected JSON, cannot read it: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: expected a JSON object, received {json.dumps(found)[:80]}")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name[:80]} occurs twice")
    return found


def _same(value: Any, known: Any) -> bool:
    """Equality in JSON: 1 equals 1.0, but not true."""
    return value == known and isinstance(value, bool) == isinstance(known, bool)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST
