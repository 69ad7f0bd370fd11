"""Weights that are damaged, or claim sizes that they do not have: refused by name before memory is asked for."""

import io
import itertools
import json
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from ddpm_jax.interop import diffusers, files, folder_weights, names

ARRAYS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b.weight": np.ones((2, 2), np.float16)}
MOST = 50_000_000
"""Bytes, of which reading a small file may take none as large."""


def refused(path):
    """The message with which a file is refused, having taken little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"^{path.name}: ") as caught:
            files.read(path)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def safetensors_of(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def claim(shape, end, dtype="F32"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{}",
        safetensors_of(claim([10**6, 10**6], 4 * 10**12)),
        safetensors_of(claim([2**62, 4], 8), bytes(8)),
        safetensors_of(claim([2**40, 0], 4), bytes(4)),
        safetensors_of(claim([1] * 100, 4), bytes(4)),
        safetensors_of(claim([2**63, 0, 2**63], 0)),
        safetensors_of(claim([1], 4), bytes(5)),
        safetensors_of(claim([1], 4, "F8_E4M3"), bytes(4)),
        safetensors_of(claim([4], 4, "F8_E4M3"), bytes(4)),
        safetensors_of({**claim([1], 4), "b": claim([1], 4)["a"]}, bytes(4)),
        safetensors_of(claim([1], 4), bytes(4)).replace(b"[1]", b'[1],"shape":[1]'),
        b"\xff" * 100,
        b"",
    ],
)
def test_a_safetensors_header_is_not_believed(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "I64", "BOOL"])
def test_tensors_at_odd_offsets_and_unknown_keys_are_read(tmp_path, dtype):
    numbers = np.array([0, 1, 1]).astype(files.DTYPES[dtype])
    header = {"a": {**claim([3], numbers.nbytes, dtype)["a"], "since": "a later version"}}
    for padding in ("", "x"):
        header["__metadata__"] = {"a": padding}
        (tmp_path / "a.safetensors").write_bytes(safetensors_of(header, numbers.tobytes()))
        np.testing.assert_array_equal(files.read(tmp_path / "a.safetensors")["a"].astype(np.float32), [0, 1, 1])


def test_tensors_larger_than_memory_are_refused_by_their_names(tmp_path):
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(safetensors_of(claim([2**40], 2**42)))
        try:
            file.truncate(file.tell() + 2**42)  # a hole, which takes no space
        except OSError:
            pytest.skip("the file system has no files of 4 TiB")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^file: expected the tensors of the network: b is missing; a is not expected$"):
            names.decode(names.Entry("b", (1,), "x", "x"), files.read(tmp_path / "a.safetensors"), "file")
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".bin", ".ckpt", ".pt", ".pth"])
def test_pipes_and_devices_are_refused(tmp_path, suffix):
    pipe, device, folder = (tmp_path / f"{name}{suffix}" for name in ("pipe", "device", "folder"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    folder.mkdir()
    for path in (pipe, device, folder):
        assert "expected a regular file" in refused(path)
    with pytest.raises(OSError, match="none"):
        files.read(tmp_path / f"none{suffix}")


def test_a_config_that_never_ends_is_refused(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"^config\.json: expected a regular file"):
        diffusers.load(tmp_path)


def npz_of(shape, data, compression=zipfile.ZIP_STORED):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        archive.writestr("a.npy", header.getvalue() + data)
    return content.getvalue()


def with_size(archive, size):
    """An archive of one file, which claims another uncompressed size of it."""
    at = archive.index(b"PK\x01\x02") + 24
    return archive[:at] + struct.pack("<I", size) + archive[at + 4 :]


def test_an_npz_is_not_believed(tmp_path):
    path = tmp_path / "a.npz"
    for content in (
        npz_of((10**12,), bytes(8)),
        npz_of((10**6, 10**9), bytes(8)),
        with_size(npz_of((2,), bytes(8), zipfile.ZIP_DEFLATED), 2**32 - 2),
        with_size(npz_of((2,), bytes(8)), 2**32 - 2),
    ):
        path.write_bytes(content)
        refused(path)
    path.write_bytes(npz_of((1000, 1000), bytes(4_000_000), zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(files.read(path)["a"], np.zeros((1000, 1000)))


def torch_zip(pickled, data=b"", compression=zipfile.ZIP_STORED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", data)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        torch_zip(pickle.dumps({}), bytes(100_000_000), zipfile.ZIP_DEFLATED),  # a zip bomb
        with_size(torch_zip(pickle.dumps({}), bytes(8)), 2**32 - 2),
        torch_zip(b"\x80\x02]r\xff\xff\xff\x7f."),  # an unpickler's memo of 2^31 objects
        torch_zip(b"\x80\x02]p2147483647\n."),
        torch_zip(b"\x80\x02\x8d" + struct.pack("<Q", 2**40) + b"abc."),  # a string of 1 TiB
        torch_zip(b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N."),  # a frame of 1 TiB
        b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x02]r\xff\xff\xff\x7f.",
    ],
)
def test_a_pickle_is_not_believed(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    refused(tmp_path / "a.bin")


def test_many_views_of_one_storage_take_its_memory_once(tmp_path):
    """A file of 1 MB whose 1000 tensors have 1 GB, if each were copied."""
    from test_pickles import Storage, tensor, write_zip

    numbers = 250_000
    state = {f"a{n}": tensor(Storage(size=numbers), shape=(numbers,), strides=(1,)) for n in range(1000)}
    path = write_zip(tmp_path / "a.bin", state, size=4 * numbers)
    tracemalloc.start()
    try:
        found = files.read(path)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert sum(array.nbytes for array in found.values()) == 10**9


# --------------------------------------------------------------------------------------------------------------- fuzz


def mutations(whole, rng, number):
    """Damaged copies: flipped bits, pieces that are cut, repeated or overwritten, and large numbers where there were others."""
    for _ in range(number):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
            match rng.integers(5):
                case 0:
                    content[at] ^= 1 << int(rng.integers(8))
                case 1:
                    del content[at : at + length * 8]
                case 2:
                    content[at:at] = content[at : at + length * 8]
                case 3:
                    content[at : at + length] = bytes([int(rng.choice([0, 0x7F, 0xFF, 0x39]))]) * length
                case 4:
                    content[at:at] = rng.bytes(length)
            if not content:
                break
        yield bytes(content)


def safetensors_file(tmp_path):
    files.write(tmp_path / "whole.safetensors", ARRAYS)
    return (tmp_path / "whole.safetensors").read_bytes()


def npz_file(tmp_path):
    files.write(tmp_path / "whole.npz", ARRAYS)
    return (tmp_path / "whole.npz").read_bytes()


def pickle_file(name):
    def content(tmp_path):
        return (pathlib.Path(__file__).parent / "fixtures" / name).read_bytes()

    return content


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("a.safetensors", safetensors_file),
        ("a.npz", npz_file),
        ("a.bin", pickle_file("state.bin")),
        ("a.ckpt", pickle_file("state_before_zip.bin")),
    ],
)
def test_damaged_weights_are_arrays_or_refused_by_name(tmp_path, name, whole):
    path, refusals, accepted = tmp_path / name, 0, 0
    for content in mutations(whole(tmp_path), np.random.default_rng(0), 400):
        path.write_bytes(content)
        try:
            found = files.read(path)
        except ValueError as error:
            refusals += str(error).startswith(f"{name}: ")
        else:
            accepted += 1
            assert all(isinstance(array, np.ndarray) for array in found.values())
            assert sum(array.nbytes for array in found.values()) < MOST
    assert (refusals + accepted, refusals > 100, accepted > 0) == (400, True, True)


def test_a_damaged_index_is_refused_by_name(tmp_path):
    parts = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for part, (name, array) in zip(parts, ARRAYS.items(), strict=True):
        files.write(tmp_path / part, {name: array})
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    whole = json.dumps({"weight_map": dict(zip(ARRAYS, parts, strict=True))}).encode()
    refusals = accepted = 0
    for content in itertools.chain(mutations(whole, np.random.default_rng(0), 300), [whole]):
        index.write_bytes(content)
        try:
            found = folder_weights.read(index)
        except ValueError as error:
            refusals += str(error).split(": ")[0].endswith((".json", ".safetensors"))
        else:
            accepted += 1
            assert found.keys() == ARRAYS.keys()
    assert (refusals + accepted, refusals > 200, accepted > 0) == (301, True, True)
