"""Sources in memory: their items, and the files that they refuse."""

import io
import os
import pathlib
import re
import struct
import zipfile

import numpy as np
import pytest
from image_files import damaged, gradient

from ddpm_jax.data import files, sources, tfds


def test_digits_are_scaled_to_the_full_range():
    import sklearn.datasets

    source, raw = sources.digits(), sklearn.datasets.load_digits()
    assert len(source) == 1797
    images = np.stack([source[index]["image"] for index in range(1797)])
    assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1)
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_allclose(images[..., 0] / 255, raw.images / 16, atol=0.5 / 255)


def test_held_out_digits_are_not_in_the_training_split():
    train, test, everything = (sources.digits(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1498, 299, 1797)
    images = [{source[i]["image"].tobytes() for i in range(len(source))} for source in (train, test, everything)]
    assert not images[0] & images[1]
    assert images[0] | images[1] == images[2]
    assert np.bincount([test[i]["label"] for i in range(299)]).min() > 20
    with pytest.raises(ValueError, match="split: expected all, train or test"):
        sources.digits("validation")


def test_digits_have_scalar_labels():
    labels = [sources.digits()[index]["label"] for index in range(10)]
    assert [int(label) for label in labels] == list(range(10))
    assert all(isinstance(label, np.ndarray) and label.dtype == np.int32 and label.shape == () for label in labels)
    assert sources.digits("test").classes == tuple("0123456789")


class Squares(sources.Source):
    """A user's source, with the default `take`."""

    num_classes = 100

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": np.asarray(index**2, np.int32)}


def test_npz_gives_back_its_arrays(tmp_path):
    image, label = np.stack([gradient(), 255 - gradient()]), np.array([7, -1])
    np.savez_compressed(tmp_path / "set.npz", image=image, label=label, caption=np.array(["a", "b"]))
    source = sources.npz(tmp_path / "set.npz")
    assert len(source) == 2
    assert [item.keys() for item in (source[0], source[1])] == [{"image", "label"}] * 2
    np.testing.assert_array_equal(np.stack([source[0]["image"], source[1]["image"]]), image)
    assert source[1]["label"] == -1 and source[1]["label"].dtype == np.int32 and source[1]["label"].shape == ()


def test_npz_accepts_grayscale_without_a_channel_axis_and_no_labels(tmp_path):
    image = gradient(5, 6, 1)[None, ..., 0]
    np.savez(tmp_path / "set.npz", image=image)
    item = sources.npz(tmp_path / "set.npz")[0]
    assert item.keys() == {"image"} and item["image"].shape == (5, 6, 1)
    np.testing.assert_array_equal(item["image"][..., 0], image[0])


def test_npz_has_the_names_of_its_classes(tmp_path):
    image, label = np.zeros((2, 4, 4, 1), np.uint8), np.array([1, -1])
    np.savez(tmp_path / "set.npz", image=image, label=label, classes=np.array(["cats", "dogs", "geese"]))
    source = sources.npz(tmp_path / "set.npz")
    assert (source.classes, source.num_classes) == (("cats", "dogs", "geese"), 3)
    np.savez(tmp_path / "set.npz", image=image, label=label)
    source = sources.npz(tmp_path / "set.npz")
    assert (source.classes, source.num_classes) == (None, 2)


BATCH = np.zeros((3, 4, 4, 3), np.uint8)
LABEL = np.array([0, 2, 1])


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": BATCH}, "expected an array `image`, received none"),
        ({"image": BATCH.astype(np.float32)}, r"received float32 \[3, 4, 4, 3\]"),
        ({"image": BATCH[0, 0]}, r"received uint8 \[4, 3\]"),
        ({"image": BATCH[None]}, r"received uint8 \[1, 3, 4, 4, 3\]"),
        ({"image": BATCH[:0]}, r"received uint8 \[0, 4, 4, 3\]"),
        ({"image": np.array([BATCH[0], BATCH[0, :2]], object)}, "all images in one shape"),
        (
            {"image": np.zeros((3, 3, 8, 6), np.uint8)},
            r"channels last, received uint8 \[3, 3, 8, 6\].*transpose\(0, 2, 3, 1\)",
        ),
        ({"image": np.zeros((3, 1, 28, 28), np.uint8)}, r"channels last, received uint8 \[3, 1, 28, 28\]"),
        ({"image": np.zeros((3, 4, 8, 8), np.uint8)}, r"channels last, received uint8 \[3, 4, 8, 8\]"),
        ({"image": BATCH, "label": np.zeros(2, int)}, r"`label` as integers \[3\], received int64 \[2\]"),
        ({"image": BATCH, "label": np.zeros((3, 1), int)}, r"received int64 \[3, 1\]"),
        ({"image": BATCH, "label": np.zeros(3)}, r"received float64 \[3\]"),
        ({"image": np.zeros((3, 2, 28, 28), np.uint8)}, r"channels last, received uint8 \[3, 2, 28, 28\]"),
        ({"image": BATCH[:, :0]}, r"received uint8 \[3, 0, 4, 3\]"),
        ({"image": BATCH, "label": LABEL, "classes": np.arange(3)}, r"`classes` as strings \[K\], received int64 \[3\]"),
        ({"image": BATCH, "label": LABEL, "classes": np.array("a")}, r"`classes` as strings \[K\], received <U1 \[\]"),
        ({"image": BATCH, "label": LABEL, "classes": np.array(["a", "b"])}, "names for `label` up to 2, received 2 names"),
        ({"image": BATCH, "label": LABEL, "classes": np.array(["a", "b", "a"])}, "different names for `label` up to 2"),
        ({"image": BATCH, "classes": np.array(["a"])}, "expected `classes` with a `label`, received 1 names"),
    ],
)
def test_npz_names_the_mistake_in_its_arrays(tmp_path, arrays, message):
    file = tmp_path / "set.npz"
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=message) as raised:
        sources.npz(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("shape", [(3, 4, 4, 4), (3, 3, 3, 3), (3, 4, 8, 4), (3, 32, 32, 4), (3, 8, 8, 16), (3, 1, 4, 8)])
def test_npz_accepts_any_number_of_channels(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "set.npz", image=image)
    np.testing.assert_array_equal(sources.npz(tmp_path / "set.npz").take(np.arange(3))["image"], image)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return pathlib.Path.touch, (self.file,)


def test_npz_never_unpickles(tmp_path):
    np.savez(tmp_path / "set.npz", image=np.array([Bomb(tmp_path / "exploded")], object))
    with pytest.raises(ValueError, match="plain arrays"):
        sources.npz(tmp_path / "set.npz")
    assert not (tmp_path / "exploded").exists()


def test_npz_refuses_other_files(tmp_path):
    file = tmp_path / "set.npz"
    with pytest.raises(FileNotFoundError, match=re.escape(str(file))):
        sources.npz(file)
    np.savez(file, image=BATCH)
    whole = file.read_bytes()
    for content in (b"", b"not a zip archive", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="a truncated one or another kind of file"):
            sources.npz(file)
    file.write_bytes(whole[:200] + b"\xff" + whole[201:])
    with pytest.raises(ValueError, match="cannot be read"):
        sources.npz(file)


def read_damaged_npz(file, num, seed):
    """Reads `num` damaged files; returns how many were refused. Raises for any outcome but that, by name, or a source."""
    rng, num_refused, wholes = np.random.default_rng(seed), 0, []
    arrays = {
        "image": rng.integers(0, 256, (3, 4, 4, 3), np.uint8),
        "label": np.arange(3),
        "classes": np.array(["a", "b", "c"]),
    }
    for save in (np.savez, np.savez_compressed):
        save(file, **arrays)
        wholes.append(file.read_bytes())
    for number in range(num):
        file.write_bytes(damaged(wholes[number % 2], rng))
        try:
            assert sources.npz(file).take(np.arange(3))["image"].shape == (3, 4, 4, 3)
        except ValueError as error:
            if not str(error).startswith("npz: ") or str(file) not in str(error) or "\n" in str(error):
                raise
            num_refused += 1
    return num_refused


def test_a_damaged_npz_is_named_wherever_the_damage_is(tmp_path):
    assert 150 < read_damaged_npz(tmp_path / "set.npz", 300, seed=0) < 290


def write_npz(file, header, content, method=zipfile.ZIP_DEFLATED):
    """An .npz file with any header, and any content after it."""
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": "|u1", "fortran_order": False, "shape": (3, 4, 4, 3)} | header)
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("image.npy", start.getvalue() + content)


@pytest.mark.parametrize(
    "header, content, message",
    [
        (
            {"shape": (10**5, 10**5, 10**5)},
            BATCH.tobytes(),
            r"uint8 \[100000, 100000, 100000\] by its header, but has 144 bytes",
        ),
        ({"shape": (3, -4, -4, 3)}, BATCH.tobytes(), "by its header, but has 144"),
        ({"shape": (-3, 4, 4, 3)}, BATCH.tobytes(), "by its header, but has 144"),
        ({"shape": (3, 4, 4)}, BATCH.tobytes(), "by its header, but has 144"),
        ({"descr": "|O"}, BATCH.tobytes(), "is an array of objects"),
        ({"descr": "<U0", "shape": (10**15,)}, b"", "by its header, but has 0 bytes"),
        ({"shape": (3, 16, 16, 2)}, bytes(1536), "more than the 1,024 bytes of memory"),
    ],
)
def test_npz_refuses_a_header_before_it_allocates_memory(tmp_path, monkeypatch, header, content, message):
    file, allocated = tmp_path / "set.npz", []
    write_npz(file, header, content)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *args, **options: allocated.append(args))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 32, "SC_PAGE_SIZE": 32}.get)
    with pytest.raises(ValueError, match=message) as raised:
        sources.npz(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)
    assert not allocated


def test_npz_refuses_sizes_that_the_file_cannot_hold(tmp_path):
    """The archive says, as the array's header does, that there is a gigabyte."""
    file = tmp_path / "set.npz"
    write_npz(file, {"shape": (2**20, 32, 32, 1)}, b"")
    content, size = bytearray(file.read_bytes()), struct.pack("<I", 128 + 2**30)
    content[22:26] = size
    directory = content.index(b"PK\1\2")
    content[directory + 24 : directory + 28] = size
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"uint8 \[1048576, 32, 32, 1\] by its header, more than \d+ bytes can hold") as raised:
        sources.npz(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("make", [sources.digits, Squares])
def test_take_stacks_the_items(make):
    source = make()
    indices = np.array([3, 0, 3])
    taken = source.take(indices)
    assert taken.keys() == {"image", "label"}
    for name, array in taken.items():
        np.testing.assert_array_equal(array, np.stack([source[index][name] for index in indices]))
        assert array.dtype == source[0][name].dtype


def test_the_old_names_of_sources_work_for_a_version():
    assert sources.folder is files.folder
    assert sources.tfds is tfds.tfds
    with pytest.raises(AttributeError, match="no attribute 'folders'"):
        sources.folders  # noqa: B018
