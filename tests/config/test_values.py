import dataclasses
import json
import pathlib
import random
from typing import Literal

import pytest
from tyro.conf import Positional

from ddpm_jax import config
from ddpm_jax.config import Config, paths, values
from ddpm_jax.config.cli import UsageError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
HINTS = {
    "int": (int, [0, -3], [True, 1.0, "1", None]),
    "float": (float, [0.5, 3, float("inf")], [True, "0.5", None]),
    "bool": (bool, [True], [0, 1, "True"]),
    "str or None": (str | None, ["", None], [b"", 0]),
    "'a' or 1": (Literal["a", 1], ["a", 1], ["b", 1.0, True, None]),
    "tuple[int, ...]": (tuple[int, ...], [(), (1, 2)], [[1, 2], (1, "2"), 1]),
    "tuple[str, int or None]": (tuple[str, int | None], [("a", 1), ("a", None)], [("a",), ("a", 1, 2), "ab"]),
    "str": (paths.LocalPath, ["runs/x"], [pathlib.Path("x"), None]),
}


@pytest.mark.parametrize("described", HINTS)
def test_what_fits_a_type_and_what_does_not(described):
    hint, fitting, others = HINTS[described]
    assert values.described(hint) == described
    assert all(values.fits(value, hint) for value in fitting)
    assert not any(values.fits(value, hint) for value in others)


def test_paths_are_local(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.local("~/run") == "/home/me/run"
    assert paths.local("a:b/~/c") == "a:b/~/c"
    for url in ("gs://b/run", "s3://b", "https://example.org/x.npz", "file:///tmp/x"):
        with pytest.raises(ValueError, match="mount the bucket"):
            paths.local(url)


def test_every_kind_of_path_option_is_made_local(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Options:
        one: paths.LocalPath = "~/a"
        maybe: paths.LocalPath | None = None
        first: Positional[paths.LocalPath] = "~"
        several: Positional[tuple[paths.LocalPath, ...]] = ("~/b", "c")
        name: str = "~"

    monkeypatch.setenv("HOME", "/h")
    assert values.checked(Options()) == Options("/h/a", None, "/h", ("/h/b", "c"), "~")
    with pytest.raises(ValueError, match=r"^several: expected a local path, received gs://b"):
        values.checked(Options(several=("a", "gs://b")))


def damaged(rng, value):
    """A tree of JSON with one part replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        return value | {name: damaged(rng, value[name])}
    nested = [[0]]
    for _ in range(rng.randrange(50)):
        nested = [nested]
    numbers = [True, -1, 10**30, 1e308, float("nan")]
    return rng.choice([None, *numbers, "", "x", "gs://b", [], [1, "x"], {}, {"x": 1}, {"": []}, nested])


def test_whatever_is_wrong_in_a_config_file_is_named(tmp_path):
    """200 damaged files, once 5,000: each is read and passes the checks, or one line names the file or the field."""
    rng, refusals = random.Random(0), []
    whole = [config.read_config(["--config", file.stem], CONFIGS, "") for file in sorted(CONFIGS.glob("*.py"))]
    for number in range(200):
        text = json.dumps(damaged(rng, json.loads(json.dumps(dataclasses.asdict(rng.choice(whole))))))
        if number % 4 == 0:
            cut = rng.randrange(len(text))
            text = text[:cut] + rng.choice(["", "\0", "}", '"', "[" * 100_000, "é"]) + text[cut + rng.randrange(3) :]
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        try:
            config.check(config.read_config(["--config", str(file)], CONFIGS, ""))
        except UsageError as error:
            refusals.append((str(file), str(error)))
    assert 100 < len(refusals) < 200
    for file, said in refusals:
        assert file in said or said.startswith("--")
        assert "\n" not in said


def test_every_field_of_a_config_has_a_type_that_is_checked():
    for name, value in config.checks.options(Config(workdir="x")).items():
        section, _, field = name.rpartition(".")
        tree = Config(workdir="x")
        part = getattr(tree, section) if section else tree
        wrong = dataclasses.replace(part, **{field: object()}) if field not in ("source", "sampler", "kind") else None
        if wrong is None:
            continue
        whole = dataclasses.replace(tree, **{section: wrong}) if section else wrong
        with pytest.raises(ValueError, match=rf"^{name}: expected .*, received <object"):
            values.checked(whole)
        assert value is not wrong
