"""PyTorch's files of tensors, read without PyTorch. PyTorch wrote the fixtures, by fixtures/make_unet2d.py."""

import builtins
import collections
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from ddpm_jax.interop import files, pickles

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
WHOLE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


class Global:
    """Pickled by its name alone, as classes and functions are."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as the call of a name, followed by the instruction that sets the state, if there is one."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)


class Storage:
    def __init__(self, kind="FloatStorage", key="0", size=6):
        self.pid = ("storage", Global("torch", kind), key, "cpu", size)


class Pickler(pickle._Pickler):
    """Writes names even if they do not exist."""

    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            function, args, *state = value.reduced
            self.save(function)
            self.save(args)
            self.write(pickle.REDUCE)
            if state:
                self.save(state[0])
                self.write(pickle.BUILD)
        else:
            super().save(value, save_persistent_id)


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(storage=None, offset=0, shape=(2, 3), strides=(3, 1), **options):
    return Call(REBUILD, Storage() if storage is None else storage, offset, shape, strides, False, (), **options)


def write_zip(path, state, size=24, compression=zipfile.ZIP_STORED, **more):
    pickled = io.BytesIO()
    Pickler(pickled, protocol=2).dump(state)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/data/0", np.arange(size, dtype=np.uint8).tobytes())
        for name, content in more.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("name", ["state.bin", "state_before_zip.bin"])
def test_state_dicts_of_both_formats(name):
    state = files.read(FIXTURES / name)
    assert list(state) == ["whole", "turned", "half", "brain", "scalar", "counts"]
    np.testing.assert_array_equal(state["whole"], WHOLE)
    np.testing.assert_array_equal(state["turned"], WHOLE[1].T)
    np.testing.assert_array_equal(state["half"], WHOLE[0])
    np.testing.assert_array_equal(state["brain"], WHOLE[0, 0].astype(state["brain"].dtype))
    np.testing.assert_array_equal(state["scalar"], np.float32(2.5))
    np.testing.assert_array_equal(state["counts"], [7, 8])
    kinds = ["float32", "float32", "float16", "bfloat16", "float32", "int64"]
    assert [str(value.dtype) for value in state.values()] == kinds


@pytest.mark.parametrize("name", ["state.bin", "state_before_zip.bin"])
def test_every_truncation_is_refused(name, tmp_path):
    whole = (FIXTURES / name).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name}: expected a file of tensors by PyTorch"):
            pickles.read(tmp_path / name)


@pytest.mark.parametrize("name", ["state.bin", "state_before_zip.bin"])
def test_a_file_with_a_flipped_byte_is_refused_or_gives_arrays(name, tmp_path):
    whole = (FIXTURES / name).read_bytes()
    for place in range(0, len(whole), 11):
        (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read = pickles.read(tmp_path / name)
        except ValueError:
            continue
        assert all(isinstance(value, np.ndarray) for value in read.values())


def test_files_by_the_writer_of_these_tests_can_be_read(tmp_path):
    path = write_zip(tmp_path / "good.bin", {"a": tensor(), "b": tensor(offset=1, shape=(2,), strides=(2,))})
    numbers = np.arange(24, dtype=np.uint8).view(np.float32)
    read = files.read(path)
    np.testing.assert_array_equal(read["a"], numbers.reshape(2, 3))
    np.testing.assert_array_equal(read["b"], numbers[[1, 3]])


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda mark: {"a": Call(Global("os", "system"), f"touch {mark}")}, r"os\.system"),
        (lambda mark: {"a": Call(Global("builtins", "eval"), f"open({str(mark)!r}, 'w')")}, r"builtins\.eval"),
        (lambda mark: {"a": Call(Global("builtins", "getattr"), REBUILD, "__call__")}, r"builtins\.getattr"),
        (lambda mark: {"a": Global("torch", "load")}, r"torch\.load"),
        (lambda mark: {"a": Global("torch.storage", "_load_from_bytes")}, "_load_from_bytes"),
        (lambda mark: {"a": Global("numpy", "dtype")}, r"numpy\.dtype"),
        (lambda mark: {"a": Call(Global("collections", "defaultdict"), None)}, "defaultdict"),
        (lambda mark: {"a": Call(Global("torch", "FloatStorage"), str(mark))}, "cannot read it"),
        (lambda mark: {"a": Call(Call(REBUILD, 1, 2, 3, 4), 1)}, "cannot read it"),
        (lambda mark: {"a": Call(Global("collections", "OrderedDict"))}, "a is a OrderedDict, not a tensor"),
        (lambda mark: {"a": 1}, "a is a int, not a tensor"),
        (lambda mark: {3: tensor()}, "3 is a Tensor, not a tensor"),
        (lambda mark: [tensor()], "it contains a list"),
        (lambda mark: {"a": tensor(state={"storage": 1})}, "cannot read it"),
        (lambda mark: {"a": tensor(state=(None, {"shape": (9, 9)}))}, "cannot read it"),
        (lambda mark: {"a": tensor(offset=1)}, "a of shape .* reaches beyond"),
        (lambda mark: {"a": tensor(strides=(4, 1))}, "a of shape .* reaches beyond"),
        (lambda mark: {"a": tensor(shape=(10**9, 10**9), strides=(0, 0))}, "a of shape .* reaches beyond"),
        (lambda mark: {"a": tensor(shape=(2**63, 0), strides=(1, 1))}, "cannot read it|expected"),
        (lambda mark: {"a": tensor(offset=-1)}, "a has shape|not a tensor"),
        (lambda mark: {"a": tensor(strides=(-3, 1))}, "a has shape"),
        (lambda mark: {"a": tensor(strides=(1,))}, "a has shape"),
        (lambda mark: {"a": tensor(shape=("2", 3))}, "a has shape"),
        (lambda mark: {"a": tensor(Storage(size=7))}, "a has 24 bytes"),
        (lambda mark: {"a": tensor(Storage(key="1"))}, "cannot read it"),
        (lambda mark: {"a": tensor(Storage(key="../../data.pkl"))}, "cannot read it"),
        (lambda mark: {"a": tensor(Storage(kind="ComplexFloatStorage"))}, "ComplexFloatStorage"),
    ],
)
def test_anything_but_tensors_is_refused_and_not_executed(tmp_path, state, said):
    mark = tmp_path / "run"
    path = write_zip(tmp_path / "bad.bin", state(mark))
    with pytest.raises(ValueError, match=rf"bad.bin: expected a file of tensors by PyTorch.*({said})"):
        files.read(path)
    assert not mark.exists()


def test_a_pickle_cannot_change_the_objects_that_its_names_refer_to(tmp_path):
    """BUILD sets attributes: here of OrderedDict and of the stand-in that rebuilds tensors."""
    for value in (REBUILD, Global("collections", "OrderedDict")):
        pickled = io.BytesIO()
        Pickler(pickled, protocol=2).dump({"a": value})
        name = f"c{value.module}\n{value.name}\n".encode()
        build = b"(N}X\x04\x00\x00\x00evilK\x01stb"  # with the state (None, {"evil": 1})
        raw = pickled.getvalue().replace(name, name + build, 1)
        with zipfile.ZipFile(tmp_path / "bad.bin", "w") as archive:
            archive.writestr("archive/data.pkl", raw)
        with pytest.raises(ValueError, match="expected a file of tensors"):
            files.read(tmp_path / "bad.bin")
    assert not hasattr(collections.OrderedDict, "evil")


def test_archives_that_pytorch_does_not_write_are_refused(tmp_path):
    with pytest.raises(ValueError, match="compressed"):
        files.read(write_zip(tmp_path / "a.bin", {"a": tensor()}, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="little-endian"):
        files.read(write_zip(tmp_path / "b.bin", {"a": tensor()}, byteorder="big"))
    with zipfile.ZipFile(tmp_path / "c.bin", "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(ValueError, match=r"no data\.pkl"):
        files.read(tmp_path / "c.bin")


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(1), pickle.dumps(os.system), pickle.dumps(builtins.eval)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin: expected a file of tensors"):
        files.read(tmp_path / "a.bin")
