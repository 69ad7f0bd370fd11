import functools

import chex
import jax
import numpy as np
import pytest

from ddpm_jax.interop import names, weights
from ddpm_jax.networks import UNet

NETWORK = UNet(channels=8, multipliers=(1, 2, 2), num_blocks=1, attention_resolutions=(4,), num_groups=4)
SHAPE = (8, 8, 3)
FORMATS = {"plain": names.PLAIN, "diffusers": names.DIFFUSERS, "port": names.PYTORCH_DIFFUSION, "authors": names.TENSORFLOW}


@functools.cache
def params_of(network=NETWORK, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), weights.shapes_of(network, SHAPE))


def encoded(format_names, params):
    return names.encode(names.entries(format_names, params, len(NETWORK.multipliers)), params)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("name", FORMATS)
def test_saved_parameters_are_loaded_unchanged(name, suffix, tmp_path):
    params = params_of()
    weights.save(tmp_path / f"model{suffix}", NETWORK, params, FORMATS[name])
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]
    chex.assert_trees_all_equal(weights.load(tmp_path / f"model{suffix}", NETWORK, SHAPE, FORMATS[name]), params)


def test_the_authors_names_and_layouts():
    """As tf.get_variable creates them in diffusion_tf/models/unet.py and nn.py of hojonathanho/diffusion."""
    params = params_of()
    tensors, ours = encoded(names.TENSORFLOW, params), params["params"]
    assert len(tensors) == len(jax.tree.leaves(params))
    expected = {
        "model/temb/dense0/W": ours["time1"]["kernel"],
        "model/conv_in/W": ours["stem"]["kernel"],
        "model/down_0/block_0/conv2/b": ours["down0_0"]["conv2"]["bias"],
        "model/down_1/block_0/nin_shortcut/W": ours["down1_0"]["shortcut"]["kernel"][0, 0],
        "model/down_1/attn_0/proj_out/W": ours["down1_0_attention"]["output"]["kernel"],
        "model/down_0/downsample/conv/W": ours["downsample1"]["kernel"],
        "model/mid/block_2/temb_proj/W": ours["middle2"]["time"]["kernel"],
        "model/mid/attn_1/norm/gamma": ours["middle_attention"]["norm"]["scale"],
        "model/up_2/block_1/norm1/beta": ours["up2_1"]["norm1"]["bias"],
        "model/up_2/upsample/conv/W": ours["upsample2"]["kernel"],
        "model/norm_out/beta": ours["head_norm"]["bias"],
        "model/conv_out/b": ours["head"]["bias"],
    }
    chex.assert_trees_all_equal({name: tensors[name] for name in expected}, expected)


def test_the_ports_names_and_layouts():
    """As the modules in pytorch_diffusion/model.py of pesser/pytorch_diffusion are named; attention by 1x1 convolutions."""
    params = params_of()
    tensors, ours = encoded(names.PYTORCH_DIFFUSION, params), params["params"]
    assert len(tensors) == len(jax.tree.leaves(params))
    expected = {
        "temb.dense.1.weight": ours["time2"]["kernel"].T,
        "down.0.block.0.temb_proj.weight": ours["down0_0"]["time"]["kernel"].T,
        "down.1.block.0.nin_shortcut.weight": ours["down1_0"]["shortcut"]["kernel"].transpose(3, 2, 0, 1),
        "down.1.attn.0.q.weight": ours["down1_0_attention"]["query"]["kernel"].T[:, :, None, None],
        "down.0.downsample.conv.weight": ours["downsample1"]["kernel"].transpose(3, 2, 0, 1),
        "mid.attn_1.proj_out.bias": ours["middle_attention"]["output"]["bias"],
        "up.2.block.1.norm1.weight": ours["up2_1"]["norm1"]["scale"],
        "up.2.upsample.conv.bias": ours["upsample2"]["bias"],
        "norm_out.bias": ours["head_norm"]["bias"],
        "conv_out.weight": ours["head"]["kernel"].transpose(3, 2, 0, 1),
    }
    chex.assert_trees_all_equal({name: tensors[name] for name in expected}, expected)


def test_our_own_names_are_the_paths_in_the_tree():
    params = params_of()
    paths = {".".join(key.key for key in path[1:]): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    chex.assert_trees_all_equal(encoded(names.PLAIN, params), paths)


def test_averages_are_beside_the_parameters_in_the_authors_checkpoints(tmp_path):
    raw, average = params_of(), params_of(seed=1)
    tensors = encoded(names.TENSORFLOW, raw)
    tensors |= {f"{name}/ExponentialMovingAverage": tensor for name, tensor in encoded(names.TENSORFLOW, average).items()}
    tensors |= {f"{name}/Adam": np.zeros(1) for name in list(tensors)} | {"global_step": np.array(790_000)}
    np.savez(tmp_path / "model.npz", **tensors)
    load = lambda average: weights.load(tmp_path / "model.npz", NETWORK, SHAPE, names.TENSORFLOW, average)  # noqa: E731
    chex.assert_trees_all_equal(load(False), raw)
    chex.assert_trees_all_equal(load(True), average)
    with pytest.raises(ValueError, match="average: expected False"):
        weights.load(tmp_path / "model.npz", NETWORK, SHAPE, names.PLAIN, average=True)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_pytorchs_wrappers_are_removed(prefix):
    tree, tensors = names.entries(names.DIFFUSERS, params_of(), 3), encoded(names.DIFFUSERS, params_of())
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    chex.assert_trees_all_equal(names.decode(tree, wrapped, "file"), params_of())
    wrapped["conv_in.weight"] = wrapped.pop(prefix + "conv_in.weight")  # not all names have it
    with pytest.raises(ValueError, match=r"file: .* is missing.*; and \d+ more"):
        names.decode(tree, wrapped, "file")


def test_another_network_is_refused_by_name(tmp_path):
    weights.save(tmp_path / "model.npz", NETWORK, params_of())
    with pytest.raises(ValueError, match=r"model\.npz: expected the tensors.*down1_0\.conv1\.kernel has shape"):
        weights.load(tmp_path / "model.npz", NETWORK.clone(multipliers=(1, 3, 2)), SHAPE)
    with pytest.raises(ValueError, match=r"down0_1\.conv1\.bias is missing"):
        weights.load(tmp_path / "model.npz", NETWORK.clone(num_blocks=2), SHAPE)


def test_a_parameter_that_a_format_has_no_name_for_is_refused(tmp_path):
    network = NETWORK.clone(num_classes=3)
    with pytest.raises(ValueError, match=r"label\.embedding"):
        weights.save(tmp_path / "model.npz", network, params_of(network), names.TENSORFLOW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.txt", "model.npz", "model.safetensors"])
def test_files_of_another_format_are_refused(name, tmp_path):
    (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=rf"{name}: expected"):
        weights.load(tmp_path / name, NETWORK, SHAPE)


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "model.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match=r"model\.npz: expected an \.npz file of arrays"):
        weights.load(tmp_path / "model.npz", NETWORK, SHAPE)
