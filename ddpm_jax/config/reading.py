"""Reading a config from a file, the command line, and a workdir."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from ddpm_jax.config import kinds
from ddpm_jax.config.cli import UsageError, as_usage_error, parse, take_option
from ddpm_jax.config.schema import Config

T = TypeVar("T")


def read_config(argv: Sequence[str], configs: pathlib.Path, default: str, description: str) -> Config:
    """Reads `--config NAME_OR_FILE`, a config file or a workdir's config.json, then the other options as overrides.

    Args:
        argv: The command line, without the program's name.
        configs: The folder in which `--config NAME` looks for NAME.py.
        default: The name if no `--config` is given.
        description: Begins the help text.

    Returns:
        The Config.

    Raises:
        UsageError: an unknown config or option, or a value of the wrong type.
        SystemExit: after --help.
    """
    name, rest = take_option(argv, "--config")
    name = default if name is None else name
    files = [
        file for file in (pathlib.Path(name), configs / f"{name}.py") if file.is_file() and file.suffix in (".py", ".json")
    ]
    if not files:
        known = sorted(file.stem for file in configs.glob("*.py"))
        raise UsageError(f"--config: expected a file.py or one of {', '.join(known)}, received {name}")
    if files[0].suffix == ".json":
        with as_usage_error("--config"):
            return parse(from_dict(json.loads(files[0].read_text())), rest, description)
    spec = importlib.util.spec_from_file_location(files[0].stem, files[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever somebody else's code may raise
        raise UsageError(f"--config: expected get_config() in {files[0]}, received {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UsageError(f"--config: expected get_config() in {files[0]} to return a Config, received {type(config).__name__}")
    about = f"{description}\n\n--config {name}: {(module.__doc__ or '').strip()}"
    return parse(config, rest, about)


FLAT: dict[str, dict[str, tuple[Any, tuple[str, ...]]]] = {
    "data": {
        "path": (None, ("npz", "folder")), "name": (None, ("tfds",)), "split": ("train", ("digits", "tfds")),
        "data_dir": (None, ("tfds",)), "image_size": (None, ("folder", "tfds")),
    },
    "sample": {
        "variance": (None, ("ddpm",)), "eta": (0.0, ("ddim",)),
        "order": (2, ("dpm_solver_pp", "dpm_solver_pp_sde", "unipc", "deis")),
    },
}  # fmt: skip
"""Sections of version 0.2, which had the fields of all kinds: their defaults, and the kinds that read them."""


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`, also after a round trip through JSON; missing fields take their defaults.

    Raises:
        ValueError: a field that this version does not know, or one of another kind that is not at its default.
    """
    return _from_dict(Config(workdir=""), values)


def _from_dict(default: T, values: Any) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"config: expected fields by name, received {values!r}")
    known = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}  # type: ignore[arg-type]
    _refuse_unknown(values, known)
    read = {name: _section(name, known[name], value) for name, value in values.items()}
    return dataclasses.replace(default, **read)  # type: ignore[type-var]


def _section(name: str, default: Any, value: Any) -> Any:
    if isinstance(type(default), kinds.Choice) and isinstance(value, dict):
        _refuse_unknown(value, {field for kind in kinds.kinds(type(default)).values() for field in kinds.defaults(kind)})
        flat = {field: _tuples(value) for field, value in value.items()}
        return kinds.base(type(default))(**_without_flat(name, flat))
    return _from_dict(default, value) if dataclasses.is_dataclass(default) else _tuples(value)


def _without_flat(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A section of version 0.2 without the fields that its kind ignored."""
    flat = FLAT.get(name, {})
    if not flat or not set(flat) <= set(values):
        return values
    tag = "source" if name == "data" else "sampler"
    ignored = {field for field, (_, readers) in flat.items() if values.get(tag) not in readers}
    for field in ignored:
        if values[field] != flat[field][0]:
            warnings.warn(f"{name}.{field} {values[field]} is dropped: {values.get(tag)} never used it", stacklevel=2)
    return {field: value for field, value in values.items() if field not in ignored}


def _refuse_unknown(values: Iterable[str], known: Iterable[str]) -> None:
    if unknown := set(values) - set(known):
        raise ValueError(f"config: expected only fields of this version, received {', '.join(sorted(unknown))}")


def _tuples(value: Any) -> Any:
    """Restores tuples from JSON lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
