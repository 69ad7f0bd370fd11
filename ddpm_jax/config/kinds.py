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
    """The metaclass of such a base class. Called without a tag, the base class makes the kind that was declared first.

    The tag, and the first field of its own that a kind has, may come by position: Data("npz", "x.npz").
    """

    def __call__(cls, *args: Any, **values: Any) -> Any:
        names, choice = [tag(cls)], base(cls)
        if args:
            names += [name for name in defaults(named(cls, args[0])) if name not in defaults(choice)][:1]
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__}: expected options by name after {' and '.join(names)}, received {args}")
        values = dict(zip(names, args, strict=False)) | values
        own = getattr(cls, tag(cls), None)
        if cls is not choice and values.get(tag(cls), own) == own:
            if cls not in kinds(cls).values():
                raise TypeError(f"{cls.__name__}: expected one of its kinds, received the class that they share")
            return type.__call__(cls, **values)
        kind = named(cls, values.get(tag(cls), next(iter(kinds(cls)))))
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
