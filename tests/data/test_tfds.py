"""Data sets of TensorFlow Datasets, read without TensorFlow from a fixture of 80 images."""

import concurrent.futures
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from fixtures import make_tfds
from image_files import save

from ddpm_jax.data import files, tfds

FIXTURE = make_tfds.DIRECTORY.parents[1]


@pytest.fixture
def prepared(tmp_path):
    """A folder of prepared data sets that a test may change."""
    shutil.copytree(FIXTURE, tmp_path / "tfds")
    return tmp_path / "tfds"


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_gives_back_images_and_labels(split):
    source = tfds.tfds("cifar10", split, FIXTURE)
    assert (source.classes, source.num_classes) == (tuple("0123456789"), 10)
    expected = make_tfds.examples(split)
    assert len(source) == len(expected)
    for index, (image, label) in enumerate(expected):
        item = source[index]
        assert item.keys() == {"image", "label"} and item["image"].dtype == np.uint8
        np.testing.assert_array_equal(item["image"], image)
        assert item["label"] == label and item["label"].dtype == np.int32 and item["label"].shape == ()


def test_tfds_has_the_names_of_the_classes(prepared):
    names = [f"class {number}" for number in range(10)]
    (prepared / "cifar10" / "3.0.2" / "label.labels.txt").write_text("\n".join(names) + "\n")
    assert tfds.tfds("cifar10", "test", prepared).classes == tuple(names)


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


def test_tfds_reads_the_folder_from_the_environment(monkeypatch):
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


def test_tfds_gives_the_command_for_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))) as raised:
        tfds.tfds("cifar10")
    assert "data_dir" not in str(raised.value)


def rewrite(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_tfds_reports_a_data_set_that_is_prepared_in_another_format(prepared, monkeypatch):
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
        ("cifar11", "train", "'cifar11' is neither prepared in .* nor known"),
        ("lsun", "train", "expected one of .*lsun/church_outdoor.*, received 'lsun'"),
        ("lsun/chapel", "train", "expected one of .*lsun/church_outdoor.*, received 'lsun/chapel'"),
        ("cifar10/plain", "train", "expected one of cifar10, received 'cifar10/plain'"),
        ("cifar10", "validation", "such as train, test, received 'validation'"),
        ("cifar10", "train[:x]", r"such as train, test, received 'train\[:x\]'"),
    ],
)
def test_tfds_refuses_unknown_names_and_splits(name, split, message):
    with pytest.raises(ValueError, match=message):
        tfds.tfds(name, split, FIXTURE)


def test_tfds_requires_a_size_if_images_differ(prepared):
    features = prepared / "cifar10" / "3.0.2" / "features.json"
    rewrite(features, '"32"', '"-1"')
    with pytest.raises(ValueError, match="expected an image_size"):
        tfds.tfds("cifar10", "train", prepared)
    assert tfds.tfds("cifar10", "train", prepared, image_size=16)[0]["image"].shape == (16, 16, 3)


def test_tfds_refuses_data_sets_without_images(prepared):
    rewrite(prepared / "cifar10" / "3.0.2" / "features.json", '\n            "image"', '\n            "photo"')
    with pytest.raises(ValueError, match=r"expected a feature `image` .* cifar10 has .*photo"):
        tfds.tfds("cifar10", "train", prepared)
