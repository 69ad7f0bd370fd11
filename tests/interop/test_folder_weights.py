"""Weights in parts, and variants. diffusers 0.42.1 names files so: models/modeling_utils.py, save_pretrained."""

import json
import pathlib
import re
import shutil

import chex
import jax
import numpy as np
import pytest

from ddpm_jax.interop import diffusers, files, folder_weights

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
STEM = "diffusion_pytorch_model"
WHOLE = f"{STEM}.safetensors"
INDEX = f"{STEM}.safetensors.index.json"
PARTS = [f"{STEM}-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.fixture
def tensors():
    return files.read(FIXTURES / "plain" / WHOLE)


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(FIXTURES / "plain", tmp_path / "model", ignore=shutil.ignore_patterns(WHOLE))
    return tmp_path / "model"


def write_parts(folder, tensors, parts=PARTS, index=INDEX, **changed):
    """Writes the halves of the tensors, and an index that maps further names as given."""
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for part, half in zip(parts, halves, strict=True):
        files.write(folder / part, {name: tensors[name] for name in half})
    part_of = {name: part for part, half in zip(parts, halves, strict=True) for name in half}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": part_of | changed}))


def read(folder):
    return folder_weights.read(folder_weights.find(folder))


@pytest.mark.parametrize(
    ("parts", "index"),
    [
        (PARTS, INDEX),
        ([f"{STEM}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)], f"{STEM}.safetensors.index.fp16.json"),
        ([f"{STEM}-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)], f"{STEM}.safetensors.index.fp16.json"),
    ],
)
def test_parts_are_read(copy, tensors, parts, index):
    write_parts(copy, tensors, parts, index)
    chex.assert_trees_all_equal(read(copy), tensors)


def test_parts_of_half_precision_become_float32(copy, tensors):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    write_parts(copy, half)
    params, expected = diffusers.load(copy).params, diffusers.load(FIXTURES / "plain").params
    expected = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16).astype(np.float32), expected)
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal_dtypes(params, expected)


def test_parts_by_pytorch_are_read(tmp_path):
    parts = [f"{STEM}-0000{n}-of-00002.bin" for n in (1, 2)]
    for part, name in zip(parts, ("state.bin", "state_before_zip.bin"), strict=True):
        shutil.copy(FIXTURES / name, tmp_path / part)
    # Both parts have the same tensors.
    names = list(files.read(FIXTURES / "state.bin"))
    (tmp_path / f"{STEM}.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, parts[0])}))
    assert list(read(tmp_path)) == names
    (tmp_path / f"{STEM}.bin.index.json").write_text(
        json.dumps({"weight_map": {**dict.fromkeys(names, parts[0]), "x": parts[1]}})
    )
    with pytest.raises(ValueError, match=rf"^{parts[1]}: .*brain is also in {parts[0]}; .*x is missing$"):
        read(tmp_path)


ORDER = [
    WHOLE,
    INDEX,
    f"{STEM}.bin",
    f"{STEM}.bin.index.json",
    f"{STEM}.fp16.safetensors",
    f"{STEM}.safetensors.index.fp16.json",
    f"{STEM}.fp16.bin",
    f"{STEM}.bin.index.fp16.json",
]


def test_plain_weights_are_preferred_then_safetensors_then_one_file(tmp_path):
    for name in [*reversed(PARTS), "config.json", f"{STEM}.fp16-00001-of-00002.bin"]:
        (tmp_path / name).touch()
    for name in reversed(ORDER):
        (tmp_path / name).touch()
        assert folder_weights.find(tmp_path) == tmp_path / name


def test_one_of_several_variants_is_not_chosen(tmp_path):
    (tmp_path / f"{STEM}.fp16.safetensors").touch()
    (tmp_path / f"{STEM}.non_ema.bin").touch()
    with pytest.raises(ValueError, match=r"expected weights without a variant, or of one variant, found fp16, non_ema$"):
        folder_weights.find(tmp_path)
    (tmp_path / f"{STEM}.bin").touch()
    assert folder_weights.find(tmp_path).name == f"{STEM}.bin"


def test_parts_without_an_index_are_refused(copy, tensors):
    write_parts(copy, tensors)
    (copy / INDEX).unlink()
    with pytest.raises(ValueError, match=f"^{PARTS[0]}: expected an index beside it, .*, found none$"):
        read(copy)


@pytest.mark.parametrize("part", ["../plain/a.safetensors", "/a.safetensors", "..", "a\\b.safetensors", "a.txt", 3, None])
def test_an_index_names_files_beside_it(copy, tensors, part):
    write_parts(copy, tensors, **{"conv_in.weight": part})
    said = f"{INDEX}: weight_map: expected .safetensors or .bin files beside it, received"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        read(copy)


def test_an_index_that_differs_from_the_parts_is_refused(copy, tensors):
    write_parts(copy, tensors, extra=PARTS[0])
    with pytest.raises(ValueError, match=f"^{PARTS[0]}: expected the tensors that {INDEX} lists: extra is missing$"):
        read(copy)
    write_parts(copy, tensors, **{"conv_in.weight": PARTS[1]})
    with pytest.raises(ValueError, match=rf"^{PARTS[0]}: .*: conv_in\.weight is also in {PARTS[1]}$"):
        read(copy)
    write_parts(copy, tensors)
    index = json.loads((copy / INDEX).read_text())
    del index["weight_map"]["conv_in.weight"]
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"^{PARTS[0]}: .*: conv_in\.weight is not in the index$"):
        read(copy)
    write_parts(copy, tensors)
    (copy / PARTS[1]).unlink()
    with pytest.raises(ValueError, match=f"^{PARTS[1]}: expected the part of the weights that {INDEX} names, found no such"):
        read(copy)
    for content in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000,
                    f'{{"weight_map": {{"a": "{PARTS[0]}", "a": "{PARTS[0]}"}}}}'):  # fmt: skip
        (copy / INDEX).write_text(content)
        with pytest.raises(ValueError, match=f"^{INDEX}: ") as caught:
            read(copy)
        assert "\n" not in str(caught.value)
