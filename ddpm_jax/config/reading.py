"""How a config is read from a file, the command line, and a workdir."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

from ddpm_jax.config.cli import UsageError, as_usage_error, parse
from ddpm_jax.config.schema import Config

T = TypeVar("T")


def read_config(argv: Sequence[str], configs: pathlib.Path, default: str, description: str) -> Config:
    """Reads `--config NAME_OR_FILE`, then the other options as overrides of what the file says; also a workdir's config.json.

    Args:
        argv: The command line, without the program's name.
        configs: The folder in which `--config NAME` looks for NAME.py.
        default: The name where no `--config` is given.
        description: Begins the help text.

    Returns:
        The Config.

    Raises:
        UsageError: an unknown config or option, or a value of the wrong type.
        SystemExit: after --help.
    """
    name, rest = _take_option(argv, "--config", default)
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


def _take_option(argv: Sequence[str], option: str, default: str) -> tuple[str, list[str]]:
    """The value of the last `option VALUE` or `option=VALUE`, and what else there is."""
    rest, value, words = [], default, list(argv)
    while words:
        word = words.pop(0)
        if word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
        elif word != option:
            rest.append(word)
        elif words:
            value = words.pop(0)
        else:
            raise UsageError(f"{option}: expected a value")
    return value, rest


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`, also after a round trip through JSON; missing fields take their defaults.

    Raises:
        ValueError: a field that this version does not know.
    """
    return _from_dict(Config(workdir=""), values)


def _from_dict(default: T, values: Any) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"config: expected fields by name, received {values!r}")
    known = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}  # type: ignore[arg-type]
    if unknown := set(values) - set(known):
        raise ValueError(f"config: expected only fields of this version, received {', '.join(sorted(unknown))}")
    read = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(known[name]):
            value = _from_dict(known[name], value)
        read[name] = _tuples(value)
    return dataclasses.replace(default, **read)  # type: ignore[type-var]


def _tuples(value: Any) -> Any:
    """What JSON made lists of, as it was."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
