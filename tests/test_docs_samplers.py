"""docs/samplers.md: its code, as it stands there, and its tables."""

import pathlib
import re

import numpy as np
import pytest

import sample
from ddpm_jax import guidance, samplers
from ddpm_jax.samplers import grids

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "samplers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def names():
    """What the page's code defines, run from the top."""
    found = {}
    for block in BLOCKS:
        exec(block, found)
    return found


def test_the_pictures_are_of_the_models_distribution(names):
    """Variance 0.15 a pixel, neighbours alike: 16 pictures whose 192 numbers are worth about 20 each."""
    x = np.asarray(names["x"])
    assert abs(x.var() / 0.15 - 1) < 4 * np.sqrt(2 / (16 * 20))
    assert np.var(np.diff(x, axis=1)) < 0.25 * 0.15


def test_a_sampler_of_ones_own(names):
    (block,) = (block for block in BLOCKS if "def adams_bashforth" in block)
    body = block[block.index("class Coefficients") : block.index("own = ")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
    x_init = samplers.base.initial_noise(names["key"], grids.spaced(names["schedule"], 50), names["shape"], np.arange(16))
    end = lambda sampler, n: samplers.sample(  # noqa: E731
        None, sampler, names["denoise"], grids.spaced(names["schedule"], n), names["shape"], x_init=x_init
    )
    fine = end(samplers.deis(3), 500)
    error = lambda sampler: np.abs(end(sampler, 50) - fine).max()  # noqa: E731
    np.testing.assert_allclose(end(names["adams_bashforth"](), 50), names["own"], atol=1e-4)
    assert error(names["adams_bashforth"]()) < error(samplers.ddim()) / 2


def test_guidance_moves_samples_by_their_labels(names):
    assert np.isfinite(names["of_labels"]).all()
    means = np.asarray(names["of_labels"]).mean(axis=(1, 2, 3))
    assert means[-1] - means[-2] > 0.2  # labels 2 and 1, at scales near 4


def test_a_network_with_a_condition_samples(names):
    assert names["sharpened"].shape == names["shape"]
    assert np.isfinite(names["sharpened"]).all()


def test_the_options_are_those_of_the_script():
    (section,) = re.findall(r"## On the command line\n(.*?)\n## ", PAGE, re.S)
    known = {f"--{name.replace('_', '-')}" for name in vars(sample.Options())}
    named = set(re.findall(r"--[a-z][a-z-]+", section))
    assert named <= known and len(named) > 15


def test_measurements_are_met(names):
    picture = np.asarray(names["picture"])
    for measure, solution in ((names["smaller"], names["enlarged"]), (names["grey"], names["coloured"])):
        assert np.sqrt(np.mean((measure(solution) - measure(picture)) ** 2)) < 0.05
        assert np.sqrt(np.mean((solution - picture) ** 2)) < 0.75 * np.sqrt(np.mean((picture - picture[::-1]) ** 2))
        assert not np.allclose(solution, picture, atol=0.05)


def test_constraints_hold(names):
    picture = np.asarray(names["picture"])
    for filled in (names["replaced"], names["repainted"]):
        np.testing.assert_array_equal(filled[:, :4], picture[:, :4])
        assert np.abs(np.diff(filled, axis=1)[:, 3]).mean() < 0.3  # the seam
    distance = np.abs(names["edited"] - picture).mean()
    assert 0.02 < distance < np.abs(picture - picture[::-1]).mean()
    assert np.abs(names["restored"] - picture).mean() < 0.01


def test_the_tables_name_what_there_is():
    functions = {name for name in samplers.__all__ if name[0].islower()}
    tools = {"grids", "mean_squared_eps", "sample", "sample_path", "sdedit"}
    rows = set(re.findall(r"^\| `(\w+)\(", PAGE, re.M))
    guidances = {name for name in vars(guidance) if f"def {name}(" in pathlib.Path(guidance.__file__).read_text()}
    guidances = {name for name in guidances if name[0] != "_"} - {"interleave", "gaussian_likelihood"}
    assert rows == (functions - tools) | guidances
    spacings = {name for name in re.findall(r"^def (\w+)", pathlib.Path(grids.__file__).read_text(), re.M) if name[0] != "_"}
    assert set(re.findall(r"`grids\.(\w+)\(", PAGE.split("## A sampler of")[0])) == spacings
