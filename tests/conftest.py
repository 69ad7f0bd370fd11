import atexit
import os
import pathlib
import shutil
import tempfile

# Tests compile far more than they compute; without LLVM's optimisations they take half the time. Processes inherit it.
UNOPTIMISED = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}".strip()

# One folder of compiled programs for all processes of a run, and nothing in the user's.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Thousands of compiled programs would fill the memory, and slow the search for garbage."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Real data sets, where the environment has them."""
    folder = os.environ.get("DDPM_JAX_TEST_DATA")
    if folder is None:
        pytest.skip("DDPM_JAX_TEST_DATA is not set")
    return pathlib.Path(folder)
