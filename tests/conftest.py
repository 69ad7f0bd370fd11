import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Real data sets, where the environment has them."""
    folder = os.environ.get("DDPM_JAX_TEST_DATA")
    if folder is None:
        pytest.skip("DDPM_JAX_TEST_DATA is not set")
    return pathlib.Path(folder)
