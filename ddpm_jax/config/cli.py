"""The command line: trees of dataclasses as options, and mistakes as one line."""

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
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import tyro

from ddpm_jax.devices.compiler import keep_programs
from ddpm_jax.devices.preemption import Ended

T = TypeVar("T")


class UsageError(Exception):
    """A mistake by the user, in one line that names the option and what was expected."""


def parse(default: T, argv: Sequence[str], description: str) -> T:
    """Reads a tree of dataclasses from the command line.

    Args:
        default: The values of options that are not given.
        argv: The command line, without the program's name.
        description: Begins the help text.

    Returns:
        The default, with the given options replaced.

    Raises:
        UsageError: an unknown option, or a value of the wrong type.
        SystemExit: after --help.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(
                type(default), default=default, args=argv, description=description, return_unknown_args=True,
                config=(tyro.conf.FlagConversionOff,),
            )  # fmt: skip
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(_one_line(printed.getvalue())) from None
    if unknown:
        raise UsageError(f"{unknown[0]}: expected an option{_nearest(unknown[0], options(default))}; --help lists them")
    return value


def options(tree: Any, prefix: str = "") -> dict[str, Any]:
    """All fields of a tree of dataclasses by their dotted names, {"train.num_steps": 100, ...}."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        name = prefix + field.name
        found |= options(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


@contextlib.contextmanager
def as_usage_error(option: str) -> Iterator[None]:
    """Turns errors of what is built from an option into a UsageError that names it."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UsageError(f"{option}: {' '.join(str(error).split())}") from error


def run_script(main: Callable[[Sequence[str]], None], section: str = "") -> None:
    """Runs a script's main; what ends it early becomes one line on stderr and an exit code: a UsageError 2, else 1.

    Args:
        main: Takes the command line, without the program's name.
        section: Part of the config whose options the script has without its name: "sample." makes --sample.eta --eta.
    """
    keep_programs()
    try:
        main(sys.argv[1:])
    except (UsageError, Ended, FloatingPointError) as error:
        kind = "" if isinstance(error, Ended) else "error: "
        print(
            f"{pathlib.Path(sys.argv[0]).name}: {kind}{str(error).replace(f'--{section}', '--')}",
            file=sys.__stderr__,
            flush=True,
        )
        sys.stdout.flush()
        code = 2 if isinstance(error, UsageError) else getattr(error, "code", 1)
        os._exit(code)  # at once: threads of libraries have no more to say
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)  # or JAX would wait for the run's other processes, and they for this one


def _nearest(word: str, names: dict[str, Any]) -> str:
    close = difflib.get_close_matches(word.split("=")[0].lstrip("-").replace("-", "_"), names, n=1)
    return f", perhaps --{close[0]}" if close else ""


def _one_line(boxed: str) -> str:
    """What tyro says in a box, without the box, its title, and its hint at --help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in boxed.splitlines()[1:]]
    text = " ".join(line for line in lines if line)
    return re.split(r" ?(For full helptext|Argument helptext)", text)[0].strip(" :")
