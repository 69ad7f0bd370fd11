"""Folders of image files: their items and labels, and the files that they leave out or refuse."""

import concurrent.futures
import logging
import pathlib
import re
import time
import warnings

import numpy as np
import pytest
from image_files import flat, gradient, save, truncate
from PIL import Image

from ddpm_jax.data import decoding, files


def test_folder_finds_images_at_any_depth_in_the_order_of_their_paths(tmp_path):
    names = ["b.PNG", "a/z.png", "a/deep/er/c.WebP", "a.png", "Z.JPG", "c.jpeg"]
    for name in names:
        save(tmp_path / name, flat(20 * names.index(name)), **({"lossless": True} if name.endswith("WebP") else {}))
    for ignored in [".hidden.png", ".cache/d.png", "a/.git/e.png"]:
        save(tmp_path / ignored, flat(255))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    source = files.folder(tmp_path, 8)
    levels = [int(source[index]["image"][0, 0, 0]) for index in range(len(source))]
    assert levels == [20 * names.index(name) for name in sorted(names)]


def test_folder_is_gray_only_if_all_files_are(tmp_path):
    save(tmp_path / "a.png", flat(50))
    save(tmp_path / "b.jpg", flat(50))
    assert files.folder(tmp_path, 4)[1]["image"].shape == (4, 4, 1)
    save(tmp_path / "c.png", flat((1, 2, 3), "RGB"))
    source = files.folder(tmp_path, 4)
    assert source[0]["image"].tolist() == [[[50, 50, 50]] * 4] * 4
    assert source[2]["image"].tolist() == [[[1, 2, 3]] * 4] * 4


def test_folder_labels_class_folders_by_their_sorted_names(tmp_path):
    for name in ["dog/b.png", "cat/a.png", "ant/c.png", "dog/a.png"]:
        save(tmp_path / name, flat(0))
    source = files.folder(tmp_path, 4)
    labels = [source[index]["label"] for index in range(4)]  # ant/c, cat/a, dog/a, dog/b
    assert [int(label) for label in labels] == [0, 1, 2, 2]
    assert all(label.dtype == np.int32 and label.shape == () for label in labels)
    assert (source.classes, source.num_classes) == (("ant", "cat", "dog"), 3)


@pytest.mark.parametrize(
    "names, why",
    [
        (["a.png", "b.png"], None),
        (["one/a.png", "one/b.png"], "expected a folder for each of two classes or more, found only one"),
        (["x/a.png", "y/a.png", "b.png"], "expected every image one folder down, in that of its class, found {}/b.png"),
        (["x/a.png", "y/z/a.png"], "expected every image one folder down, in that of its class, found {}/y/z/a.png"),
        (["x/y/a.png", "x/z/a.png"], "expected every image one folder down, in that of its class, found {}/x/y/a.png"),
    ],
)
def test_folder_says_why_there_are_no_labels_without_class_folders(tmp_path, names, why, caplog):
    for name in names:
        save(tmp_path / name, flat(0))
    with caplog.at_level(logging.WARNING):
        source = files.folder(tmp_path, 4)
    assert source[0].keys() == {"image"} and source.num_classes is None and source.classes is None
    assert caplog.messages == ([] if why is None else [f"{tmp_path} has no labels: {why.format(tmp_path)}"])


def test_folder_names_and_leaves_out_files_that_are_not_images(tmp_path, caplog):
    save(tmp_path / "good.png", flat(1))
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    truncate(save(tmp_path / "half.webp", gradient()))
    bomb = bytearray((tmp_path / "good.png").read_bytes())
    bomb[16:24] = b"\x00\x01\x00\x00" * 2  # 65,536 x 65,536 pixels
    (tmp_path / "bomb.png").write_bytes(bomb)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = files.folder(tmp_path, 8)
    assert len(source) == 1
    assert len(caplog.messages) == 4
    for name in ["empty.png", "page.jpg", "half.webp", "bomb.png"]:
        assert sum(name in message for message in caplog.messages) == 1


@pytest.mark.parametrize("ending", ["png", "jpg"])  # WebP has its length in the header, so half of one is not an image
def test_folder_replaces_a_damaged_image_by_the_next_readable_one(tmp_path, caplog, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ["x/1", "x/2", "y/3"]:
        save(tmp_path / f"{name}.png", flat((int(name[-1]), 0, 0), "RGB"))
    for name in ["x/2b", "y/4"]:
        truncate(save(tmp_path / f"{name}.{ending}", noise))
    source = files.folder(tmp_path, 8)
    with caplog.at_level(logging.WARNING), concurrent.futures.ThreadPoolExecutor(8) as pool:
        items = list(pool.map(source.__getitem__, list(range(5)) * 20))
    assert [int(item["image"][0, 0, 0]) for item in items] == [1, 2, 3, 3, 1] * 20
    assert [int(item["label"]) for item in items] == [0, 0, 1, 1, 0] * 20
    assert len(caplog.messages) == 2
    for name in ["2b", "4"]:
        assert sum(f"{name}.{ending}" in message for message in caplog.messages) == 1


def test_folder_raises_if_no_image_can_be_read(tmp_path):
    for name in ["a.png", "b.png"]:
        truncate(save(tmp_path / name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    with pytest.raises(OSError, match=r"none of the 2 images .*a\.png"):
        files.folder(tmp_path, 8)[1]


def test_folder_raises_for_an_index_beyond_its_files(tmp_path):
    save(tmp_path / "a.png", flat(0))
    with pytest.raises(IndexError):
        files.folder(tmp_path, 8)[1]


def test_folder_refuses_missing_and_empty_folders_and_sizes_below_1(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "missing"))):
        files.folder(tmp_path / "missing", 8)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"\.jpeg, \.jpg, \.png, \.webp") as raised:
        files.folder(tmp_path, 8)
    assert str(tmp_path) in str(raised.value)
    save(tmp_path / "a.png", flat(0))
    with pytest.raises(ValueError, match="image_size of at least 1, received 0"):
        files.folder(tmp_path, 0)


def test_folder_follows_links_to_folders_elsewhere(tmp_path):
    for name in ("ape", "bee", "cow"):
        for number in range(3):
            save(tmp_path / "store" / name / f"{number}.png", flat(number))
    (tmp_path / "data" / "ape").mkdir(parents=True)
    (tmp_path / "store" / "ape" / "0.png").rename(tmp_path / "data" / "ape" / "0.png")
    for name in ("bee", "cow"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / name)
    source = files.folder(tmp_path / "data", 8)
    assert (len(source), source.num_classes) == (7, 3)
    assert [int(source[index]["label"]) for index in range(7)] == [0, 1, 1, 1, 2, 2, 2]
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(files.folder(tmp_path / "link", 8)) == 7


def test_folder_follows_no_link_in_circles(tmp_path):
    """Links to folders that contain them, directly, via another link or above the root, and a broken link."""
    for name in ("outside.png", "data/a.png", "data/x/b.png", "store/y/c.png"):
        save(tmp_path / name, flat(0))
    (tmp_path / "data" / "x" / "self").symlink_to(tmp_path / "data" / "x")
    (tmp_path / "data" / "x" / "top").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "x" / "above").symlink_to(tmp_path)
    (tmp_path / "data" / "x" / "store").symlink_to(tmp_path / "store" / "y")
    (tmp_path / "store" / "y" / "back").symlink_to(tmp_path / "data" / "x")
    (tmp_path / "store" / "y" / "parent").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "nowhere").symlink_to(tmp_path / "missing")
    assert len(files.folder(tmp_path / "data", 8)) == 3  # a, x/b, x/store/c


def test_folder_names_a_folder_that_cannot_be_listed(tmp_path, caplog, monkeypatch):
    save(tmp_path / "good" / "a.png", flat(0))
    save(tmp_path / "bad" / "b.png", flat(0))
    listed = pathlib.Path.iterdir

    def iterdir(folder):
        if folder.name == "bad":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(pathlib.Path, "iterdir", iterdir)
    with caplog.at_level(logging.WARNING):
        assert len(files.folder(tmp_path, 8)) == 1
    assert sum("left out" in said for said in caplog.messages) == 1 and f"{tmp_path / 'bad'} is left out" in caplog.messages[0]


def test_folder_leaves_out_large_images_unless_they_are_admitted(tmp_path, caplog, monkeypatch):
    """As if Pillow took 2,000 pixels for a decompression bomb: its own limit is a variable of the process."""
    monkeypatch.setattr(decoding, "MAX_PIXELS", 2000)
    save(tmp_path / "large.png", flat(200, size=(50, 41)))
    save(tmp_path / "large.jpg", flat(200, size=(41, 50)))
    save(tmp_path / "large.webp", flat((200, 200, 200), "RGB", size=(41, 50)))
    save(tmp_path / "small.png", flat(100))
    with caplog.at_level(logging.WARNING):
        assert len(files.folder(tmp_path, 8, max_pixels=2049)) == 1
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert len(files.folder(tmp_path, 8, max_pixels=2000)) == 1
    ours, pillows = sorted(caplog.messages[:3]), sorted(caplog.messages[3:])
    message = f"{tmp_path / 'large.png'}: max_pixels: expected an image of at most 2,049 pixels, received 50 x 41 "
    assert [said.startswith(message) for said in ours] == [False, True, False]
    message = f"{tmp_path / 'large.png'}: max_pixels: Image size (2050 pixels) exceeds limit of 2000 pixels"
    assert [said.startswith(message) for said in pillows] == [False, True, False]
    assert all(said.endswith("(left out; --data.max_pixels lets it in)") for said in caplog.messages)
    for options in ({}, {"max_pixels": 2050}, {"max_pixels": None}):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = files.folder(tmp_path, 8, **options)
        large = sorted(caplog.messages)[1]
        assert (
            large.startswith(f"{tmp_path / 'large.png'} has 50 x 41 pixels and takes up to 0.0 GB")
            and len(caplog.messages) == 3
        )
        assert [int(source[index]["image"][4, 4, 0]) for index in range(4)] == [200, 200, 200, 100]
        assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(ValueError, match="expected max_pixels of at least 1 or None, received 0"):
        files.folder(tmp_path, 8, 0)


def test_large_images_are_decoded_one_at_a_time_and_jpeg_at_a_fraction_of_its_size(tmp_path, monkeypatch):
    """As if 2,000 pixels were large; each of eight threads reads three images."""
    for ending in ("png", "jpg", "webp"):
        save(tmp_path / f"large.{ending}", np.full((64, 96), 100, np.uint8))
    whole = [files.folder(tmp_path, 8)[index]["image"] for index in range(3)]
    monkeypatch.setattr(decoding, "MAX_PIXELS", 2000)
    upright, decoded, now, most = decoding._upright, [], [0], [0]

    def counted(image):
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.001)
        image = upright(image)
        decoded.append((image.format, image.size))
        now[0] -= 1
        return image

    monkeypatch.setattr(decoding, "_upright", counted)
    source = files.folder(tmp_path, 8)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        items = list(pool.map(source.__getitem__, [0, 1, 2] * 8))
    assert most == [1] and set(decoded) == {("JPEG", (24, 16)), ("PNG", (96, 64)), ("WEBP", (96, 64))}
    for item, expected in zip(items, whole * 8, strict=True):
        np.testing.assert_allclose(item["image"].astype(int), expected, atol=1)


def test_pillows_limit_is_as_it_says():
    assert decoding.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
