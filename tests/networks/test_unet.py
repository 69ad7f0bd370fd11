import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import UNet, timestep_embedding

KEY = jax.random.key(0)
SMALL = UNet(channels=16, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_groups=8)


def variables_of(network, shape, seed=0):
    """Random values for all parameters, also for those that start at zero."""
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros(shape), jnp.zeros((shape[0],), jnp.int32))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


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
    x = jax.random.normal(KEY, (2, 32, 32, 3))
    output, _ = jax.jit(UNet(channels=32).init_with_output)(KEY, x, jnp.array([0, 999]))
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
        (UNet(channels=48), (1, 32, 32, 3), "channels.*32 groups.*48"),
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
    x, t = jax.random.normal(KEY, (4, 8, 8, 1)), jnp.array([0, 10, 500, 999])
    variables = variables_of(SMALL, x.shape)
    rough = SMALL.clone(dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough.init(KEY, x, t)))
    exact, output = SMALL.apply(variables, x, t), rough.apply(variables, x, t)
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
    x, t = jax.random.normal(KEY, (2, 8, 8, 1)), jnp.array([3, 700])
    network = SMALL.clone(dropout=0.5)
    variables = variables_of(network, x.shape)
    still = network.apply(variables, x, t)
    np.testing.assert_array_equal(still, SMALL.clone(dropout=0.0).apply(variables, x, t))
    assert not np.allclose(still, network.apply(variables, x, t, train=True, rngs={"dropout": KEY}))
    with pytest.raises(Exception, match="dropout"):
        network.apply(variables, x, t, train=True)


def test_time_and_batch_mates():
    x, t = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.array([3, 700, 20])
    variables = variables_of(SMALL, x.shape)
    whole = SMALL.apply(variables, x, t)
    np.testing.assert_allclose(SMALL.apply(variables, x[1:2], t[1:2]), whole[1:2], atol=1e-5)
    assert not np.allclose(whole, SMALL.apply(variables, x, t + 5), atol=1e-3)


def read_safetensors(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    entries = {name: entry for name, entry in json.loads(raw[8 : 8 + size]).items() if name != "__metadata__"}
    read = lambda entry: np.frombuffer(raw[8 + size :][slice(*entry["data_offsets"])], np.float32)  # noqa: E731
    return {name: read(entry).reshape(entry["shape"]) for name, entry in entries.items()}


def from_torch_names(tensors, variables, num_blocks):
    """Our variables with the values of diffusers' UNet2DModel; every tensor is used, every variable set."""
    parts = {
        "stem": "conv_in", "head_norm": "conv_norm_out", "head": "conv_out",
        "time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2",
        "middle1": "mid_block.resnets.0", "middle2": "mid_block.resnets.1", "middle_attention": "mid_block.attentions.0",
    }  # fmt: skip
    leaves = {
        "norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
        "shortcut": "conv_shortcut", "norm": "group_norm",
        "query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0",
    }  # fmt: skip
    levels = 1 + max(int(name[2]) for name in re.findall(r"up\d_\d|downsample\d", " ".join(variables)) if name[2].isdigit())

    def torch_name(path):
        part, *rest = path
        if match := re.fullmatch(r"(down|up)(\d)_(\d)(_attention)?", part):
            way, level, block, attention = match.groups()
            level = int(level) if way == "down" else levels - 1 - int(level)
            prefix = f"{way}_blocks.{level}.{'attentions' if attention else 'resnets'}.{block}"
        elif match := re.fullmatch(r"downsample(\d)", part):
            prefix = f"down_blocks.{int(match[1]) - 1}.downsamplers.0.conv"
        elif match := re.fullmatch(r"upsample(\d)", part):
            prefix = f"up_blocks.{levels - 1 - int(match[1])}.upsamplers.0.conv"
        else:
            prefix = parts[part]
        names = [leaves.get(word, {"kernel": "weight", "scale": "weight", "bias": "bias"}.get(word)) for word in rest]
        return ".".join([prefix, *names])

    left = dict(tensors)

    def value(path, leaf):
        tensor = left.pop(torch_name([entry.key for entry in path]))
        tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        assert tensor.shape == leaf.shape
        return tensor

    filled = jax.tree_util.tree_map_with_path(value, variables)
    assert not left
    return filled


def test_the_same_function_as_diffusers_computes(test_data):
    """Random weights, inputs and outputs of diffusers 0.42.1's UNet2DModel with the options of the published DDPM models."""
    folder = test_data / "fixtures" / "unet2d_ddpm_style"
    config = json.loads((folder / "config.json").read_text())
    channels = config["block_out_channels"]
    network = UNet(
        channels=channels[0], multipliers=tuple(c // channels[0] for c in channels), attention_resolutions=(8,),
        num_blocks=config["layers_per_block"],
    )  # fmt: skip
    tensors = read_safetensors(folder / "diffusion_pytorch_model.safetensors")
    io = np.load(folder / "io.npz")
    for i in range(sum(name.startswith("sample_") for name in io)):
        x, t = io[f"sample_{i}"].transpose(0, 2, 3, 1), io[f"timestep_{i}"].astype(np.int32)
        sized = network.clone(attention_resolutions=(max(x.shape[1:3]) // 2,))
        shapes = jax.eval_shape(sized.init, KEY, x, t)["params"]
        params = from_torch_names(tensors, shapes, config["layers_per_block"])
        output = sized.apply({"params": params}, x, t)
        np.testing.assert_allclose(output.transpose(0, 3, 1, 2), io[f"output_{i}"], atol=1e-5)
