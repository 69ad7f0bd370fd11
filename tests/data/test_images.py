import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import images


def test_every_grey_value_survives_the_way_there_and_back():
    grey = jnp.arange(256, dtype=jnp.uint8)
    x = images.to_float(grey)
    assert x.dtype == jnp.float32
    assert (x[0], x[-1]) == (-1, 1)
    np.testing.assert_array_equal(images.to_uint8(x), grey)


def test_to_uint8_rounds_and_clips():
    x = (jnp.array([-3.0, 10.4, 10.6, 254.6, 300.0]) / 127.5) - 1
    np.testing.assert_array_equal(images.to_uint8(x), [0, 10, 11, 255, 255])


def test_flips_are_random_per_image():
    """400 images: 200 +- 10 are mirrored, and the rest are untouched."""
    x = jax.random.normal(jax.random.key(0), (400, 4, 5, 2))
    flipped = images.random_flip(jax.random.split(jax.random.key(1), 400), x)
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, x, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(flipped, x, strict=True)])
    assert np.all(mirrored ^ same)
    assert abs(mirrored.sum() - 200) < 4 * 10


@pytest.mark.parametrize(("num", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (64, 8, 8)])
def test_a_grid_holds_every_image_in_order(num, rows, columns):
    image = np.arange(1, num + 1, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), np.uint8)
    sheet = images.grid(image)
    assert sheet.shape == (rows * 4 - 1, columns * 5 - 1, 1)
    cells = [sheet[r * 4 : r * 4 + 3, c * 5 : c * 5 + 4] for r in range(rows) for c in range(columns)]
    np.testing.assert_array_equal(cells[:num], image)
    assert not np.any(cells[num:])
    assert sheet.sum() == image.sum(), "gaps are black"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_grid_is_the_grid_enlarged(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, channels), np.uint8)
    images.save_grid(tmp_path / "new" / "grid.png", image)
    saved = np.asarray(Image.open(tmp_path / "new" / "grid.png")).reshape(510, 510, channels)
    np.testing.assert_array_equal(saved[::30, ::30], images.grid(image))
