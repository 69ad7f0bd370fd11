"""The layers: a file imports only from lower ones, and the mathematics needs jax and numpy alone."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ddpm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"_version", "arguments"},
    {"keys", "schedules"},
    {"diffusion"},
    {"denoiser"},
    {"guidance", "samplers", "likelihood", "preconditioning"},
    {"losses", "latents"},
    {"networks"},
    {"devices"},
    {"config", "data"},
    {"runs"},
    {"training"},
    {"objectives", "evaluation", "pipelines"},
    {"factory"},
    {"interop"},
]
SCRIPTS = {PACKAGE / "interop" / "__main__.py", PACKAGE / "runs" / "__main__.py"}
"""Run by `python -m`; nothing imports them."""
ALIASES = {PACKAGE / f"{name}.py" for name in ("continuous", "timesteps", "weightings", "ema", "images")}
"""Old names of modules that have moved, for one version."""
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
MATHEMATICS = {name for names in LAYERS[:6] for name in names}
CONFIGURED = {"config", "runs", "factory", "interop"}
"""Who may know a config: `runs` writes it beside a run."""


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


def package(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if path == PACKAGE / "__init__.py":
        assert {name.split(".")[1] for name in imports(path)} <= MATHEMATICS
        return
    if path in ALIASES:
        (module,) = imports(path)
        assert module.rpartition(".")[2] == path.stem
        return
    here = package(path)
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
    if package(path) in MATHEMATICS or path in ALIASES:
        assert third_party <= {"jax", "numpy"}
    if package(path) != "networks":
        assert "flax" not in third_party


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_jax_and_no_long_files(path):
    assert not [name for name in imports(path) if (name.startswith("jax") and "._" in name) or "_src" in name]
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("path", [*FILES, *ROOT.glob("*.py")], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_long_functions(path):
    """Without the docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - docstring <= 60, f"{path}: {node.name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "training").glob("*.py")), ids=lambda path: path.name)
def test_training_knows_an_objective_and_neither_diffusion_nor_networks_nor_a_config(path):
    known = {name.split(".")[1] for name in imports(path) if name.startswith("ddpm_jax.")}
    assert known <= {"devices", "runs", "training"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_who_reads_a_config_knows_it(path):
    if package(path) not in CONFIGURED:
        assert not [name for name in imports(path) if name.startswith("ddpm_jax.config")]


def test_the_old_names_of_modules_have_what_the_new_ones_have():
    for path in ALIASES:
        (new,) = imports(path)
        old, module = importlib.import_module(f"ddpm_jax.{path.stem}"), importlib.import_module(new)
        public = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == new]
        assert len(public) > 3
        assert all(getattr(old, name) is getattr(module, name) for name in public if not name.startswith("_"))


def test_importing_the_package_pulls_in_nothing_heavy():
    code = "import sys, jax, numpy; before = set(sys.modules); import ddpm_jax; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(name.startswith(("ddpm_jax", "jax.")) or name in sys.stdlib_module_names for name in loaded), loaded
