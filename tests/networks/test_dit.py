"""DiT: published sizes, the published implementation, and what must change nothing."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import Context, DiT, dit, transformer

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
KEY = jax.random.key(0)
SMALL = DiT(8, 1, 2, num_classes=5)
X, T, LABELS = jax.random.normal(KEY, (3, 4, 6, 2)), jnp.array([0.0, 17.0, 999.0]), jnp.array([4, 0, 2])
CONTEXT = Context(
    jax.random.normal(KEY, (3, 7, 12)), jnp.asarray(np.arange(7) < np.array([[7], [4], [1]])), jax.random.normal(KEY, (3, 9))
)


def variables_of(network, *inputs):
    """Random values for all parameters, also for those that start at zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, KEY, *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), shapes)


@pytest.mark.parametrize(("size", "count"), [("S", 32_865_056), ("B", 130_315_808), ("L", 457_840_672), ("XL", 674_834_720)])
def test_the_published_sizes(size, count):
    """Peebles & Xie 2022 have 33, 130, 458 and 675 million parameters at patch 2, with 4 channels in, 8 out and 1,000 classes.

    With d channels per token and L blocks: patches 16 d + d; time 256 d + d and d^2 + d; classes 1001 d; per block 3 (d^2 + d)
    for q, k, v, d^2 + d for the output, 8 d^2 + 5 d for the MLP, 6 (d^2 + d) for the modulation; head 2 (d^2 + d), 32 d + 32.
    """
    width, depth, num_heads = dit.SIZES[size]
    network = DiT(width, depth, num_heads, out_channels=8, num_classes=1001)
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert count == depth * (18 * width**2 + 15 * width) + 3 * width**2 + (17 + 257 + 1 + 1001 + 2 + 32) * width + 32


def linear(arrays, name):
    return {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]}


def published():
    """The parameters and the rest of the fixture, by our names."""
    arrays = dict(np.load(FIXTURES / "dit.npz"))
    patches = arrays["pos_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, 16)  # rows, columns, channels
    first = "transformer_blocks.0.norm1.emb"
    params = {
        "patches": {"kernel": patches, "bias": arrays["pos_embed.proj.bias"]},
        "time1": linear(arrays, f"{first}.timestep_embedder.linear_1"),
        "time2": linear(arrays, f"{first}.timestep_embedder.linear_2"),
        "label": {"embedding": arrays[f"{first}.class_embedder.embedding_table.weight"]},
        "head_modulation": linear(arrays, "proj_out_1"),
        "head": linear(arrays, "proj_out_2"),
    }
    for i in range(2):
        block, theirs = f"transformer_blocks.{i}", {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
        params[f"block{i}"] = {
            "modulation": linear(arrays, f"{block}.norm1.linear"),
            "attention": {ours: linear(arrays, f"{block}.attn1.{name}") for ours, name in theirs.items()},
            "mlp1": linear(arrays, f"{block}.ff.net.0.proj"),
            "mlp2": linear(arrays, f"{block}.ff.net.2"),
        }
    return {"params": params}, arrays


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_it_is_the_published_network(dtype, tolerance):
    """diffusers' DiTTransformer2DModel with random parameters; `fixtures/make_dit.py` has the versions and settings."""
    params, arrays = published()
    network = DiT(16, 2, 2, out_channels=6, num_classes=6, dtype=dtype)
    x = jnp.asarray(arrays["x"].transpose(0, 2, 3, 1))
    output = jax.jit(network.apply)(params, x, arrays["t"], arrays["labels"])
    expected = arrays["output"].transpose(0, 2, 3, 1)
    assert output.dtype == jnp.float32
    assert np.linalg.norm(output - expected) < tolerance * np.linalg.norm(expected)


def test_attention_to_other_tokens_is_that_of_pytorch():
    """torch.nn.MultiheadAttention with a mask, from the same script."""
    arrays = np.load(FIXTURES / "attention.npz")
    biases = np.split(arrays["in_proj_bias"], 3)
    params = {
        name: {"kernel": arrays[f"{name[0]}_proj_weight"].T, "bias": bias}
        for name, bias in zip(("query", "key", "value"), biases, strict=True)
    } | {"output": linear(arrays, "out_proj")}
    made = transformer.Attention(2, jnp.float32).apply({"params": params}, arrays["x"], arrays["y"], arrays["mask"])
    np.testing.assert_allclose(made, arrays["output"], atol=1e-5)


def test_the_output_is_zero_at_initialisation_and_blocks_are_the_identity():
    params = jax.jit(SMALL.init)(KEY, X, T)
    np.testing.assert_array_equal(jax.jit(SMALL.apply)(params, X, T, LABELS), 0)
    h, c = jax.random.normal(KEY, (3, 6, 8)), jax.random.normal(KEY, (3, 8))
    block = dit.Block(2, 4.0, False, False, jnp.float32)
    np.testing.assert_array_equal(jax.jit(block.apply)(jax.jit(block.init)(KEY, h, c, None), h, c, None), h)


def test_a_block_that_attends_to_a_context_starts_as_the_identity():
    """PixArt: the output of cross-attention starts at zero."""
    h, c = jax.random.normal(KEY, (3, 6, 8)), jax.random.normal(KEY, (3, 8))
    block = dit.Block(2, 4.0, False, True, jnp.float32)
    output, _ = jax.jit(block.init_with_output)(KEY, h, c, CONTEXT)
    np.testing.assert_array_equal(output, h)


def test_initial_values_are_the_authors():
    """Xavier's bound is sqrt(6 / (inputs + outputs)); q, k and v of x, and k and v of the context, count as one product."""
    d, context = 64, Context(jnp.zeros((1, 2, 32)))
    params = jax.jit(DiT(d, 1, 2, num_classes=5, context_dim=32).init)(KEY, X[:1], T[:1], LABELS[:1], context)["params"]
    block = params["block0"]
    bounds = [
        (params["patches"], 8 + d),
        *[(block["attention"][name], d + 3 * d) for name in ("query", "key", "value")],
        (block["attention"]["output"], d + d),
        (block["cross_attention"]["query"], d + d),
        *[(block["cross_attention"][name], 32 + 2 * d) for name in ("key", "value")],
        (block["mlp1"], d + 4 * d),
        (block["mlp2"], 4 * d + d),
    ]
    for dense, fans in bounds:
        kernel, bound = dense["kernel"], np.sqrt(6 / fans)
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.15)  # 4 standard errors of the smallest, 512
        np.testing.assert_array_equal(dense["bias"], 0)
    for array in (params["time1"]["kernel"], params["time2"]["kernel"], params["label"]["embedding"]):
        np.testing.assert_allclose(np.std(array), 0.02, rtol=0.16)  # 4 standard errors of the smallest, 320


def test_positions_are_those_of_row_and_column():
    """Values by hand: sine and cosine of the column at frequencies 1 and 1/100, then of the row."""
    table = transformer.positions_2d(2, 3, 8)
    assert table.shape == (6, 8)
    np.testing.assert_allclose(table[0], [0, 0, 1, 1, 0, 0, 1, 1])
    column, row = 2.0, 1.0  # the last token
    expected = [f(p * w) for p in (column, row) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
    np.testing.assert_allclose(table[5], expected, rtol=1e-6)


EVERYTHING = DiT(8, 1, 2, num_classes=5, context_dim=12, pooled_dim=9, num_times=2, qk_norm=True)
TIMES = jnp.stack([T, T / 2], axis=1)
apply = jax.jit(EVERYTHING.apply)


@functools.cache
def params_of_everything():
    return variables_of(EVERYTHING, X, TIMES, LABELS, CONTEXT)


def test_every_condition_matters():
    params, times = params_of_everything(), TIMES
    output = apply(params, X, times, LABELS, CONTEXT)
    assert output.shape == X.shape
    others = [
        (times.at[:, 0].add(1), LABELS, CONTEXT),
        (times.at[:, 1].add(1), LABELS, CONTEXT),
        (times, (LABELS + 1) % 5, CONTEXT),
        (times, LABELS, CONTEXT._replace(tokens=CONTEXT.tokens + 1)),
        (times, LABELS, CONTEXT._replace(pooled=CONTEXT.pooled + 1)),
    ]
    for other in others:
        assert np.abs(apply(params, X, *other) - output).max(axis=(1, 2, 3)).min() > 1e-4


def test_masked_tokens_and_batch_mates_change_nothing():
    params = params_of_everything()
    output = apply(params, X, TIMES, LABELS, CONTEXT)
    padded = CONTEXT._replace(tokens=jnp.where(CONTEXT.mask[..., None], CONTEXT.tokens, 100.0))
    np.testing.assert_allclose(apply(params, X, TIMES, LABELS, padded), output, atol=1e-5)
    mates = jax.tree.map(lambda a: a[np.array([2, 1, 0])], (X, TIMES, LABELS, CONTEXT))
    np.testing.assert_allclose(apply(params, *mates)[1], output[1], atol=1e-5)


@jax.jit
def gradient(params, context):
    return jax.grad(lambda p: jnp.sum(EVERYTHING.apply(p, X, TIMES, LABELS, context) ** 2))(params)


def test_an_example_without_tokens_is_finite():
    """Its attention to the context adds a constant."""
    params, empty = params_of_everything(), CONTEXT._replace(mask=jnp.zeros_like(CONTEXT.mask))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params, empty)))
    other = empty._replace(tokens=CONTEXT.tokens + 1)
    np.testing.assert_allclose(*(apply(params, X, TIMES, LABELS, c) for c in (empty, other)), atol=1e-6)


def test_checkpointing_of_gradients_changes_none():
    params, network = params_of_everything(), dataclasses.replace(EVERYTHING, remat=True)
    recomputed = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, X, TIMES, LABELS, CONTEXT) ** 2)))(params)
    for a, b in zip(jax.tree.leaves(gradient(params, CONTEXT)), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_normalized_queries_and_keys_bound_the_logits():
    """With scale 1, |q| = |k| = sqrt(d) per head, so that logits stay within sqrt(d) however large the tokens are."""
    attention = transformer.Attention(2, jnp.float32, qk_norm=True)
    x = jax.random.normal(KEY, (2, 5, 16))
    params = attention.init(KEY, x)
    small, large = (attention.apply(params, scale * x) for scale in (1.0, 1e4))
    np.testing.assert_allclose(large, 1e4 * small, rtol=1e-3, atol=1e-2)  # the same weights, values 1e4 times as large


@pytest.mark.parametrize("shape", [(2, 6, 5, 8), (1, 1, 1, 4)])
def test_attention_is_that_of_jax(shape):
    """Also on accelerators' path: jax.nn.dot_product_attention."""
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    mask = jnp.asarray(np.arange(shape[1]) < np.full((shape[0], 1), max(shape[1] - 2, 1)))
    np.testing.assert_allclose(transformer.attend(q, k, v), jax.nn.dot_product_attention(q, k, v), atol=1e-6)
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
    np.testing.assert_allclose(transformer.attend(q, k, v, mask), expected, atol=1e-6)


def test_parameters_stay_float32_in_bfloat16():
    network = dataclasses.replace(SMALL, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(network.init, KEY, X, T)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("network", "inputs", "said"),
    [
        (DiT(16, 1, 2, patch=4), (X, T), "patch: expected a divisor of height and width, 4 x 6, received 4"),
        (DiT(16, 1, 3), (X, T), "num_heads: expected a divisor of the width 16, received 3"),
        (DiT(18, 1, 2), (X, T), "width: expected a multiple of 4"),
        (DiT(16, 1, 2), (X[0], T), r"x_t: expected images \[B, H, W, C\]"),
        (DiT(16, 1, 2), (X, T[:2]), r"t: expected shape \(3,\), received \(2,\)"),
        (DiT(16, 1, 2, num_times=2), (X, T), r"t: expected shape \(3, 2\), received \(3,\)"),
        (DiT(16, 1, 2), (X, T, LABELS), "labels: expected None"),
        (DiT(16, 1, 2), (X, T, None, CONTEXT), "context: expected None"),
        (DiT(16, 1, 2, context_dim=12), (X, T), "context: expected a Context"),
        (
            DiT(16, 1, 2, context_dim=13),
            (X, T, None, CONTEXT),
            r"context: expected tokens \(3, L, 13\), received \(3, 7, 12\)",
        ),
        (
            DiT(16, 1, 2, pooled_dim=8),
            (X, T, None, CONTEXT),
            r"context: expected pooled \(3, 8\), received \(3, 9\)",
        ),
        (
            DiT(16, 1, 2, pooled_dim=8),
            (X, T, None, CONTEXT._replace(pooled=None)),
            r"context: expected pooled \(3, 8\), received None",
        ),
        (
            DiT(16, 1, 2, context_dim=12),
            (X[:2], T[:2], None, CONTEXT),
            r"context: expected tokens \(2, L, 12\), received \(3, 7, 12\)",
        ),
        (
            DiT(16, 1, 2, context_dim=12),
            (X, T, None, CONTEXT._replace(mask=CONTEXT.mask.astype(jnp.int32))),
            r"context: expected a mask of booleans \(3, 7\), received int32 \(3, 7\)",
        ),
        (SMALL, (X, T, LABELS[:1]), r"labels: expected shape \(3,\), received \(1,\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(network, inputs, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(network.init, KEY, *inputs)


def test_labels_are_needed_once_there_are_classes():
    params = jax.eval_shape(SMALL.init, KEY, X, T)
    with pytest.raises(ValueError, match="labels: expected one of 5 classes"):
        jax.eval_shape(SMALL.apply, params, X, T)
