import concurrent.futures
import json
import threading

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.runs.sample_folder import SampleFolder

SETTINGS = {"seed": 0, "steps": 50, "label": (1, 2), "network": {"channels": 8}, "churn_high": float("inf")}


def batch_of(numbers):
    """Images whose pixels equal their numbers."""
    return np.broadcast_to(np.array(numbers, np.uint8)[:, None, None, None], (len(numbers), 2, 3, 1))


def fill(folder, most=99):
    batches = folder.missing[:most]
    for batch in batches:
        folder.add(batch, batch_of(folder.numbers(batch)))
    return batches


def check_samples(path, numbers):
    with np.load(path / "samples.npz") as arrays:
        assert arrays["image"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["index"], list(numbers))
        np.testing.assert_array_equal(arrays["image"], batch_of(list(numbers)))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_whole_batches_are_generated_and_the_requested_images_kept(tmp_path):
    folder = SampleFolder(tmp_path / "out", SETTINGS, range(5, 12), 4, png=True, about={"workdir": "runs/a"})
    assert fill(folder) == [1, 2]
    folder.finish()
    check_samples(tmp_path / "out", range(5, 12))
    assert names(tmp_path / "out") == ["grid.png", "images", "samples.npz", "settings.json"]
    assert names(tmp_path / "out" / "images") == [f"{n:06d}.png" for n in range(5, 12)]
    np.testing.assert_array_equal(Image.open(tmp_path / "out" / "images" / "000011.png"), np.full((2, 3), 11))
    written = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert written == SETTINGS | {"label": [1, 2], "workdir": "runs/a"}


def test_it_resumes_from_stored_batches_of_any_size_and_range(tmp_path):
    assert fill(SampleFolder(tmp_path, SETTINGS, range(1, 12), 4), most=2) == [0, 1]
    (tmp_path / "unfinished" / "00000008-00000011.npy.tmp").write_bytes(b"half a ba")
    (tmp_path / "unfinished" / "notes.txt").write_text("mine")
    stored = tmp_path / "unfinished" / "00000001-00000003.npy"
    np.save(stored, batch_of([101, 2, 3]))  # so that it shows that it is not generated again
    assert SampleFolder(tmp_path, SETTINGS, range(1, 20), 4).missing == [2, 3, 4]
    folder = SampleFolder(tmp_path, SETTINGS, range(1, 14), 5, about={"workdir": "moved"})
    assert fill(folder) == [1, 2], "5 to 7 are there, 8 to 13 are not"
    folder.finish()
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["image"], batch_of([101, *range(2, 14)]))
    assert names(tmp_path / "unfinished") == ["notes.txt"]


def test_finished_samples_are_not_generated_again_and_others_join_them(tmp_path):
    for numbers, batches in ((range(10, 14), [2, 3]), (range(12, 20), [3, 4]), (range(3), [0]), (range(20), [0, 1, 2])):
        folder = SampleFolder(tmp_path, SETTINGS, numbers, 4)
        assert fill(folder) == batches
        folder.finish()
    check_samples(tmp_path, range(20))
    before = (tmp_path / "samples.npz").read_bytes()
    folder = SampleFolder(tmp_path, SETTINGS, range(20), 7, png=True)
    assert folder.missing == []
    folder.finish()
    assert (tmp_path / "samples.npz").read_bytes() == before
    assert len(names(tmp_path / "images")) == 20


def test_the_grid_has_the_first_256_that_are_there(tmp_path):
    for numbers in (range(300, 310), range(7)):
        folder = SampleFolder(tmp_path, SETTINGS, numbers, 100)
        for batch in folder.missing:
            folder.add(batch, np.full((100, 2, 3, 1), 1 + batch, np.uint8))
        folder.finish()
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.count_nonzero(pixels == 4) * 7 == np.count_nonzero(pixels == 1) * 10 > 0, "7 and 10 images"
    folder = SampleFolder(tmp_path, SETTINGS, range(290), 100)
    for batch in folder.missing:
        folder.add(batch, np.full((100, 2, 3, 1), 1 + batch, np.uint8))
    folder.finish()
    assert not np.any(np.asarray(Image.open(tmp_path / "grid.png")) == 4), "300 to 309 no longer"


def test_a_folder_of_other_settings_is_refused_and_left_as_it_is(tmp_path):
    folder = SampleFolder(tmp_path, SETTINGS, range(4), 4)
    fill(folder)
    folder.finish()
    fill(SampleFolder(tmp_path, SETTINGS, range(9), 4), most=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for changed, said in {
        ("steps", 100): "has steps 50, now 100; choose another --out",
        ("network", ("channels", 16)): r"has network.channels 8, now 16; choose",
        ("eta", 0.5): "has eta None, now 0.5; choose",
    }.items():
        value = dict([changed[1]]) if isinstance(changed[1], tuple) else changed[1]
        with pytest.raises(ValueError, match=f"^expected an empty folder or one of the same settings, {tmp_path} {said}"):
            SampleFolder(tmp_path, SETTINGS | {changed[0]: value}, range(4), 4)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"has another settings\.json; choose"):
        SampleFolder(tmp_path, SETTINGS, range(4), 4)


@pytest.mark.parametrize("name", ["samples.npz", "grid.png", "unfinished/settings.json", "images/photo.png"])
def test_files_of_our_names_without_settings_are_refused(tmp_path, name):
    """As a user, or version 0.2, may have left them."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    before = sorted(tmp_path.rglob("*"))
    shown = name.split("/")[0]
    with pytest.raises(ValueError, match=rf"{tmp_path} has {shown} without settings\.json; choose another --out"):
        SampleFolder(tmp_path, SETTINGS, range(4), 4, png=True)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "others").mkdir()
    SampleFolder(tmp_path / "others", SETTINGS, range(4), 4)


def test_processes_with_different_numbers_share_a_folder(tmp_path):
    """Eight at once, in step with one another; neighbours need parts of the same batch."""
    turns = threading.Barrier(8, timeout=60)

    def generate(process):
        turns.wait()
        folder = SampleFolder(tmp_path, SETTINGS, range(10 * process, 10 * process + 10), 4)
        for batch in folder.missing:
            turns.wait()
            folder.add(batch, batch_of(folder.numbers(batch)))
        folder.finish()
        assert set(range(10 * process, 10 * process + 10)) <= set(np.load(tmp_path / "samples.npz")["index"].tolist())

    def report(process):
        try:
            generate(process)
        except threading.BrokenBarrierError:
            return None  # another one reports why
        except Exception as error:
            turns.abort()
            return error

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(report, range(8))) == [None] * 8
    check_samples(tmp_path, range(80))
    assert names(tmp_path) == ["grid.png", "samples.npz", "settings.json"]


def test_numbers_belong_to_one_process_until_it_ends(tmp_path):
    first = SampleFolder(tmp_path, SETTINGS, range(4, 12), 4)
    message = f"^expected samples of no other process, samples 4 to 11 of {tmp_path} are being generated$"
    for numbers in (range(4, 12), range(11, 13), range(5), range(20)):
        with pytest.raises(ValueError, match=message):
            SampleFolder(tmp_path, SETTINGS, numbers, 4)
    SampleFolder(tmp_path, SETTINGS, range(12, 14), 4)
    fill(first, most=1)
    del first  # as if killed: the system closes its files
    again = SampleFolder(tmp_path, SETTINGS, range(4, 12), 4)
    assert fill(again) == [2]
    again.finish()
    check_samples(tmp_path, range(4, 12))
    assert SampleFolder(tmp_path, SETTINGS, range(20), 4).missing == [0, 3, 4], "finished, it no longer reserves them"


def test_a_finish_needs_all_samples_and_a_folder_that_can_be_written(tmp_path):
    folder = SampleFolder(tmp_path / "out", SETTINGS, range(8), 4)
    fill(folder, most=1)
    with pytest.raises(ValueError, match="sample 4 is missing"):
        folder.finish()
    assert names(tmp_path / "out") == ["settings.json", "unfinished"]
    (tmp_path / "out" / "samples.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"expected images and their index in .*samples\.npz, cannot read it"):
        SampleFolder(tmp_path / "out", SETTINGS, range(8, 9), 4)
    for wrong in ({}, {"image": np.zeros((3, 2, 2, 1), np.uint8)}, {"image": np.zeros((2, 2, 2, 1), np.float32)}):
        np.savez(tmp_path / "out" / "samples.npz", index=np.arange(2), **wrong)
        with pytest.raises(ValueError, match=r"expected images and their index in .*samples\.npz, cannot read it"):
            SampleFolder(tmp_path / "out", SETTINGS, range(8, 9), 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        SampleFolder(tmp_path / "file", SETTINGS, range(3), 2)
