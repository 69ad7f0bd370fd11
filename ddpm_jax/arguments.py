"""Checks of arguments that every public function shares, by types, shapes and dtypes: free of cost, also under `jit`.

Each raises TypeError or ValueError with one line, "argument: expected ..., received ...".
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def described(a: Any) -> str:
    """An argument in a few words, for messages: "float32[4, 2]", "the function ddim", "a Level", "3"."""
    if a is None or isinstance(a, bool | int | float | complex | str):
        return repr(a)
    if hasattr(a, "dtype") and hasattr(a, "shape"):
        return f"{a.dtype}{list(a.shape)}"
    if isinstance(a, type):
        return f"the class {a.__name__}"
    if callable(a) and hasattr(a, "__name__"):
        return f"the function {a.__name__}"
    return f"a {type(a).__name__}"


def check_key(key: Any) -> None:
    """Raises TypeError unless key is one typed key."""
    if not hasattr(key, "dtype") or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key: expected a typed key such as jax.random.key(0), received {described(key)}")
    if key.shape != ():
        raise TypeError(f"key: expected one key, received {described(key)}; jax.vmap maps over several")


def check_integer(name: str, a: Any) -> None:
    """Raises TypeError unless `a` is an integer, of Python or numpy."""
    try:
        operator.index(a)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, received {described(a)}") from None


def check_floating(name: str, a: Any) -> None:
    """Raises TypeError unless `a` is an array [B, ...] of floating-point numbers."""
    if not (hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating)):
        raise TypeError(f"{name}: expected a floating-point array, received {described(a)}")
    if a.ndim == 0:
        raise ValueError(f"{name}: expected an array [B, ...], received a scalar")


def check_x0(x0: Any) -> None:
    """Raises TypeError unless x0 is floating-point data [B, ...]."""
    if not (hasattr(x0, "dtype") and jnp.issubdtype(x0.dtype, jnp.floating)):
        raise TypeError(f"x0: expected floating-point data in [-1, 1], received {described(x0)}")
    check_floating("x0", x0)


def check_shape(name: str, a: Any, shape: tuple[int, ...], why: str) -> None:
    """Raises ValueError unless `a` has the shape, which is that of `why`."""
    if np.shape(a) != tuple(shape):
        raise ValueError(f"{name}: expected {why}, {tuple(shape)}, received {np.shape(a)}")


def check_per_example(name: str, a: Any, batch_size: int) -> None:
    """Raises ValueError unless `a` is a scalar or [B]."""
    if np.shape(a) not in ((), (batch_size,)):
        raise ValueError(f"{name}: expected a scalar or shape {(batch_size,)}, received shape {np.shape(a)}")


def check_schedule(schedule: Any) -> None:
    """Raises TypeError unless a schedule has the interface of `schedules.HasLevels`."""
    if isinstance(schedule, type) or not all(hasattr(schedule, a) for a in ("num_steps", "last", "level", "level_at")):
        raise TypeError(f"schedule: expected a noise schedule such as schedules.linear(1000), received {described(schedule)}")


def check_grid(levels: Any) -> None:
    """Raises TypeError unless levels are a Level, and ValueError unless its arrays are one-dimensional and equally long."""
    if isinstance(levels, type) or not all(hasattr(levels, a) for a in ("t", "alpha", "sigma")):
        raise TypeError(f"levels: expected a grid such as grids.spaced(schedule, 50), received {described(levels)}")
    shapes = [np.shape(a) for a in (levels.t, levels.alpha, levels.sigma)]
    if len(shapes[1]) != 1 or len(set(shapes)) > 1:
        raise ValueError(f"levels: expected a grid, t, alpha and sigma each [N + 1], received shapes {shapes}")


def check_function(name: str, function: Any, expected: str) -> None:
    """Raises TypeError unless `function` can be called, and is no flax module without parameters (see `Module.bind`)."""
    if hasattr(function, "apply") and hasattr(function, "init") and getattr(function, "scope", None) is None:
        raise TypeError(f"{name}: expected {expected}, received the network {type(function).__name__} without parameters")
    if not callable(function):
        raise TypeError(f"{name}: expected {expected}, received {described(function)}")


def known(name: str, a: Any) -> np.ndarray:
    """`a` as a numpy array; TypeError if it is traced."""
    if is_traced(a):
        raise TypeError(f"{name}: expected known values, received traced ones, those of an argument of jit, vmap or grad")
    return np.asarray(a)


def is_traced(*arrays: Any) -> bool:
    """Whether the values of any of the arrays are unknown, as those of arguments are in a function under `jit`."""
    return any(isinstance(a, jax.core.Tracer) for a in arrays)
