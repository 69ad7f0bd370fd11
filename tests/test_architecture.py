"""The layers: a file imports only from lower ones, and the mathematics needs jax and numpy alone."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "ddpm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"_version", "ema", "keys"},
    {"schedules"},
    {"continuous", "diffusion"},
    {"denoiser"},
    {"likelihood", "timesteps", "weightings"},
    {"losses", "guidance", "samplers"},
    {"experiments"},
    {"cli", "sharding"},
    {"aside"},
    {"array_files"},
    {"clipping", "distributed", "networks", "config", "checkpoint", "preemption", "writers", "images"},
    {"data", "interop", "workdir", "gallery"},
    {"factory"},
    {"training", "evaluation"},
]
SCRIPTS = {PACKAGE / "interop" / "__main__.py"}
"""Run by `python -m`: as train.py and sample.py, they know the config and the factory, and nothing imports them."""
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
MATHEMATICS = {name for names in LAYERS[:7] for name in names}


def imports(path):
    """The modules that a file imports, anywhere in it: "flax.linen", "ddpm_jax.keys", ..."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "ddpm_jax":
                yield from (f"ddpm_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if path == PACKAGE / "__init__.py":
        assert {name.split(".")[1] for name in imports(path)} <= MATHEMATICS
        return
    if path in SCRIPTS:
        return
    here = room(path)
    assert here in LAYER, f"{path} belongs to no layer"
    for name in imports(path):
        top, *rest = name.split(".")
        assert rest[-1:] != ["__main__"], f"{path} imports a script"
        if top == "ddpm_jax" and rest[0] != here:
            assert LAYER[rest[0]] < LAYER[here], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_mathematics_needs_jax_and_numpy_alone_and_only_networks_know_flax(path):
    tops = {name.split(".")[0] for name in imports(path)}
    third_party = tops - set(sys.stdlib_module_names) - {"ddpm_jax"}
    if room(path) in MATHEMATICS:
        assert third_party <= {"jax", "numpy"}
    if room(path) != "networks":
        assert "flax" not in third_party


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_jax_and_no_long_files(path):
    assert not [name for name in imports(path) if (name.startswith("jax") and "._" in name) or "_src" in name]
    assert len(path.read_text().splitlines()) <= 400


def test_importing_the_package_pulls_in_nothing_heavy():
    code = "import sys, jax, numpy; before = set(sys.modules); import ddpm_jax; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(name.startswith(("ddpm_jax", "jax.")) or name in sys.stdlib_module_names for name in loaded), loaded
