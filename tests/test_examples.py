"""The programs in examples/ do what they say."""

import dataclasses
import importlib.util
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import factory
from ddpm_jax.config import Config, Ddim, Diffusion, UNet
from ddpm_jax.data import images, sources
from ddpm_jax.devices import sharding

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


def test_two_moons_are_learned(tmp_path):
    """Moments and moons are the data's within four standard errors, distances to the moons within a factor of 2."""
    pytest.importorskip("matplotlib")
    from sklearn.datasets import make_moons

    x0, x = map(np.asarray, example("two_moons").main(tmp_path / "two_moons.png"))
    curve, moon = make_moons(1000, noise=0)

    def nearest(points):
        squares = ((points[:, None] - curve) ** 2).sum(-1)
        return np.sqrt(squares.min(1)), moon[squares.argmin(1)]

    error = x0.std(0) / np.sqrt(len(x))
    np.testing.assert_array_less(abs(x.mean(0) - x0.mean(0)), 4 * error)
    np.testing.assert_array_less(abs(x.std(0) - x0.std(0)), 4 * error)
    (distance, which), (of_data, _) = nearest(x), nearest(x0)
    assert distance.mean() < 2 * of_data.mean()
    assert abs(which.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(x))
    assert (tmp_path / "two_moons.png").stat().st_size > 10_000


@pytest.fixture
def model():
    """Some function as a model of the digits; DDIM's five steps for four samples of class 3."""

    def predict(params, x_t, t, labels):
        return jnp.tanh(params * x_t + (0.1 * labels + 0.01 * t)[:, None, None, None])

    diffusion, sample = Diffusion(num_steps=10), Ddim(steps=5, num=4, label=(3,))
    config = Config("runs", network=UNet(num_classes=10), diffusion=diffusion, sample=sample)
    network = types.SimpleNamespace(apply=predict)
    schedule, mesh = factory.make_schedule(diffusion), sharding.make_mesh()
    return factory.LoadedRun(config, 0, (8, 8, 1), network, schedule, jnp.float32(0.5), mesh, "params")


def test_a_film_ends_with_the_samples_and_slerp_goes_from_one_to_the_other(model):
    figures = example("paper_figures")
    film, slerp = figures.film(model, 5), figures.slerp(model, 2)
    assert (film.shape, slerp.shape) == ((4, 5, 8, 8, 1), (2, 4, 8, 8, 1))
    generate = factory.make_generator(model.config, model.network, model.schedule, model.image_shape)
    samples = generate(jax.random.key(model.config.sample.seed), model.params, jnp.arange(4)).astype(int)
    for end in (film[:, -1], slerp[:, [0, -1]].reshape(4, 8, 8, 1)):
        assert abs(images.to_uint8(end).astype(int) - samples).max() <= 1
    assert abs(slerp[:, 1] - slerp[:, 0]).max() > 0.01


def test_samples_that_share_x_t_differ_by_the_noise_after_it(model):
    shared = example("paper_figures").shared
    (alike,) = shared(model, 4)
    np.testing.assert_array_equal(alike, jnp.broadcast_to(alike[:1], alike.shape))
    stochastic = dataclasses.replace(model.config, sample=dataclasses.replace(model.config.sample, eta=1.0))
    (unlike,) = shared(model._replace(config=stochastic), 4)
    assert unlike.shape == (4, 8, 8, 1)
    assert abs(unlike[1:] - unlike[:1]).max() > 0.01


def test_interpolation_stands_between_its_pair_and_coding_before_its_image(model, capsys):
    figures, digits = example("paper_figures"), sources.digits("train").take(np.arange(8))["image"]
    rows = images.to_uint8(figures.interpolate(model, 4))
    assert rows.shape == (4, 13, 8, 8, 1)
    np.testing.assert_array_equal(rows[:, [0, -1]].reshape(8, 8, 8, 1), digits)
    rows = images.to_uint8(figures.coding(model, 3))
    assert rows.shape == (4, 4, 8, 8, 1)
    np.testing.assert_array_equal(rows[:, -1], digits[:4])
    rates = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(rates) == 3
    assert rates == sorted(rates)
