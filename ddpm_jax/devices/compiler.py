"""Compilation: CPU cores as devices, XLA options, compile times, and the on-disk cache.

`compiler_options` and `row_major` are re-exported from `networks.cpu` for `training`, which may not import networks.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax.networks.cpu import compiler_options, row_major

__all__ = ["MIN_IMAGES_PER_CORE", "compiled", "compiler_options", "divide_cores", "enable_compilation_cache", "row_major"]

MIN_IMAGES_PER_CORE = 4
"""Minimum number of images per CPU core when a batch is divided among cores."""


def divide_cores(batch_size: int) -> None:
    """On CPU, makes as many cores devices as divide a batch; call it before anything is computed.

    With one device, XLA divides each operation among all cores, which synchronize after each. Without gradients, a network is
    faster if each core has its own images: on two cores, 64 digits take 0.85 of the time. Training is slower.

    Args:
        batch_size: Number of images; each core gets at least `MIN_IMAGES_PER_CORE`. If the user has set the number of devices,
            it is kept. So it is if JAX has already computed something, as in a notebook.
    """
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and hasattr(os, "sched_getaffinity"):
        most = min(len(os.sched_getaffinity(0)), max(1, batch_size // MIN_IMAGES_PER_CORE))
        with contextlib.suppress(RuntimeError):  # JAX has devices already
            jax.config.update("jax_num_cpu_devices", max(n for n in range(1, most + 1) if batch_size % n == 0))


def compiled(
    jitted: Any,
    name: str,
    say: Callable[[str], None],
    doing: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Callable[..., Any]:
    """A function that compiles at its first call and prints the compile time; later calls need arguments of the same shapes.

    Args:
        jitted: A function from `jax.jit`.
        name: Its name in that line.
        say: Prints the line.
        doing: Called with "compiling <name>"; the compilation runs within the context, as with `Progress.doing`.
    """
    programs: list[jax.stages.Compiled] = []

    def run(*arguments: Any) -> Any:
        if not programs:
            began = time.perf_counter()
            with doing(f"compiling {name}"):
                programs.append(jitted.lower(*arguments).compile())
            say(f"compiled {name} in {time.perf_counter() - began:.1f} s")
        return programs[0](*arguments)

    return run


def enable_compilation_cache() -> None:
    """Turns on JAX's compilation cache in the user's cache folder, so that the same command starts faster the next time.

    JAX_COMPILATION_CACHE_DIR names another folder; if it is set but empty, there is no cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", os.path.join(caches, "ddpm_jax"))
