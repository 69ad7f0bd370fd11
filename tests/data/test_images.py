import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import images


def test_every_8_bit_value_survives_the_round_trip():
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


def test_four_channels_are_shown_as_rgba(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 4), np.uint8)
    images.save_grid(tmp_path / "grid.png", image, max_size=0)
    images.save(tmp_path / "one.png", image[1])
    assert Image.open(tmp_path / "grid.png").mode == "RGBA"
    np.testing.assert_array_equal(Image.open(tmp_path / "grid.png"), images.grid(image))
    np.testing.assert_array_equal(Image.open(tmp_path / "one.png"), image[1])


@pytest.mark.parametrize("channels", [2, 5])
def test_with_another_number_of_channels_the_first_is_shown(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), np.uint8)
    images.save(tmp_path / "one.png", image)
    np.testing.assert_array_equal(Image.open(tmp_path / "one.png"), image[..., 0])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_film_has_all_frames(tmp_path, channels):
    frames = np.zeros((3, 1, 4, 4, channels), np.uint8)
    frames[:, :, :, :, 0] = np.array([50, 120, 200])[:, None, None, None]
    frames[..., 3:] = 255
    images.save_film(tmp_path / "film.gif", frames)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
        for number, level in enumerate((50, 120, 200)):
            film.seek(number)
            assert film.convert("RGB").getpixel((100, 100)) == (level, *[level if channels == 1 else 0] * 2)
