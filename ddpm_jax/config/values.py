"""The values of options, checked against the types of their fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

from ddpm_jax.config.paths import IS_PATH, local

T = TypeVar("T")


def checked(tree: T, flat: str = "", prefix: str = "") -> T:
    """Checks the types of all fields of a tree of dataclasses, and makes its paths `local`.

    Args:
        tree: The tree, which is returned with its paths replaced.
        flat: A field whose options have no prefix; see `cli.parse`.
        prefix: Begins the names of its fields in messages.

    Raises:
        ValueError: a value of the wrong type, or a URL instead of a path; the message begins with the name of the field.
    """
    hints = typing.get_type_hints(type(tree), include_extras=True)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(tree, field.name)
        if not fits(value, hints[field.name]):
            raise ValueError(f"{name}: expected {described(hints[field.name])}, received {value!r:.200}")
        if dataclasses.is_dataclass(value):
            values[field.name] = checked(value, flat, prefix if field.name == flat else f"{name}.")
        elif value is not None and _is_path(hints[field.name]):
            try:
                values[field.name] = tuple(map(local, value)) if isinstance(value, tuple) else local(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    return dataclasses.replace(tree, **values)  # type: ignore[type-var]


def _is_path(hint: Any) -> bool:
    is_marked = IS_PATH in getattr(hint, "__metadata__", ())
    return is_marked or any(map(_is_path, typing.get_args(hint)))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: a class, Literal, union, tuple or Annotated; an int is a float, but a bool is no int."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(fits(part, arguments[0]) for part in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if hint in (int, float, bool, str):
        return type(value) is hint or (hint is float and type(value) is int)
    return value is None if hint in (None, type(None)) else isinstance(value, hint)


def described(hint: Any) -> str:
    """A type as it reads in a message, such as "int or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return described(arguments[0])
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(described, arguments))
    if origin is tuple:
        return f"tuple[{', '.join('...' if part is Ellipsis else described(part) for part in arguments)}]"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
