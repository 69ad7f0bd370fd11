"""The blocks compute what the paper's order of operations says, written with flax's own layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks.blocks import Attention, ResidualBlock
from ddpm_jax.networks.layers import halve

KEY = jax.random.key(0)


class PlainResidualBlock(nn.Module):
    """Norm, swish, conv; add the time; norm, swish, conv; add the input."""

    features: int
    time_scale_shift: bool

    @nn.compact
    def __call__(self, x, embedding):
        width = 2 * self.features if self.time_scale_shift else self.features
        time = nn.Dense(width, name="time")(nn.swish(embedding))[:, None, None]
        h = halve(nn.swish(nn.GroupNorm(4, epsilon=1e-6, name="norm1")(x)))
        h = nn.Conv(self.features, (3, 3), name="conv1")(h)
        if not self.time_scale_shift:
            h = h + time
        h = nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False, name="norm2")(h)
        if self.time_scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = h * (1 + scale) + shift
        h = nn.Conv(self.features, (3, 3), name="conv2")(nn.swish(h))
        return h + nn.Conv(self.features, (1, 1), name="shortcut")(halve(x))


class PlainAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        num, *_, channels = x.shape
        h = nn.GroupNorm(4, epsilon=1e-6, name="norm")(x).reshape(num, -1, channels)
        q, k, v = (nn.Dense(channels, name=n)(h).reshape(num, -1, 2, channels // 2) for n in ("query", "key", "value"))
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + nn.Dense(channels, name="output")(h)


@pytest.mark.parametrize("time_scale_shift", [False, True])
def test_a_residual_block_is_the_papers(time_scale_shift):
    """With other numbers of channels in and out, and an image that is halved on the way."""
    ours = ResidualBlock(8, 0.1, 4, 1e-6, time_scale_shift, halve, jnp.float32)
    inputs = jax.random.normal(KEY, (2, 4, 8, 12)), jax.random.normal(KEY, (2, 6))
    assert_same(ours, PlainResidualBlock(8, time_scale_shift), inputs, (None,))


def test_attention_is_jaxs_own():
    assert_same(Attention(2, 4, 1e-6, jnp.float32), PlainAttention(), (jax.random.normal(KEY, (2, 4, 6, 8)),))


def assert_same(ours, plain, inputs, rest=()):
    """The same parameters, values and gradients."""
    shapes = jax.eval_shape(plain.init, KEY, *inputs)
    assert jax.eval_shape(ours.init, KEY, *inputs, *rest) == shapes
    keys = iter(jax.random.split(KEY, 20))
    variables = jax.tree.map(lambda a: 0.3 * jax.random.normal(next(keys), a.shape), shapes)
    weight = jax.random.normal(next(keys), plain.apply(variables, *inputs).shape)

    def value_and_gradients(network, variables, inputs, rest=()):
        loss = lambda variables, inputs: (network.apply(variables, *inputs, *rest) * weight).sum()  # noqa: E731
        return network.apply(variables, *inputs, *rest), jax.grad(loss, (0, 1))(variables, inputs)

    compiled = jax.jit(value_and_gradients, static_argnums=0)
    found, expected = compiled(ours, variables, inputs, rest), compiled(plain, variables, inputs)
    scale = max(np.abs(a).max() for a in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)
