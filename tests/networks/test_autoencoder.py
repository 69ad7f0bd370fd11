"""AutoencoderKL against diffusers (fixtures/make_autoencoder.py), its published sizes, and its errors."""

import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import networks

apply = jax.jit(lambda network, params, a, method: network.apply(params, a, method=method), static_argnums=(0, 3))
FIXTURES = pathlib.Path(__file__).parent / "fixtures"
NETWORKS = {
    "quant": networks.AutoencoderKL(channels=4, multipliers=(1, 2), num_blocks=1, num_groups=2),
    "plain": networks.AutoencoderKL(
        channels=4, multipliers=(1, 1, 2), num_groups=4, latent_channels=3, quant_convolutions=False, middle_attention=False
    ),
}
SMALL = NETWORKS["quant"]


def load(name):
    arrays = dict(np.load(FIXTURES / f"autoencoder_{name}.npz"))
    params = {tuple(key.split("/")): a for key, a in arrays.items() if key.startswith("params/")}
    return flax.traverse_util.unflatten_dict(params), arrays


@pytest.mark.parametrize(("options", "count"), [
    ({}, 83_653_863), ({"latent_channels": 16, "quant_convolutions": False}, 83_819_683),
])  # fmt: skip
def test_published_parameter_counts(options, count):
    shapes = jax.eval_shape(networks.AutoencoderKL(**options).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_diffusers(name):
    params, arrays = load(name)
    network = NETWORKS[name]
    shapes = jax.eval_shape(network.init, jax.random.key(0), arrays["x"])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    mean, std = apply(network, params, arrays["x"], "encode")
    np.testing.assert_allclose(mean, arrays["mean"], atol=1e-5)
    np.testing.assert_allclose(std, arrays["std"], atol=1e-5)
    np.testing.assert_allclose(apply(network, params, arrays["z"], "decode"), arrays["decoded"], atol=1e-5)


def test_clips_the_log_variance():
    params, arrays = load("quant")
    bias = np.repeat(np.float32([0, 1e3]), 4)
    for sign, expected in ((-1, np.exp(-15)), (1, np.exp(10))):
        params["params"]["quant"]["bias"] = sign * bias
        _, std = apply(SMALL, params, arrays["x"], "encode")
        np.testing.assert_allclose(std, expected, rtol=1e-5)


def test_remat_keeps_the_gradient():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    network = SMALL.clone(multipliers=(1,), middle_attention=False)
    params = network.init(jax.random.key(0), x)
    loss = lambda network: lambda params: jnp.sum(network.apply(params, x) ** 2)  # noqa: E731
    plain, recomputed = (jax.jit(jax.grad(loss(network)))(params) for network in (network, network.clone(remat=True)))
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), plain, recomputed)


def test_bfloat16():
    params, arrays = load("quant")
    half = apply(SMALL.clone(dtype=jnp.bfloat16), params, arrays["z"], "decode")
    assert half.dtype == jnp.float32
    assert np.abs(half - arrays["decoded"]).max() < 0.05 * np.abs(arrays["decoded"]).max()


@pytest.mark.parametrize(("network", "method", "shape", "message"), [
    (SMALL, "encode", (1, 8, 9, 3), "multipliers: 2 levels expected height and width divisible by 2, received 8 x 9"),
    (SMALL, "encode", (1, 8, 8, 1), r"x: expected images \[B, H, W, 3\], received shape \(1, 8, 8, 1\)"),
    (SMALL, "decode", (1, 8, 8, 3), r"z: expected latents \[B, H, W, 4\], received shape \(1, 8, 8, 3\)"),
    (SMALL.clone(num_groups=3), "encode", (1, 8, 8, 3), "num_groups: expected a divisor .*, received 3 for 4 channels"),
])  # fmt: skip
def test_bad_input(network, method, shape, message):
    with pytest.raises(ValueError, match=message):
        network.init(jax.random.key(0), jnp.zeros(shape), method=method)
