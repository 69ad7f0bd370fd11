"""The faster forms compute what the plain forms do: values, gradients and forward derivatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import UNet, cpu, dropout, layers

KEY = jax.random.key(0)


class Plain(nn.Module):
    """flax's own layers, under our parameters' names."""

    kind: str

    @nn.compact
    def __call__(self, x):
        match self.kind:
            case "norm":
                return nn.swish(nn.GroupNorm(4, epsilon=1e-6, name="layer")(x))
            case "stride":
                return nn.Conv(6, (3, 3), (2, 2), name="layer")(x)
            case "double":
                return nn.Conv(6, (3, 3), name="layer")(x.repeat(2, axis=1).repeat(2, axis=2))


class Quick(Plain):
    """Ours."""

    @nn.compact
    def __call__(self, x):
        match self.kind:
            case "norm":
                return layers.GroupNorm(4, name="layer")(x, cpu.swish)
            case "stride":
                return layers.Conv(6, jnp.float32, stride=2, name="layer")(x)
            case "double":
                return layers.DoubleConv(6, jnp.float32, name="layer")(x)


@pytest.mark.parametrize("kind", ["norm", "stride", "double"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (3, 5, 3, 8)])
def test_the_quick_way_is_the_plain_way(kind, shape):
    """With sizes that eight chunks divide, and odd ones."""
    x = 1 + jax.random.normal(KEY, shape)
    variables = jax.tree.map(lambda a: a + jax.random.normal(KEY, a.shape), Plain(kind).init(KEY, x))
    weight = jax.random.normal(jax.random.key(1), Plain(kind).apply(variables, x).shape)

    def value_gradients_and_derivative(network):
        of = lambda variables, x: (network.apply(variables, x) * weight).sum()  # noqa: E731
        forward = lambda x: network.apply(variables, x)  # noqa: E731
        return forward(x), jax.grad(of, (0, 1))(variables, x), jax.jvp(forward, (x,), (x**2,))

    ours, plain = (jax.jit(value_gradients_and_derivative, static_argnums=0)(each(kind)) for each in (Quick, Plain))
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_a_norm_adds_scales_and_shifts(size):
    """Values and gradients, also if the numbers added to whole channels are much larger than those in them."""
    x = jax.random.normal(KEY, (3, 4, 6, 8))
    added, scale, shift = jax.random.normal(jax.random.key(1), (3, 3, 8)) * jnp.array([size, 1, 1])[:, None, None]
    weight = jax.random.normal(jax.random.key(2), x.shape)
    variables = {"params": {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.linspace(-1, 1, 8)}}

    def fused(x, added, scale, shift):
        norm = layers.GroupNorm(4)
        return (norm.apply(variables, layers.LazySum(x, added), jnp.tanh, scale_shift=(scale, shift)) * weight).sum()

    def plain(x, added, scale, shift):
        y = nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False).apply(variables, x + added[:, None, None])
        return (jnp.tanh(y * (1 + scale[:, None, None]) + shift[:, None, None]) * weight).sum()

    ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1, 2, 3)))(x, added, scale, shift) for f in (fused, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def test_a_norm_of_bfloat16_is_computed_in_float32():
    """And comes in bfloat16: at most a rounding, 2**-9, from the norm of the same numbers in float32."""
    x = jax.random.normal(KEY, (2, 4, 4, 8), jnp.bfloat16)
    norm = layers.GroupNorm(4)
    variables = norm.init(KEY, x)
    exact, rounded = norm.apply(variables, x.astype(jnp.float32), cpu.swish), norm.apply(variables, x, cpu.swish)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    """A million numbers: the standard deviation of the rate is 0.0003, of a correlation 0.001."""
    keys = jax.random.split(KEY, 4)
    x = jnp.ones((4, 512, 512))
    kept = np.asarray(dropout(keys, "a", 0.1)(x))
    assert set(np.unique(kept).round(5)) == {0.0, np.float32(1 / 0.9).round(5)}
    assert abs((kept == 0).mean() - 0.1) < 4 * 0.0003
    assert abs(kept.mean() - 1) < 4 * 0.0004
    other = np.asarray(dropout(keys, "b", 0.1)(x))
    pairs = [(kept[:, 1:], kept[:, :-1]), (kept[:, :, 1:], kept[:, :, :-1]), (kept[0], kept[1]), (kept, other)]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 * 0.002


def test_an_examples_mask_is_that_of_its_key():
    keys, x = jax.random.split(KEY, 6), jnp.ones((6, 5, 3))
    whole = dropout(keys, "a", 0.5)(x)
    np.testing.assert_array_equal(dropout(keys[3:], "a", 0.5)(x[3:]), whole[3:])
    np.testing.assert_array_equal(dropout(keys[::-1], "a", 0.5)(x), whole[::-1])
    assert len(np.unique(whole.reshape(6, -1), axis=0)) == 6


def test_a_networks_masks_follow_the_examples():
    network = UNet(channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), num_groups=4, dropout=0.3)
    x, t, keys = jax.random.normal(KEY, (5, 4, 4, 1)), jnp.arange(5), jax.random.split(KEY, 5)
    shapes = jax.eval_shape(network.init, KEY, x, t)
    variables = jax.tree.map(lambda a: 0.3 * jax.random.normal(KEY, a.shape), shapes)
    run = jax.jit(lambda x, t, keys: network.apply(variables, x, t, train=True, dropout_keys=keys))
    whole = run(x, t, keys)
    np.testing.assert_allclose(run(x[3:], t[3:], keys[3:]), whole[3:], atol=1e-5)
    assert not np.allclose(whole, run(x, t, keys[::-1]), atol=1e-2)
