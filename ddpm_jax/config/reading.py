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
from ddpm_jax.config.paths import local
from ddpm_jax.config.schema import Config
from ddpm_jax.config.values import checked

T = TypeVar("T")


def read_config(argv: Sequence[str], configs: pathlib.Path, description: str) -> Config:
    """Reads `--config NAME_OR_FILE`, a config file or a workdir's config.json, then the other options as overrides.

    Without `--config`, `--workdir` names a run to resume, whose config.json is read.

    Args:
        argv: The command line, without the program's name.
        configs: The folder in which `--config NAME` looks for NAME.py.
        description: Begins the help text.

    Returns:
        The Config.

    Raises:
        UsageError: an unknown config or option, or a value of the wrong type.
        SystemExit: after --help, or after an empty command line, which asks for the same.
    """
    name, rest = take_option(argv, "--config")
    if name is not None:
        config, about = _read_file(_find_file(name, configs))
        return parse(config, rest, f"{description}\n\n--config {name}: {about}" if about else description)
    workdir = take_option(argv, "--workdir")[0]
    if not argv or {"-h", "--help"} & set(argv):
        return parse(Config(workdir="runs/digits"), rest if argv else ["--help"], description)
    if workdir is None:
        raise UsageError(f"--config: {_expected(configs)}, or --workdir of a run to resume, received neither")
    with as_usage_error("--workdir"):
        written = pathlib.Path(local(workdir)) / "config.json"
    if not written.is_file():
        raise UsageError(f"--config: {_expected(configs)}, to start a run in {workdir}, received nothing")
    return parse(dataclasses.replace(_read_file(written)[0], workdir=workdir), rest, description)


def _find_file(name: str, configs: pathlib.Path) -> pathlib.Path:
    with as_usage_error("--config"):
        files = [pathlib.Path(local(name)), configs / f"{name}.py"]
    for file in files:
        if file.is_file() and file.suffix in (".py", ".json"):
            return file
    raise UsageError(f"--config: {_expected(configs)}, received {name}")


def _expected(configs: pathlib.Path) -> str:
    return f"expected a file.py or one of {', '.join(sorted(file.stem for file in configs.glob('*.py')))}"


def _read_file(file: pathlib.Path) -> tuple[Config, str]:
    """The config of a file, and the docstring of a module."""
    if file.suffix == ".json":
        return read_json(file), ""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever somebody else's code may raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"--config: expected get_config() in {file}, received {said}") from error
    if not isinstance(config, Config):
        raise UsageError(f"--config: expected get_config() in {file} to return a Config, received {type(config).__name__}")
    with as_usage_error(f"--config {file}"):
        return checked(config), (module.__doc__ or "").strip()


def read_json(file: pathlib.Path) -> Config:
    """The config of a config.json. Raises UsageError, which names the file and the field, if it cannot be read."""
    with as_usage_error(f"{file}"):
        try:
            return from_dict(json.loads(file.read_text()))
        except RecursionError as error:
            raise ValueError(f"expected the config of a run, received {error}") from error


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
        ValueError: a field that this version does not know, one of another kind that is not at its default, or a value of the
            wrong type.
    """
    return checked(_from_dict(Config(workdir=""), values))


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
        tag = kinds.tag(type(default))
        if not isinstance(flat.get(tag, ""), str | None):
            raise ValueError(f"{name}.{tag}: expected a name, received {flat[tag]!r:.200}")
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
