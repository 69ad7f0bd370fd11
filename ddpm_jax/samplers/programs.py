"""The sampling loop outside `jit`: compiled once, however often it is called.

JAX recompiles a scan whenever its body is a new function, as it is at every call of `sample`. Here the loop is traced at every
call, so that it reads the current values of all that the denoiser closes over; they become arguments of the program, which is
kept and found again by its text.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax import arguments

MOST = 32
"""The number of programs that are kept; the least recently used is freed."""
CALLBACKS = ("callback", "host_transfer")
"""Marks in the text of programs that call Python, as `jax.pure_callback` does. It lacks the function, so they are not kept."""


class Program:
    """A compiled function, equal to all others of the same text.

    Attributes:
        run: (constants, leaves of the arguments) -> leaves of the outputs.
        digest: Hash of its text.
    """

    def __init__(self, run: Callable[[list[Any], list[Any]], list[Any]], digest: bytes):
        self.run, self.digest = run, digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@functools.lru_cache(MOST)
def first(program: Program) -> Program:
    """The first program of the same text, which is compiled already."""
    return program


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Returns function(*args); outside of transformations it compiles once for every text of the function's program.

    Args:
        function: A function of pytrees of arrays that JAX can trace. The arrays it closes over are not part of its text.
        args: Pytrees of arrays.

    Returns:
        Its outputs. Under `jit`, `vmap` or `grad` the function becomes part of the program around it.
    """
    leaves = jax.tree.leaves(args)
    if jax.config.jax_disable_jit or arguments.is_traced(*leaves):  # type: ignore[attr-defined]
        return function(*args)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr, constants = closed.jaxpr, closed.consts
    if arguments.is_traced(*constants):
        outputs = jax.core.eval_jaxpr(jaxpr, constants, *leaves)
    else:
        # a jaxpr of arguments alone: one with constants may hold them for as long as its program is kept
        jaxpr = jax.make_jaxpr(lambda *a, of=jaxpr: jax.core.eval_jaxpr(of, a[: len(constants)], *a[len(constants) :]))(
            *constants, *leaves
        ).jaxpr
        run = jax.jit(lambda constants, leaves: jax.core.eval_jaxpr(jaxpr, [], *constants, *leaves), keep_unused=True)
        text = run.lower(constants, leaves).as_text() + str([jax.typeof(a) for a in (*constants, *leaves)])
        program = Program(run, hashlib.sha256(text.encode()).digest())
        outputs = (program if any(word in text for word in CALLBACKS) else first(program)).run(constants, leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)
