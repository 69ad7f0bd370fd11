"""The sources, on real files: what they hold, what they refuse, and what they say then."""

import concurrent.futures
import contextlib
import logging
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from fixtures import make_tfds
from PIL import Image

from ddpm_jax.data import cache, files, pipeline, sources, tfds

FIXTURE = make_tfds.DIRECTORY.parents[1]


def gradient(height=12, width=12, channels=3):
    """An image uint8 [height, width, channels] without symmetry."""
    y, x, c = np.mgrid[:height, :width, :channels]
    return ((y * 7 + x * 13 + c * 40) % 256).astype(np.uint8)


def save(file, image, **options):
    """Writes an image, an array or one of Pillow's, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())
    image.save(file, **options)
    return file


def truncate(file):
    """Keeps the header of an image and the first half of its pixels."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flat(level, mode="L", size=(8, 8)):
    """An image of one colour, by Pillow."""
    return Image.new(mode, size, level)


# ---- digits


def test_digits_are_scaled_to_the_full_range():
    import sklearn.datasets

    source, raw = sources.digits(), sklearn.datasets.load_digits()
    assert len(source) == 1797
    images = np.stack([source[index]["image"] for index in range(1797)])
    assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1)
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_allclose(images[..., 0] / 255, raw.images / 16, atol=0.5 / 255)


def test_digits_that_are_held_out_are_not_trained_on():
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


# ---- npz


def test_npz_gives_back_its_arrays(tmp_path):
    image, label = np.stack([gradient(), 255 - gradient()]), np.array([7, -1])
    np.savez_compressed(tmp_path / "set.npz", image=image, label=label, caption=np.array(["a", "b"]))
    source = sources.npz(tmp_path / "set.npz")
    assert len(source) == 2
    assert [item.keys() for item in (source[0], source[1])] == [{"image", "label"}] * 2
    np.testing.assert_array_equal(np.stack([source[0]["image"], source[1]["image"]]), image)
    assert source[1]["label"] == -1 and source[1]["label"].dtype == np.int32 and source[1]["label"].shape == ()


def test_npz_takes_grayscale_without_a_channel_axis_and_no_labels(tmp_path):
    image = gradient(5, 6, 1)[None, ..., 0]
    np.savez(tmp_path / "set.npz", image=image)
    item = sources.npz(tmp_path / "set.npz")[0]
    assert item.keys() == {"image"} and item["image"].shape == (5, 6, 1)
    np.testing.assert_array_equal(item["image"][..., 0], image[0])


BATCH = np.zeros((3, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": BATCH}, "expected an array `image`, received none"),
        ({"image": BATCH.astype(np.float32)}, r"received float32 \[3, 4, 4, 3\]"),
        ({"image": BATCH[0, 0]}, r"received uint8 \[4, 3\]"),
        ({"image": BATCH[None]}, r"received uint8 \[1, 3, 4, 4, 3\]"),
        ({"image": BATCH[:0]}, r"received uint8 \[0, 4, 4, 3\]"),
        ({"image": np.array([BATCH[0], BATCH[0, :2]], object)}, "all images in one shape"),
        ({"image": BATCH, "label": np.zeros(2, int)}, r"`label` as integers \[3\], received int64 \[2\]"),
        ({"image": BATCH, "label": np.zeros((3, 1), int)}, r"received int64 \[3, 1\]"),
        ({"image": BATCH, "label": np.zeros(3)}, r"received float64 \[3\]"),
    ],
)
def test_npz_says_what_is_wrong_with_its_arrays(tmp_path, arrays, message):
    file = tmp_path / "set.npz"
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=message) as raised:
        sources.npz(file)
    assert str(file) in str(raised.value)


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
        with pytest.raises(ValueError, match="something else, or a part of one"):
            sources.npz(file)
    file.write_bytes(whole[:200] + b"\xff" + whole[201:])
    with pytest.raises(ValueError, match="cannot be read"):
        sources.npz(file)


# ---- folder


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


@pytest.mark.parametrize(
    "image, expected",
    [
        (flat(1, "1"), [255]),
        (flat(77, "L"), [77]),
        (flat((40, 255), "LA"), [40]),
        (flat((40, 0), "LA"), [255]),
        (flat((0, 102), "LA"), [153]),  # 40 % black on white
        (Image.fromarray(np.full((8, 8), 0x8080, np.uint16)), [128]),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), [255]),
        (Image.fromarray(np.full((8, 8), 257, np.uint16)), [1]),
        (flat((10, 20, 30), "RGB"), [10, 20, 30]),
        (flat((10, 20, 30, 255), "RGBA"), [10, 20, 30]),
        (flat((10, 20, 30, 0), "RGBA"), [255, 255, 255]),
        (flat((0, 255, 0, 51), "RGBA"), [204, 255, 204]),  # 20 % green on white
        (flat((10, 20, 30), "RGB").quantize(4), [10, 20, 30]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_folder_converts_every_mode_of_png(tmp_path, image, expected):
    save(tmp_path / "image.png", image)
    pixels = files.folder(tmp_path, 8)[0]["image"]
    assert pixels.dtype == np.uint8 and pixels.shape == (8, 8, len(expected))
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.array(expected), pixels.shape))


def test_folder_scales_mode_i_by_16_bits(tmp_path):
    # Older versions of Pillow open a 16-bit PNG so; newer ones do with a TIFF, whatever its name ends in.
    save(tmp_path / "image.png", Image.fromarray(np.full((8, 8), 257 * 100, np.int32)), format="TIFF")
    assert files.folder(tmp_path, 8)[0]["image"].ravel().tolist() == [100] * 64


@pytest.mark.parametrize("transparent, expected", [(0, [255, 255, 255]), (1, [10, 20, 30])])
def test_folder_lays_a_transparent_palette_colour_on_white(tmp_path, transparent, expected):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    save(tmp_path / "image.png", image, transparency=transparent)
    assert files.folder(tmp_path, 8)[0]["image"][3, 3].tolist() == expected


def test_folder_reads_cmyk_jpeg(tmp_path):
    save(tmp_path / "image.jpg", flat((0, 255, 255, 0), "CMYK"), quality=100)
    pixels = files.folder(tmp_path, 8)[0]["image"].astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() < 4


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_folder_turns_images_as_exif_says(tmp_path, ending):
    image = np.zeros((16, 16), np.uint8)
    image[:8, :8] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: top right
    save(tmp_path / f"image.{ending}", image, exif=exif)
    pixels = files.folder(tmp_path, 16)[0]["image"][..., 0]
    corners = [pixels[2, 2], pixels[2, -3], pixels[-3, 2], pixels[-3, -3]]
    assert [bool(level > 128) for level in corners] == [False, True, False, False]


def test_folder_is_gray_only_if_all_files_are(tmp_path):
    save(tmp_path / "a.png", flat(50))
    save(tmp_path / "b.jpg", flat(50))
    assert files.folder(tmp_path, 4)[1]["image"].shape == (4, 4, 1)
    save(tmp_path / "c.png", flat((1, 2, 3), "RGB"))
    source = files.folder(tmp_path, 4)
    assert source[0]["image"].tolist() == [[[50, 50, 50]] * 4] * 4
    assert source[2]["image"].tolist() == [[[1, 2, 3]] * 4] * 4


@pytest.mark.parametrize("height, width", [(12, 12), (12, 31), (24, 13)])
def test_folder_crops_the_centre(tmp_path, height, width):
    image = gradient(height, width)
    save(tmp_path / "image.png", image)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    np.testing.assert_array_equal(files.folder(tmp_path, side)[0]["image"], image[top : top + side, left : left + side])


def test_folder_resizes_without_aliasing(tmp_path):
    stripes = np.zeros((90, 90), np.uint8)
    stripes[:, ::2] = 255  # the finest there are: gray from afar, but bands to a filter that skips pixels
    save(tmp_path / "image.png", stripes)
    inside = files.folder(tmp_path, 20)[0]["image"][:, 2:-2].astype(int)
    assert np.abs(inside - 127.5).max() < 8


def test_folder_enlarges_small_images(tmp_path):
    save(tmp_path / "image.png", flat(9, size=(3, 5)))
    assert files.folder(tmp_path, 16)[0]["image"].tolist() == [[[9]] * 16] * 16


def test_folder_labels_class_folders_by_their_sorted_names(tmp_path):
    for name in ["dog/b.png", "cat/a.png", "ant/c.png", "dog/a.png"]:
        save(tmp_path / name, flat(0))
    source = files.folder(tmp_path, 4)
    labels = [source[index]["label"] for index in range(4)]  # ant/c, cat/a, dog/a, dog/b
    assert [int(label) for label in labels] == [0, 1, 2, 2]
    assert all(label.dtype == np.int32 and label.shape == () for label in labels)


@pytest.mark.parametrize(
    "names", [["a.png", "b.png"], ["one/a.png", "one/b.png"], ["x/a.png", "y/a.png", "b.png"], ["x/a.png", "y/z/a.png"]]
)
def test_folder_has_no_labels_without_class_folders(tmp_path, names):
    for name in names:
        save(tmp_path / name, flat(0))
    assert files.folder(tmp_path, 4)[0].keys() == {"image"}


def test_folder_names_and_leaves_out_what_is_no_image(tmp_path, caplog):
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


@pytest.mark.parametrize("ending", ["png", "jpg"])  # WebP tells its length in the header: half of one is no image
def test_folder_puts_the_next_readable_image_in_the_place_of_a_damaged_one(tmp_path, caplog, ending):
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


def test_folder_gives_up_when_no_image_can_be_read(tmp_path):
    for name in ["a.png", "b.png"]:
        truncate(save(tmp_path / name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    with pytest.raises(OSError, match=r"none of the 2 images .*a\.png"):
        files.folder(tmp_path, 8)[1]


def test_folder_ends_where_its_files_do(tmp_path):
    save(tmp_path / "a.png", flat(0))
    with pytest.raises(IndexError):
        files.folder(tmp_path, 8)[1]


def test_folder_refuses_what_it_cannot_use(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "missing"))):
        files.folder(tmp_path / "missing", 8)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"\.jpeg, \.jpg, \.png, \.webp") as raised:
        files.folder(tmp_path, 8)
    assert str(tmp_path) in str(raised.value)
    save(tmp_path / "a.png", flat(0))
    with pytest.raises(ValueError, match="image_size of at least 1, received 0"):
        files.folder(tmp_path, 0)


# ---- tfds


@pytest.fixture
def prepared(tmp_path):
    """A folder of prepared data sets to change."""
    shutil.copytree(FIXTURE, tmp_path / "tfds")
    return tmp_path / "tfds"


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_gives_back_images_and_labels(split):
    source = tfds.tfds("cifar10", split, FIXTURE)
    expected = make_tfds.examples(split)
    assert len(source) == len(expected)
    for index, (image, label) in enumerate(expected):
        item = source[index]
        assert item.keys() == {"image", "label"} and item["image"].dtype == np.uint8
        np.testing.assert_array_equal(item["image"], image)
        assert item["label"] == label and item["label"].dtype == np.int32 and item["label"].shape == ()


def test_tfds_reads_parts_of_splits():
    source = tfds.tfds("cifar10", "train[25%:50%]", FIXTURE)
    assert len(source) == 16
    np.testing.assert_array_equal(source[0]["image"], make_tfds.examples("train")[16][0])


def test_tfds_resizes_as_folder_does(tmp_path):
    save(tmp_path / "image.png", make_tfds.examples("train")[0][0])
    resized = tfds.tfds("cifar10", "train", FIXTURE, image_size=20)[0]["image"]
    np.testing.assert_array_equal(resized, files.folder(tmp_path, 20)[0]["image"])


def test_tfds_can_be_read_from_many_threads():
    source = tfds.tfds("cifar10", "train", FIXTURE)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        items = list(pool.map(source.__getitem__, list(range(64)) * 8))
    expected = [label for _, label in make_tfds.examples("train")] * 8
    assert [int(item["label"]) for item in items] == expected


def test_tfds_needs_no_tensorflow():
    program = f"""
        import importlib.machinery
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] == "tensorflow" else None

            def create_module(self, spec):
                raise ImportError("blocked")

            def exec_module(self, module):
                raise ImportError("blocked")

        sys.meta_path.insert(0, Blocked())
        sys.path.insert(0, {str(FIXTURE.parent.parent)!r})
        import numpy as np
        import tensorflow_datasets
        from fixtures import make_tfds
        from ddpm_jax.data import tfds

        for split in ("train", "test"):
            images = np.stack([image for image, _ in make_tfds.examples(split)])
            ours = tfds.tfds("cifar10", split, {str(FIXTURE)!r})
            theirs = tensorflow_datasets.data_source("cifar10", split=split, data_dir={str(FIXTURE)!r}, download=False)
            for source in (ours, theirs):
                read = [source[index]["image"] for index in range(len(source))]
                np.testing.assert_array_equal(np.stack(read), images)
        try:
            tfds.tfds("lsun/church_outdoor", "train", {str(FIXTURE)!r})
        except FileNotFoundError:
            pass
        assert "tensorflow" not in sys.modules
        try:
            import tensorflow
        except ImportError:
            print("read without TensorFlow")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert result.stdout == "read without TensorFlow\n", result.stderr


def test_tfds_finds_configurations_and_the_newest_version(prepared):
    shutil.copytree(prepared / "cifar10" / "3.0.2", prepared / "lsun" / "church_outdoor" / "3.0.2")
    for version in ["3.0.10", "2.9.9", "incomplete.ABC_9.0.0"]:
        shutil.copytree(prepared / "cifar10" / "3.0.2", prepared / "cifar10" / version)
    rewrite(prepared / "cifar10" / "3.0.10" / "dataset_info.json", '"test"', '"new"')
    assert len(tfds.tfds("lsun/church_outdoor", "test", prepared)) == 16
    assert len(tfds.tfds("cifar10", "new", prepared)) == 16
    assert len(tfds.tfds("cifar10:3.0.2", "test", prepared)) == 16


def test_tfds_looks_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(FIXTURE))
    assert len(tfds.tfds("cifar10", "test")) == 16


def builders_prepared_by(message, monkeypatch):
    """Runs the Python part of the command in a message; returns the builders that it would prepare."""
    import tensorflow_datasets

    words = shlex.split(message[message.index("pip install") :])
    assert words[:7] == ["pip", "install", "-e", ".[prepare]", "&&", "python", "-c"]
    seen = []
    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", lambda builder: seen.append(builder))
    exec(words[7], {})
    return seen


@pytest.mark.parametrize("name", ["cifar10", "celeb_a_hq/256", "lsun/church_outdoor"])
def test_tfds_gives_the_command_that_prepares_a_data_set(tmp_path, monkeypatch, name):
    place = tmp_path / "it's a place"
    with pytest.raises(FileNotFoundError, match=name) as raised:
        tfds.tfds(name, "train", place)
    assert "\n" not in str(raised.value)
    (builder,) = builders_prepared_by(str(raised.value), monkeypatch)
    assert builder.info.file_format.value == "array_record"
    assert pathlib.Path(builder.data_dir).is_relative_to(place / name)


def test_tfds_gives_the_command_for_the_usual_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))) as raised:
        tfds.tfds("cifar10")
    assert "data_dir" not in str(raised.value)


def rewrite(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_tfds_says_when_a_data_set_is_prepared_in_another_format(prepared, monkeypatch):
    info = prepared / "cifar10" / "3.0.2" / "dataset_info.json"
    rewrite(info, '"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
    with pytest.raises(FileNotFoundError, match="not as ArrayRecord") as raised:
        tfds.tfds("cifar10", "train", prepared)
    assert f"mv {info.parent} {info.parent}.old && pip" in str(raised.value)
    info.parent.rename(f"{info.parent}.old")
    (builder,) = builders_prepared_by(str(raised.value), monkeypatch)
    assert builder.data_dir == str(info.parent)


def test_tfds_reads_a_data_set_in_two_formats(prepared):
    info = prepared / "cifar10" / "3.0.2" / "dataset_info.json"
    both = '"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]'
    rewrite(info, '"fileFormat": "array_record"', both)
    assert tfds.tfds("cifar10", "train", prepared)[0]["label"] == make_tfds.examples("train")[0][1]


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("cifar11", "train", "'cifar11' is not prepared in .* nor is it known"),
        ("lsun", "train", "expected one of .*lsun/church_outdoor.*, received 'lsun'"),
        ("lsun/chapel", "train", "expected one of .*lsun/church_outdoor.*, received 'lsun/chapel'"),
        ("cifar10/plain", "train", "expected one of cifar10, received 'cifar10/plain'"),
        ("cifar10", "validation", "of train, test, received 'validation'"),
        ("cifar10", "train[:x]", r"of train, test, received 'train\[:x\]'"),
    ],
)
def test_tfds_refuses_unknown_names_and_splits(name, split, message):
    with pytest.raises(ValueError, match=message):
        tfds.tfds(name, split, FIXTURE)


def test_tfds_asks_for_a_size_where_images_differ(prepared):
    features = prepared / "cifar10" / "3.0.2" / "features.json"
    rewrite(features, '"32"', '"-1"')
    with pytest.raises(ValueError, match="expected an image_size"):
        tfds.tfds("cifar10", "train", prepared)
    assert tfds.tfds("cifar10", "train", prepared, image_size=16)[0]["image"].shape == (16, 16, 3)


def test_tfds_refuses_data_sets_without_images(prepared):
    rewrite(prepared / "cifar10" / "3.0.2" / "features.json", '\n            "image"', '\n            "photo"')
    with pytest.raises(ValueError, match=r"expected a feature `image` .* cifar10 has .*photo"):
        tfds.tfds("cifar10", "train", prepared)


class Counted:
    """Ten items, and how often each was read."""

    num_classes = 10

    def __init__(self):
        self.reads = np.zeros(10, int)

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"image": np.full((4, 4, 3), 20 * index, np.uint8), "label": np.asarray(index, np.int32)}


@pytest.mark.parametrize(("most", "reads"), [(10 * (48 + 4), 1), (10 * (48 + 4) - 1, 2)])
def test_kept_images_are_decoded_once_where_all_find_room(most, reads):
    source = Counted()
    once, numbers = cache.CachedSource(source, most), np.array([3, 9, 3, 1])
    for _ in range(2):
        taken = once.take(numbers)
        np.testing.assert_array_equal(taken["label"], numbers)
        np.testing.assert_array_equal(taken["image"], (20 * numbers)[:, None, None, None] * np.ones((4, 4, 3)))
        assert taken["image"].dtype == np.uint8
    assert once[5]["label"] == 5
    assert source.reads[9] == reads
    assert source.reads[2] == 0


def test_kept_images_reach_all_threads(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
    source = cache.CachedSource(files.folder(tmp_path, 8))
    with contextlib.closing(pipeline.iterate(pipeline.batches(source, 16, seed=0), num_threads=8)) as batches:
        seen = np.concatenate([next(batches)["image"] for _ in range(10)])
    expected = np.stack([source[i]["image"] for i in range(40)])
    for epoch in seen.reshape(4, 40, -1):
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, expected))


def test_the_old_places_of_sources_are_kept_for_a_version():
    assert sources.folder is files.folder
    assert sources.tfds is tfds.tfds
    with pytest.raises(AttributeError, match="no attribute 'folders'"):
        sources.folders  # noqa: B018
