"""Winograd's convolutions against the plain ones: values, gradients, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import winograd
from ddpm_jax.networks.layers import Conv, DoubleConv, double


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_after_doubling(x, kernel):
    return plain(double(x), kernel)


@pytest.mark.parametrize(
    ("quick", "plain"),
    [
        (winograd.conv, plain),
        (winograd.double_conv, plain_after_doubling),
        (winograd.forward_only(winograd.conv, plain), plain),
    ],
)
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (3, 16, 8, 64), (1, 2, 2, 5)])
def test_equal_to_the_plain_form(quick, plain, shape):
    x = 1 + jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], 40)) / (9 * shape[-1]) ** 0.5

    def value_gradients_and_derivative(f):
        value, pullback = jax.vjp(f, x, kernel)
        weight = jax.random.normal(jax.random.key(2), value.shape)
        return value, pullback(weight), jax.jvp(f, (x, kernel), (x**2, kernel**2))[1]

    ours, expected = (jax.jit(value_gradients_and_derivative, static_argnums=0)(f) for f in (quick, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPU alone")
@pytest.mark.parametrize(
    ("layer", "shape", "num"),
    [
        (Conv(128, jnp.float32), (8, 8, 8, 128), 16),
        (DoubleConv(128, jnp.float32), (8, 8, 8, 128), 9),
        (Conv(32, jnp.float32), (8, 8, 8, 64), 16),
        (DoubleConv(32, jnp.float32), (8, 8, 8, 64), 9),
        (Conv(64, jnp.float32), (8, 8, 8, 32), 0),
        (Conv(16, jnp.float32), (8, 8, 8, 64), 0),
        (Conv(128, jnp.float32), (1, 8, 8, 128), 0),
        (Conv(128, jnp.float32), (8, 9, 9, 128), 0),
        (Conv(128, jnp.float32, stride=2), (8, 8, 8, 128), 0),
        (Conv(128, jnp.float32, padding=((0, 2), (0, 2))), (8, 8, 8, 128), 0),
        (Conv(128, jnp.bfloat16), (8, 8, 8, 128), 0),
    ],
)
def test_taken_where_it_pays(layer, shape, num):
    x = jnp.zeros(shape)
    program = jax.jit(layer.apply).lower(layer.init(jax.random.key(0), x), x).as_text()
    assert program.count("dot_general") == num


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPU alone")
@pytest.mark.parametrize(("channels", "products", "convolutions"), [(128, 3 * 16, 0), (64, 16, 2)])
def test_with_few_channels_the_gradient_is_the_plain_form_s(channels, products, convolutions):
    x, layer = jnp.zeros((8, 8, 8, channels)), Conv(channels, jnp.float32)
    loss = jax.value_and_grad(lambda params, x: layer.apply(params, x).sum(), (0, 1))
    program = jax.jit(loss).lower(layer.init(jax.random.key(0), x), x).as_text()
    assert (program.count("dot_general"), program.count("stablehlo.convolution")) == (products, convolutions)
