"""The programs in examples/ do what they say."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import images, sources

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_objective_of_ones_own_reaches_the_principal_components(capsys):
    """The least error of a linear autoencoder is what the first 8 singular vectors leave (Eckart & Young 1936)."""
    objective, params = example("own_objective").main()
    image = sources.digits().take(np.arange(1797))["image"]
    x = np.asarray(images.to_float(image)).reshape(len(image), -1)
    least = (np.linalg.svd(x, compute_uv=False)[8:] ** 2).sum() / x.size
    zero, key = jnp.zeros((), jnp.int32), jax.random.key(0)
    errors, *_ = objective.losses(params, key, zero, {"image": jnp.asarray(image)}, jnp.arange(len(image)), (), ())
    assert least <= errors.mean() < 1.02 * least
    assert capsys.readouterr().out.count("loss") == 4
