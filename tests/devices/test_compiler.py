import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.devices import compiler


@pytest.mark.parametrize("environment, devices", [
    ({}, [1, 1, 2, 6, 4, 3]),
    ({"JAX_NUM_CPU_DEVICES": "3"}, [3, 3, 3, 3, 3, 3]),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, [8, 8, 8, 8, 8, 8]),
])  # fmt: skip
def test_as_many_cores_become_devices_as_divide_a_batch_unless_the_user_chose(environment, devices):
    """With six cores, each of which gets at least four images."""
    code = """if True:
        import os, jax, jax.extend
        from ddpm_jax.devices import compiler
        os.sched_getaffinity = lambda process: set(range(6))
        chosen = int(os.environ.get("JAX_NUM_CPU_DEVICES", -1))
        for batch_size in (1, 7, 8, 30, 64, 27):
            compiler.divide_cores(batch_size)
            print(jax.device_count())
            jax.extend.backend.clear_backends()
            jax.config.update("jax_num_cpu_devices", chosen)
    """
    printed = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert list(map(int, printed.stdout.split())) == devices, printed.stderr


def test_a_program_is_compiled_once_and_its_compile_time_printed():
    traced, said = [], []

    @jax.jit
    def double(x):
        traced.append(x)
        return 2 * x

    compiled = compiler.compiled(double, "the doubling", said.append)
    assert said == []
    assert [float(compiled(jnp.float32(x))) for x in (1, 2, 3)] == [2, 4, 6]
    assert len(traced) == 1
    (line,) = said
    assert re.fullmatch(r"compiled the doubling in \d+\.\d s", line)


@pytest.mark.parametrize(("environment", "folder"), [
    ({"XDG_CACHE_HOME": "/caches"}, "/caches/ddpm_jax"),
    ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/ddpm_jax"),
    ({"XDG_CACHE_HOME": "/caches", "JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine"),
    ({"XDG_CACHE_HOME": "/caches", "JAX_COMPILATION_CACHE_DIR": ""}, ""),
])  # fmt: skip
def test_programs_are_cached_in_the_user_s_folder_in_another_or_not_at_all(monkeypatch, environment, folder):
    before, theirs = jax.config.jax_compilation_cache_dir, environment.get("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    jax.config.update("jax_compilation_cache_dir", theirs)  # as JAX reads it at import
    try:
        compiler.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
