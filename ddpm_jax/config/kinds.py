"""Choices between dataclasses: a base class has the fields that all kinds share, each subclass is one kind with its own.

    @dataclasses.dataclass(frozen=True)
    class Data(metaclass=Choice):
        source: str  # the first field, the tag, names the kind
        random_flip: bool = False

    @dataclasses.dataclass(frozen=True)
    class Npz(Data):
        source: Literal["npz"] = "npz"
        path: str | None = None

Calling the base class makes the kind that the tag names: Data(source="npz", path="x.npz") == Npz(path="x.npz").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


class Choice(type):
    """The metaclass of such a base class; without a tag, a call makes the kind that was declared first."""

    def __call__(cls, **values: Any) -> Any:
        own = cls if hasattr(cls, tag(cls)) else next(iter(kinds(cls).values()))
        kind = named(cls, values.get(tag(cls), getattr(own, tag(cls))))
        return type.__call__(kind, **fitting(kind, values))


def tag(cls: Any) -> str:
    """The name of the field that names the kind."""
    return dataclasses.fields(base(cls))[0].name


def base(cls: Any) -> Any:
    """The choice that a kind belongs to."""
    return cls.__mro__[-2]


def kinds(cls: Any) -> dict[str | None, Any]:
    """All kinds of the same choice by their tags, in the order of their declaration."""
    return {getattr(kind, tag(cls)): kind for kind in _descendants(base(cls)) if hasattr(kind, tag(cls))}


def _descendants(cls: Any) -> Iterator[Any]:
    for child in type.__subclasses__(cls):
        yield child
        yield from _descendants(child)


def named(cls: Any, name: str | None) -> Any:
    """The kind of the same choice with this tag. Raises ValueError if there is none."""
    if name not in kinds(cls):
        raise ValueError(f"{tag(cls)}: expected {', '.join(map(str, kinds(cls)))}, received {name}")
    return kinds(cls)[name]


def kinds_with(cls: Any, field: str) -> dict[str | None, Any]:
    """The kinds of the same choice that have a field."""
    return {name: kind for name, kind in kinds(cls).items() if field in defaults(kind)}


def defaults(kind: Any) -> dict[str, Any]:
    """The fields of a kind with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


def fitting(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that are the default of a field that only other kinds have.

    Raises:
        ValueError: another value of such a field.
    """
    kept = {}
    for name, value in values.items():
        others = {} if name in defaults(kind) else kinds_with(kind, name)
        if not others:
            kept[name] = value
        elif all(value != defaults(other)[name] for other in others.values()):
            raise ValueError(f"{name}: expected with {tag(kind)} {' or '.join(map(str, others))}, "
                             f"received {value} with {getattr(kind, tag(kind))}")  # fmt: skip
    return kept


def become(value: Any, name: str | None) -> Any:
    """The kind with this tag, with the fields that both have: of one name, type and default. Raises as `named`."""
    kind = named(type(value), name)
    of_kind = {field.name: (field.type, field.default) for field in dataclasses.fields(kind)}
    shared = [field for field in dataclasses.fields(value) if of_kind.get(field.name) == (field.type, field.default)]
    return kind(**{field.name: getattr(value, field.name) for field in shared})
