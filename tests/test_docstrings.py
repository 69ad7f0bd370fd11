"""The examples in docstrings, as they stand there."""

import doctest
import importlib

import pytest

EXAMPLES = {
    "schedules.discrete": 1, "diffusion": 2, "denoiser": 1, "losses.denoising": 1, "guidance.classifier_free": 2,
    "likelihood.variational": 1, "samplers.base": 1, "samplers.grids.times": 1, "samplers.ddim": 1, "samplers.dpm_solver": 1,
    "networks.unet": 1,
}  # fmt: skip
"""How many docstrings of a module have one, at least: those of the first names that one meets."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_say(name):
    module = importlib.import_module(f"ddpm_jax.{name}")
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert len(tests) >= EXAMPLES[name]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not any(runner.run(test).failed for test in tests)
