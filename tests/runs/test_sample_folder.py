import numpy as np
import pytest
from PIL import Image

from ddpm_jax.runs.sample_folder import SampleFolder

SETTINGS = {"seed": 0, "sample": {"steps": 5, "label": (1, 2)}}


def batch_of(numbers):
    """Images whose pixels equal their numbers."""
    return np.broadcast_to(np.array(numbers, np.uint8)[:, None, None, None], (len(numbers), 2, 3, 1))


def fill(folder, most=99):
    batches = folder.missing[:most]
    for batch in batches:
        folder.add(batch, batch_of(folder.numbers(batch)))
    return batches


def test_whole_batches_are_generated_and_the_requested_images_kept(tmp_path):
    folder = SampleFolder(tmp_path / "out", SETTINGS, range(5, 12), 4)
    assert fill(folder) == [1, 2]
    folder.finish(png=True)
    image = np.load(tmp_path / "out" / "samples.npz")["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, batch_of(range(5, 12)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.png", "images", "samples.npz"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [f"{n:06d}.png" for n in range(5, 12)]
    np.testing.assert_array_equal(Image.open(tmp_path / "out" / "images" / "000011.png"), np.full((2, 3), 11))


def test_it_resumes_from_stored_batches_unless_the_settings_differ(tmp_path):
    assert fill(SampleFolder(tmp_path, SETTINGS, range(12), 4), most=2) == [0, 1]
    (tmp_path / "unfinished" / "00000002.npy.tmp").write_bytes(b"half a ba")
    assert SampleFolder(tmp_path, SETTINGS, range(20), 4).missing == [2, 3, 4], "even when more are requested"
    (tmp_path / "unfinished" / "notes.txt").write_text("mine")
    for settings, size in ((SETTINGS | {"seed": 1}, 4), (SETTINGS | {"seed": 1}, 3)):
        folder = SampleFolder(tmp_path, settings, range(12), size)
        assert folder.missing[0] == 0
        fill(folder)
    folder.finish()
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["notes.txt"]
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["image"], batch_of(range(12)))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        SampleFolder(tmp_path / "file", SETTINGS, range(3), 2)
