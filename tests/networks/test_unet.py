import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import UNet, cpu, layers, timestep_embedding, with_label

KEY = jax.random.key(0)
SMALL = UNet(channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_groups=8)


def variables_of(network, shape, seed=0):
    """Random values for all parameters, also for those that start at zero."""
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros(shape), jnp.zeros((shape[0],), jnp.int32))
    return random_values(shapes, seed)


def random_values(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def count(network, shape):
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros(shape), jnp.zeros((1,), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_papers_networks_have_the_papers_numbers_of_parameters():
    """Ho et al. 2020, appendix B: 35.7 million for CIFAR-10, 114 million for 256x256; exact counts from the authors' code."""
    assert count(UNet(), (1, 32, 32, 3)) == 35_746_307
    assert count(UNet(out_channels=6), (1, 32, 32, 3)) == 35_749_766
    assert count(UNet(multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0), (1, 256, 256, 3)) == 113_673_219


def test_timestep_embedding_has_the_published_values():
    """Rows 23 to 25, columns 47 to 49 of the embedding of 0..127 in 64 dimensions, as in diffusers' layer tests."""
    expected = [[0.9646, 0.9804, 0.9892], [0.9615, 0.9787, 0.9882], [0.9582, 0.9769, 0.9872]]
    np.testing.assert_allclose(timestep_embedding(jnp.arange(128), 64)[23:26, 47:50], expected, atol=1e-4)


@pytest.mark.parametrize("dim", [3, 2, 65])
def test_an_embedding_needs_an_even_dimension(dim):
    with pytest.raises(ValueError, match="even"):
        timestep_embedding(jnp.arange(3), dim)


def test_the_output_is_zero_at_initialisation():
    x = jax.random.normal(KEY, (2, 8, 8, 2))
    output, _ = jax.jit(SMALL.init_with_output)(KEY, x, jnp.array([0, 999]))
    assert output.shape == x.shape
    assert np.abs(output).max() <= 1e-6


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 8, 12, 4), (1, 2, 2, 3)])
@pytest.mark.parametrize("out_channels", [None, 7])
def test_any_number_of_channels_and_images_that_are_not_square(shape, out_channels):
    network = SMALL.clone(out_channels=out_channels)
    variables = variables_of(network, shape)
    output = network.apply(variables, jax.random.normal(KEY, shape), jnp.arange(shape[0]))
    assert output.shape == (*shape[:3], shape[3] if out_channels is None else out_channels)
    assert np.std(output) > 0.1


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (UNet(), (1, 28, 28, 1), "multipliers.*divisible by 8.*28 x 28"),
        (UNet(channels=48), (1, 32, 32, 3), "num_groups.*received 32 for 48"),
        (UNet(channels=32, num_heads=3), (1, 32, 32, 3), "num_heads.*divisor.*3"),
        (UNet(), (1, 32, 32), "images.*shape"),
    ],
)
def test_what_does_not_fit_is_refused(network, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, KEY, jnp.zeros(shape), jnp.zeros((1,), jnp.int32))


def test_labels_are_refused_by_a_network_without_classes():
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,), jnp.int32)
    with pytest.raises(ValueError, match="labels"):
        SMALL.apply(variables_of(SMALL, (1, 8, 8, 1)), x, t, jnp.zeros((1,), jnp.int32))


def test_bfloat16_computes_close_to_float32_over_float32_parameters():
    x, t = jax.random.normal(KEY, (2, 8, 8, 2)), jnp.array([0, 999])
    variables = variables_of(SMALL, x.shape)
    rough = SMALL.clone(dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(rough.init, KEY, x, t)))
    exact, output = (jax.jit(network.apply)(variables, x, t) for network in (SMALL, rough))
    assert output.dtype == jnp.float32
    error = np.abs(output - exact).max() / np.std(exact)
    assert 1e-4 < error < 0.1, "computed in bfloat16, and right"


def test_norms_and_softmax_are_float32_under_bfloat16():
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,), jnp.int32)
    program = str(jax.make_jaxpr(SMALL.clone(dtype="bfloat16").apply)(variables_of(SMALL, x.shape), x, t))
    for operation in ("rsqrt", "exp"):
        lines = [line for line in program.splitlines() if re.search(rf"= {operation}[ \[]", line)]
        assert lines
        assert all("bf16" not in line.split("=")[0] for line in lines)


def test_dropout_is_on_in_training_alone():
    x, t = jax.random.normal(KEY, (2, 8, 8, 2)), jnp.array([3, 700])
    network = SMALL.clone(dropout=0.5)
    variables = variables_of(network, x.shape)
    still = network.apply(variables, x, t)
    np.testing.assert_array_equal(still, SMALL.clone(dropout=0.0).apply(variables, x, t))
    np.testing.assert_array_equal(still, network.apply(variables, x, t, dropout_keys=jax.random.split(KEY, 2)))
    assert not np.allclose(still, network.apply(variables, x, t, train=True, rngs={"dropout": KEY}))
    with pytest.raises(Exception, match="dropout"):
        network.apply(variables, x, t, train=True)


def test_time_and_batch_mates():
    x, t = jax.random.normal(KEY, (2, 8, 8, 2)), jnp.array([3, 700])
    variables = variables_of(SMALL, x.shape)
    whole = SMALL.apply(variables, x, t)
    np.testing.assert_allclose(SMALL.apply(variables, x[1:2], t[1:2]), whole[1:2], atol=1e-5)
    assert not np.allclose(whole, SMALL.apply(variables, x, t + 5), atol=1e-3)


def outputs(network, shape=(2, 8, 8, 2), variables=None):
    x, t = jax.random.normal(KEY, shape), jnp.array([3, 700])
    return network.apply(variables_of(network, shape) if variables is None else variables, x, t)


def test_attention_by_level_and_by_resolution():
    by_level = SMALL.clone(attention_resolutions=(), attention_levels=(1,))
    np.testing.assert_array_equal(outputs(by_level), outputs(SMALL))
    larger = variables_of(by_level, (1, 16, 16, 2))
    assert "down1_0_attention" in larger["params"], "whatever the size"
    assert "down0_0_attention" in variables_of(by_level.clone(attention_levels=(0, 1)), (1, 8, 8, 2))["params"]


def test_heads_by_number_and_by_size():
    variables = variables_of(SMALL, (2, 8, 8, 2))
    by_size = outputs(SMALL.clone(head_dim=8), variables=variables)
    np.testing.assert_array_equal(by_size, outputs(SMALL.clone(num_heads=4), variables=variables))
    assert not np.allclose(by_size, outputs(SMALL, variables=variables))
    with pytest.raises(ValueError, match="head_dim: expected a divisor of 32 channels, received 12"):
        outputs(SMALL.clone(head_dim=12))


@pytest.mark.parametrize(
    ("middle", "parts"),
    [("attention", {"middle1", "middle_attention", "middle2"}), ("blocks", {"middle1", "middle2"}), ("none", set())],
)
def test_middles(middle, parts):
    params = variables_of(SMALL.clone(middle=middle), (1, 8, 8, 2))["params"]
    assert {name for name in params if name.startswith("middle")} == parts
    with pytest.raises(ValueError, match=r"middle: expected one of .*received 'attn'"):
        outputs(SMALL.clone(middle="attn"))


def test_a_middle_attention_without_norm():
    params = variables_of(SMALL.clone(middle="attention_without_norm"), (1, 8, 8, 2))["params"]
    assert set(params["middle_attention"]) == {"query", "key", "value", "output"}
    assert "norm" in params["down1_0_attention"]


def test_the_order_and_the_frequencies_of_the_embedding():
    """The highest frequency is 1 whatever the shift; the lowest is 1/10000 at shift 1."""
    t = jnp.array([5])
    paper, later = timestep_embedding(t, 8)[0], timestep_embedding(t, 8, freq_shift=0.0, cos_first=True)[0]
    np.testing.assert_allclose(paper[jnp.array([0, 3, 4, 7])], [np.sin(5), np.sin(5e-4), np.cos(5), np.cos(5e-4)], rtol=1e-4)
    np.testing.assert_allclose(later[jnp.array([4, 7, 0, 3])], [np.sin(5), np.sin(5e-3), np.cos(5), np.cos(5e-3)], rtol=1e-4)


def test_symmetric_padding_sees_the_pixel_before():
    """A kernel that reads its upper left corner: at 0 of a padded image, at the image's first pixel otherwise."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)

    class Down(nn.Module):
        symmetric: bool

        @nn.compact
        def __call__(self, x):
            return layers.downsample(x, jnp.float32, self.symmetric, "conv")

    corner = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
    variables = {"params": {"conv": {"kernel": corner, "bias": jnp.zeros(1)}}}
    np.testing.assert_array_equal(Down(False).apply(variables, x)[0, :, :, 0], [[0, 2], [8, 10]])
    np.testing.assert_array_equal(Down(True).apply(variables, x)[0, :, :, 0], [[0, 0], [0, 5]])


def test_residual_resampling_halves_by_means_and_doubles_by_repeating():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.halve(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(layers.halve(layers.double(x)), x)
    params = variables_of(SMALL.clone(residual_downsampling=(0,)), (1, 8, 8, 2))["params"]
    assert "conv2" in params["downsample1"] and "kernel" in params["upsample1"]
    params = variables_of(SMALL.clone(residual_upsampling=(1,)), (1, 8, 8, 2))["params"]
    assert "kernel" in params["downsample1"] and "conv2" in params["upsample1"]


def test_scale_and_shift_by_the_time_change_nothing_where_they_are_zero():
    """h (1 + 0) + 0 is h, and adding 0 before the norm is nothing either."""
    shape, shifted = (2, 8, 8, 2), SMALL.clone(time_scale_shift=True)
    plain, shapes = variables_of(SMALL, shape), variables_of(shifted, shape)
    assert shapes["params"]["middle1"]["time"]["bias"].size == 2 * plain["params"]["middle1"]["time"]["bias"].size

    def timeless(path, leaf, value):
        return jnp.zeros_like(leaf) if any(key.key == "time" for key in path) else value

    ours = jax.tree_util.tree_map_with_path(timeless, plain, plain)
    theirs = jax.tree_util.tree_map_with_path(timeless, shapes, plain)
    np.testing.assert_allclose(outputs(shifted, variables=theirs), outputs(SMALL, variables=ours), atol=1e-5)
    assert not np.allclose(outputs(shifted), outputs(SMALL), atol=1e-2)


def test_labels_change_the_output_and_must_be_known():
    network = SMALL.clone(num_classes=3)
    x, t = jnp.tile(jax.random.normal(KEY, (1, 8, 8, 1)), (4, 1, 1, 1)), jnp.full(4, 3)
    shapes = jax.eval_shape(network.init, KEY, x, t, t)
    assert shapes["params"]["label"]["embedding"].shape == (3, 64)
    variables = random_values(shapes)
    traced = np.asarray(jax.jit(network.apply)(variables, x, t, jnp.array([0, 2, -1, 3])))
    assert np.isfinite(traced[:2]).all() and np.isnan(traced[2:]).all()
    assert np.abs(traced[0] - traced[1]).max() > 1e-3
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=r"labels: expected 0\.\.2"):
            network.apply(variables, x, t, jnp.array([0, 0, 0, wrong]))
    with pytest.raises(ValueError, match="labels: expected one of 3 classes"):
        network.apply(variables, x, t)
    with pytest.raises(TypeError, match="labels: expected integers"):
        network.apply(variables, x, t, jnp.zeros(4))


def test_remat_changes_the_memory_of_the_gradient_alone():
    plain = SMALL.clone(dropout=0.2, attention_resolutions=(), middle="blocks")
    x, t = jax.random.normal(KEY, (8, 16, 16, 3)), jnp.arange(8)
    params = variables_of(plain, x.shape)

    def compiled(network):
        loss = lambda params: (network.apply(params, x, t, train=True, rngs={"dropout": KEY}) ** 2).mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss)).lower(params).compile(cpu.compiler_options(gradient=True))

    kept, computed_again = compiled(plain), compiled(plain.clone(remat=True))
    used = [program.memory_analysis().temp_size_in_bytes for program in (kept, computed_again)]
    assert used[1] < 0.6 * used[0]
    (loss, gradient), again = kept(params), computed_again(params)
    np.testing.assert_allclose(again[0], loss, rtol=1e-5)
    scale = max(np.abs(a).max() for a in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(again[1]), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6 * scale)


def test_a_label_becomes_a_bias():
    network = SMALL.clone(num_classes=3)
    x, t = jax.random.normal(KEY, (4, 8, 8, 1)), jnp.array([0, 10, 500, 999])
    variables = variables_of(network, x.shape)
    for label in (0, 2):
        plain, rest = with_label(network, variables, label)
        assert count(plain, x.shape) == count(network, x.shape) - 3 * 64
        np.testing.assert_allclose(plain.apply(rest, x, t), network.apply(variables, x, t, jnp.full(4, label)), atol=1e-5)
    for classes, label in ((network, 3), (network, -1), (SMALL, 0)):
        with pytest.raises(ValueError, match="label: expected one of"):
            with_label(classes, variables, label)


def test_a_condition_joins_the_channels():
    x, t, condition = jax.random.normal(KEY, (2, 8, 8, 1)), jnp.array([3, 700]), jnp.ones((2, 8, 8, 2))
    variables = random_values(jax.eval_shape(SMALL.init, KEY, x, t, None, condition))
    assert variables["params"]["stem"]["kernel"].shape == (3, 3, 3, 16)
    output = SMALL.apply(variables, x, t, None, condition)
    assert output.shape == x.shape
    joined = SMALL.clone(out_channels=1).apply(variables, jnp.concatenate([x, condition], axis=-1), t)
    np.testing.assert_array_equal(output, joined)
    assert not np.allclose(output, SMALL.apply(variables, x, t, None, 2 * condition), atol=1e-3)
    with pytest.raises(ValueError, match="condition: expected shape"):
        SMALL.apply(variables, x, t, None, condition[:, :4])
