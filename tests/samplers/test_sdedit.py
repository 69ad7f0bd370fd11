import jax.numpy as jnp
import numpy as np
import pytest
from sampler_checks import GAUSSIAN, KEY, SCHEDULE, exact

from ddpm_jax import samplers
from ddpm_jax.samplers import grids

GRID = grids.spaced(SCHEDULE, 10)
X0 = jnp.tile(jnp.linspace(-0.9, 0.9, 4)[:, None], (1, 2000))


def edit(strength, **options):
    return np.asarray(samplers.sdedit(KEY, samplers.ddim(), exact(GAUSSIAN), GRID, X0, strength, **options))


def test_a_strength_of_zero_gives_the_image_back():
    np.testing.assert_array_equal(edit(0.0), X0)


def test_from_the_image_to_the_data_as_strength_grows():
    """Data are N(0.5, 0.04): the influence of the image's mean falls with strength, to nothing."""
    spread = [np.ptp(edit(strength).mean(axis=1)) for strength in (0.0, 0.2, 0.5, 1.0)]
    assert np.all(np.diff(spread) < -0.05)
    assert spread[0] == pytest.approx(1.8, abs=1e-6)
    assert spread[-1] < 0.05


def test_the_start_is_the_image_noised_to_the_level():
    """From the last step of ten, at t = 0, x is x0 up to the noise there; example i has the noise of its id."""
    np.testing.assert_allclose(edit(0.1), X0, atol=5 * float(SCHEDULE.sigma[0]))
    np.testing.assert_allclose(edit(0.5)[2:3], samplers.sdedit(
        KEY, samplers.ddim(), exact(GAUSSIAN), GRID, X0[2:3], 0.5, ids=[2]), atol=1e-5)  # fmt: skip


def test_mistakes_are_refused():
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            edit(strength)
    with pytest.raises(TypeError, match="key"):
        samplers.sdedit(None, samplers.ddim(), exact(GAUSSIAN), GRID, X0, 0.5)
