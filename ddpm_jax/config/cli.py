"""The command line: trees of dataclasses as options, and errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import tyro

from ddpm_jax.config import kinds, values
from ddpm_jax.devices.compiler import enable_compilation_cache
from ddpm_jax.devices.preemption import EarlyExit, is_interactive

T = TypeVar("T")

PARSING = threading.Lock()
"""Held while a command line is parsed, for which sys.stderr is replaced; Python's own parser is not safe in threads either."""


class UsageError(Exception):
    """A mistake by the user, in one line that names the option and what was expected."""


def parse(default: T, argv: Sequence[str], description: str, flat: str = "") -> T:
    """Reads a tree of dataclasses from the command line.

    Args:
        default: The values of options that are not given.
        argv: The command line, without the program's name.
        description: Begins the help text.
        flat: A field whose options have no prefix; it is annotated with `tyro.conf.arg(name="")`.

    Returns:
        The default, with the given options replaced. A choice becomes the kind that its tag asks for (see `kinds`), and keeps
        the fields of the same name.

    Raises:
        UsageError: an unknown option, one of another kind, a value of the wrong type, or a URL instead of a path.
        SystemExit: after --help.
    """
    default, argv = _choose(default, argv, flat)
    printed = io.StringIO()
    try:
        with PARSING, contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(
                type(default), default=default, args=argv, description=description, return_unknown_args=True,
                config=(tyro.conf.FlagConversionOff,), use_underscores=True,
            )  # fmt: skip
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(_one_line(printed.getvalue())) from None
    if unknown:
        raise _unknown(unknown[0], default, flat)
    try:
        return values.checked(value, flat)
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def options(tree: Any, flat: str = "", prefix: str = "") -> dict[str, Any]:
    """All fields of a tree of dataclasses by their dotted names, {"train.num_steps": 100, ...}; see `parse` for `flat`."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            found |= options(value, flat, prefix + _prefix(field.name, flat))
        else:
            found[prefix + field.name] = value
    return found


def take_option(argv: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The value of the last `option VALUE` or `option=VALUE`, None without, and the rest of the command line."""
    rest, value, words = [], None, list(argv)
    while words:
        name, equals, text = words[0].partition("=")
        if name.replace("-", "_") != option.replace("-", "_"):
            rest.append(words.pop(0))
        elif equals:
            value = text
            words.pop(0)
        elif len(words) > 1:
            value, words = words[1], words[2:]
        else:
            raise UsageError(f"{option}: expected a value")
    return value, rest


def _choose(tree: T, argv: Sequence[str], flat: str) -> tuple[T, Sequence[str]]:
    """The tree, its choices of the kinds that the command line asks for, and the rest of the command line."""
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        value = getattr(tree, field.name)
        if isinstance(type(value), kinds.Choice):
            option = f"--{_prefix(field.name, flat)}{kinds.tag(type(value))}"
            name, argv = take_option(argv, option)
            if name is not None:
                known = {str(known): known for known in kinds.kinds(type(value))}
                if name not in known:
                    raise UsageError(f"{option}: expected {', '.join(known)}, received {name}{_nearest(name, known, '')}")
                tree = dataclasses.replace(tree, **{field.name: kinds.become(value, known[name])})  # type: ignore[type-var]
    return tree, argv


def _unknown(word: str, tree: Any, flat: str) -> UsageError:
    """The error for an option that the tree doesn't have, but perhaps another kind of one of its choices."""
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    for field in dataclasses.fields(tree):
        value, prefix = getattr(tree, field.name), _prefix(field.name, flat)
        if not isinstance(type(value), kinds.Choice) or not name.startswith(prefix):
            continue
        others = kinds.kinds_with(type(value), name.removeprefix(prefix))
        if others and not hasattr(value, name.removeprefix(prefix)):
            tag = kinds.tag(type(value))
            return UsageError(f"--{name}: expected with --{prefix}{tag} {' or '.join(map(str, others))}, "
                              f"received with {getattr(value, tag)}")  # fmt: skip
    return UsageError(f"{word}: expected an option{_nearest(name, options(tree, flat))}; --help lists them")


def _prefix(field: str, flat: str) -> str:
    return "" if field == flat else f"{field}."


@contextlib.contextmanager
def as_usage_error(option: str) -> Iterator[None]:
    """Turns errors into a UsageError that names the option; for a section, "--network.", that in which the error begins."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, OverflowError, MemoryError) as error:
        said = " ".join(str(error).split())
        option = option if option.endswith(".") and re.match(r"\w+: ", said) else f"{option.rstrip('.')}: "
        raise UsageError(f"{option}{said}") from error


def run_script(main: Callable[[Sequence[str]], None], section: str = "") -> None:
    """Runs a script's main; an early end becomes one line on stderr and an exit code, 2 for a UsageError, else 1.

    Warnings are lines too, and come once each.

    Args:
        main: Takes the command line, without the program's name.
        section: Section of the config whose options have no prefix in this script: "sample." makes --sample.eta --eta.
    """
    enable_compilation_cache()
    try:
        with _warnings_as_lines():
            main(sys.argv[1:])
    except (UsageError, EarlyExit, FloatingPointError) as error:
        kind = "" if isinstance(error, EarlyExit) else "error: "
        print(
            f"{pathlib.Path(sys.argv[0]).name}: {kind}{str(error).replace(f'--{section}', '--')}",
            file=sys.__stderr__,
            flush=True,
        )
        _exit(2 if isinstance(error, UsageError) else getattr(error, "code", 1))
    except KeyboardInterrupt:
        if is_interactive():
            raise
        _exit(128 + signal.SIGINT)
    except BrokenPipeError:  # nobody reads the output any more, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(128 + signal.SIGPIPE)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc(file=sys.__stderr__)
        _exit(1)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        line = " ".join(str(message).split())
        if line not in said:
            print(f"{pathlib.Path(sys.argv[0]).name}: note: {line}", file=sys.__stderr__, flush=True)
        said.add(line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _exit(code: int) -> NoReturn:
    if jax.distributed.is_initialized():  # JAX would wait for the run's other processes at exit, and they for this one
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _nearest(word: str, names: Iterable[str], dashes: str = "--") -> str:
    """The option that was probably meant: of that section by its initials or letters, or of any; else the section's own."""
    section, _, field = word.split("=")[0].lstrip("-").replace("-", "_").rpartition(".")
    by_field = {name: name.rpartition(".")[2] for name in names}
    within = {name: last for name, last in by_field.items() if name.rpartition(".")[0] == section} if section else {}
    for known in (within, by_field):
        for name, last in known.items():
            if field in (last, "".join(part[:1] for part in last.split("_"))):
                return f", perhaps {dashes}{name}"
    close = difflib.get_close_matches(field, within.values(), n=1)
    if close:
        return f", perhaps {dashes}{section}.{close[0]}"
    if within:
        return f", --{section} has {', '.join(within.values())}"
    close = difflib.get_close_matches(word, list(by_field), n=1)
    return f", perhaps {dashes}{close[0]}" if close else ""


def _one_line(boxed: str) -> str:
    """The text of tyro's error box, without its title and its hint at --help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in boxed.splitlines()[1:]]
    text = " ".join(line for line in lines if line)
    return re.split(r" ?(For full helptext|Argument helptext)", text)[0].strip(" :")
