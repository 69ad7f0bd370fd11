import numpy as np
import pytest
from PIL import Image

from ddpm_jax.runs.sample_folder import SampleFolder

SETTINGS = {"seed": 0, "sample": {"steps": 5, "label": (1, 2)}}


def batch_of(numbers):
    """Images of their numbers."""
    return np.broadcast_to(np.array(numbers, np.uint8)[:, None, None, None], (len(numbers), 2, 3, 1))


def fill(gallery, most=99):
    drawn = gallery.missing[:most]
    for batch in drawn:
        gallery.add(batch, batch_of(gallery.numbers(batch)))
    return drawn


def test_whole_batches_are_drawn_and_the_images_asked_for_are_kept(tmp_path):
    gallery = SampleFolder(tmp_path / "out", SETTINGS, range(5, 12), 4)
    assert fill(gallery) == [1, 2]
    gallery.finish(png=True)
    image = np.load(tmp_path / "out" / "samples.npz")["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, batch_of(range(5, 12)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.png", "images", "samples.npz"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [f"{n:06d}.png" for n in range(5, 12)]
    np.testing.assert_array_equal(Image.open(tmp_path / "out" / "images" / "000011.png"), np.full((2, 3), 11))


def test_it_goes_on_with_what_is_there_unless_that_is_of_something_else(tmp_path):
    assert fill(SampleFolder(tmp_path, SETTINGS, range(12), 4), most=2) == [0, 1]
    (tmp_path / "unfinished" / "00000002.npy.tmp").write_bytes(b"half a ba")
    assert SampleFolder(tmp_path, SETTINGS, range(20), 4).missing == [2, 3, 4], "also when more are asked for"
    (tmp_path / "unfinished" / "notes.txt").write_text("mine")
    for settings, size in ((SETTINGS | {"seed": 1}, 4), (SETTINGS | {"seed": 1}, 3)):
        gallery = SampleFolder(tmp_path, settings, range(12), size)
        assert gallery.missing[0] == 0
        fill(gallery)
    gallery.finish()
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["notes.txt"]
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["image"], batch_of(range(12)))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        SampleFolder(tmp_path / "file", SETTINGS, range(3), 2)
