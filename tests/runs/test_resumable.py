import numpy as np
import pytest

from ddpm_jax.runs import resumable

SETTINGS = {"step": 3, "seed": 0}


def measure(part):
    return {"a": np.array([part, part + 0.1], np.float32), "b": np.float64(part / 3)}


def collect(path, settings=SETTINGS, measure=measure, parts=range(4)):
    return list(resumable.resumable(path, settings, parts, measure))


def refuse(part):
    raise AssertionError(f"part {part} is measured again")


def test_stored_results_equal_measured_ones(tmp_path):
    path = tmp_path / "bound.jsonl"
    first = collect(path)
    again = collect(path, measure=refuse)
    for a, b in zip(first, again, strict=True):
        for name in ("a", "b"):
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == np.float64
    assert first[2]["b"] == 2 / 3


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_an_incomplete_line_is_measured_again(tmp_path, cut):
    path = tmp_path / "bound.jsonl"
    whole = collect(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:cut])
    measured = []

    def again(part):
        measured.append(part)
        return measure(part)

    for a, b in zip(whole, collect(path, measure=again), strict=True):
        np.testing.assert_array_equal(a["a"], b["a"])
    assert measured == [2, 3]
    assert path.read_text().splitlines(keepends=True) == lines


def test_results_of_other_settings_are_refused_and_kept(tmp_path):
    path = tmp_path / "bound.jsonl"
    collect(path, settings=SETTINGS | {"data": {"split": "test", "path": None}})
    before = path.read_bytes()
    for other, said in (
        ({"step": 4, "seed": 0, "data": {"split": "train", "path": None}}, "step: 3 -> 4; data.split: test -> train;"),
        (SETTINGS | {"data": {"split": "test", "path": None}, "num": 9}, "num: None -> 9;"),
    ):
        with pytest.raises(ValueError, match=said):
            collect(path, settings=other, measure=refuse)
        assert path.read_bytes() == before


def test_the_stored_parts_are_known_before_the_rest_is_measured(tmp_path):
    path = tmp_path / "bound.jsonl"
    assert resumable.stored(path, SETTINGS) == {}
    collect(path, parts=range(3))
    assert list(resumable.stored(path, SETTINGS)) == [0, 1, 2]


def test_an_error_keeps_earlier_results(tmp_path):
    path = tmp_path / "bound.jsonl"

    def breaks(part):
        if part == 2:
            raise OSError("gone")
        return measure(part)

    with pytest.raises(OSError, match="gone"):
        collect(path, measure=breaks)
    assert len(path.read_text().splitlines()) == 3
