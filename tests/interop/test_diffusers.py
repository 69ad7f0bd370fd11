"""Folders of diffusers. diffusers itself wrote the fixtures, the small ones by fixtures/make_unet2d.py."""

import itertools
import json
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ddpm_jax import schedules
from ddpm_jax.interop import diffusers, files, names, unet2d, weights
from ddpm_jax.networks import UNet

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SMALL = ("plain", "conditional")
WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL_NETWORK = UNet(channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,), num_groups=4)


def params_of(network, shape=(8, 8, 3)):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), weights.shapes_of(network, shape))


def assert_same(model, other):
    chex.assert_trees_all_equal(model.params, other.params)
    chex.assert_trees_all_close(model.schedule, other.schedule, rtol=1e-6)
    assert model.network == other.network
    assert model[3:] == other[3:]


def check_outputs(folder, io, atol):
    model = diffusers.load(folder)
    labels = io.get("labels", None)
    suffixes = [name.removeprefix("sample") for name in io if name.startswith("sample")]
    assert suffixes
    for suffix in suffixes:
        x, t = io[f"sample{suffix}"].transpose(0, 2, 3, 1), io[f"timestep{suffix}"].astype(np.int32)
        output = jax.jit(model.network.apply)(model.params, x, t, labels)
        np.testing.assert_allclose(output.transpose(0, 3, 1, 2), io[f"output{suffix}"], atol=atol)


def check_round_trip(folder, out):
    model = diffusers.load(folder)
    diffusers.save(out, *model)
    assert_same(diffusers.load(out), model)
    assert json.loads((out / "unet" / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    ours, theirs = files.read(out / "unet" / WEIGHTS), files.read(folder / WEIGHTS)
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_diffusers(name):
    check_outputs(FIXTURES / name, dict(np.load(FIXTURES / name / "io.npz")), 1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_loaded_model_is_saved_unchanged(name, tmp_path):
    check_round_trip(FIXTURES / name, tmp_path / "out")


@pytest.mark.parametrize("name", ["unet2d_ddpm_style", "unet2d_training_script_style"])
def test_larger_models_of_diffusers(name, test_data, tmp_path):
    folder = test_data / "fixtures" / name
    check_outputs(folder, dict(np.load(folder / "io.npz")), 1e-5)
    check_round_trip(folder, tmp_path / "out")


def test_the_published_cifar10_model_has_the_papers_number_of_parameters():
    """Its config.json as published: it lacks the fields of later versions."""
    config = {
        "act_fn": "silu", "attention_head_dim": None, "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False, "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
        "time_embedding_type": "positional", "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    defaults = {name: field.default for name, field in unet2d.FIELDS.items()}
    network, image_size, in_channels = unet2d.to_network({**defaults, **config})
    papers = UNet(dropout=0.0, attention_resolutions=(), attention_levels=(1,))
    assert network == papers
    shapes = weights.shapes_of(network, (*image_size, in_channels))
    assert jax.tree.structure(shapes) == jax.tree.structure(weights.shapes_of(UNet(), (32, 32, 3)))
    entries = jax.tree.leaves(names.entries(names.DIFFUSERS, shapes, 4), is_leaf=lambda leaf: isinstance(leaf, names.Entry))
    assert sum(int(np.prod(entry.shape)) for entry in entries) == 35_746_307
    assert len({entry.name for entry in entries}) == len(entries) == len(jax.tree.leaves(shapes))


# ----------------------------------------------------------------------------------------------------------- bad input


def write_weights(folder, tensors):
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(tensors))


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(FIXTURES / "plain", tmp_path / "model")
    return tmp_path / "model"


CORRUPTIONS = {
    "missing": lambda name, tensor: {},
    "renamed": lambda name, tensor: {name + "x": tensor},
    "truncated": lambda name, tensor: {name: tensor[:-1]},
    "turned": lambda name, tensor: {name: tensor[None]},
    "integers": lambda name, tensor: {name: tensor.astype(np.int32)},
    "not finite": lambda name, tensor: {name: np.where(np.arange(tensor.size).reshape(tensor.shape) == 1, np.nan, tensor)},
}


@pytest.mark.parametrize("name", SMALL)
def test_any_one_corrupt_tensor_is_refused_by_name(name):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    network, image_size, in_channels = unet2d.to_network(config)
    tree = names.entries(names.DIFFUSERS, weights.shapes_of(network, (*image_size, in_channels)), 2)
    tensors = files.read(FIXTURES / name / WEIGHTS)
    for damaged, corruption in itertools.product(tensors, CORRUPTIONS):
        rest = {other: tensor for other, tensor in tensors.items() if other != damaged}
        changed = CORRUPTIONS[corruption](damaged, tensors[damaged])
        with pytest.raises(ValueError, match=rf"{damaged}( is|x is| has)"):
            names.decode(tree, rest | changed, "file")


@pytest.mark.parametrize("corruption", ["missing", "truncated"])
def test_a_corrupt_tensor_in_a_file_is_refused_too(copy, corruption):
    tensors = files.read(copy / WEIGHTS)
    changed = CORRUPTIONS[corruption]("conv_in.weight", tensors.pop("conv_in.weight"))
    write_weights(copy, tensors | changed)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}.*conv_in.weight"):
        diffusers.load(copy)


@pytest.mark.parametrize("length", [0, 7, 100, 10_000, 60_000])
def test_a_truncated_file_is_refused(copy, length):
    (copy / WEIGHTS).write_bytes((FIXTURES / "plain" / WEIGHTS).read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{WEIGHTS}: expected a safetensors file"):
        diffusers.load(copy)


@pytest.mark.parametrize("name", SMALL)
def test_any_one_corrupt_field_of_a_config_is_refused_by_name(name, tmp_path):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    for field in config:
        rest = {other: value for other, value in config.items() if other != field}
        for changed in ({field + "x": config[field]}, {field: "corrupt"}, {field: -1}, {field: [None]}, {field: {}}):
            (tmp_path / "config.json").write_text(json.dumps(rest | changed))
            with pytest.raises(ValueError, match=f"config.json: {field}"):
                diffusers.load(tmp_path)


def test_any_one_corrupt_field_of_a_scheduler_is_refused_by_name(tmp_path):
    diffusers.save(tmp_path / "whole", *diffusers.load(FIXTURES / "plain"))
    path = tmp_path / "whole" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    assert len(config) == 17
    for field in config:
        rest = {other: value for other, value in config.items() if other != field}
        for changed in ({field + "x": config[field]}, {field: "corrupt"}, {field: -1}, {field: [None]}, {field: {}}):
            path.write_text(json.dumps(rest | changed))
            with pytest.raises(ValueError, match=rf"scheduler_config.json: {field}"):
                diffusers.load(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"act_fn": "gelu"}, "act_fn: expected .*silu.*gelu"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name: expected UNet2DModel"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types: .*SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "up_block_types: expected attention at the levels"),
        ({"block_out_channels": [4, 6]}, "block_out_channels: expected multiples"),
        ({"block_out_channels": [4, 8, 8]}, "down_block_types: expected 3"),
        ({"time_embedding_dim": 17}, "time_embedding_dim: expected null or 16"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups"),
        ({"norm_num_groups": 3}, "norm_num_groups: expected a divisor"),
        ({"attention_head_dim": 5}, "attention_head_dim: expected a divisor"),
        ({"sample_size": 9}, "sample_size: expected multiples of 2"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"from_the_future": 1}, "from_the_future: expected no such field"),
        ({"freq_shift": 2}, "freq_shift: expected less than 2"),
        ({"layers_per_block": 10**9}, "layers_per_block: expected an integer from 1 to 100"),
        ({"block_out_channels": [10**9, 10**9]}, "block_out_channels: expected integers from 1 to 1000000"),
    ],
)
def test_a_config_that_cannot_be_represented_is_refused(copy, changed, said):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(ValueError, match=f"config.json: {said}"):
        diffusers.load(copy)


def test_other_pipelines_and_empty_folders_are_refused(copy, tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        diffusers.load(tmp_path)
    with pytest.raises(
        ValueError, match=r"^folder: expected a folder of diffusers, received google/ddpm-cifar10-32; .*: hf download"
    ):
        diffusers.load("google/ddpm-cifar10-32")
    with pytest.raises(ValueError, match=r"^folder: expected a folder of diffusers, received nothing$"):
        diffusers.load("")
    (copy / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="_class_name: expected DDPMPipeline or DDIMPipeline"):
        diffusers.load(copy)
    (copy / "model_index.json").unlink()
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: expected JSON"):
        diffusers.load(copy)
    shutil.copy(FIXTURES / "plain" / "config.json", copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"expected {WEIGHTS} or"):
        diffusers.load(copy)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_other_precisions_become_float32(copy, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in files.read(copy / WEIGHTS).items()}
    write_weights(copy, tensors)
    kernel = diffusers.load(copy).params["params"]["stem"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, tensors["conv_in.weight"].astype(np.float32).transpose(2, 3, 1, 0))


def test_weights_from_before_attention_was_renamed(copy):
    """As in the first published models: query, key, value, proj_attn."""
    model = diffusers.load(copy)
    tensors = files.read(copy / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    write_weights(copy, tensors)
    assert_same(diffusers.load(copy), model)


# ----------------------------------------------------------------------------------------------------------- schedulers


def write_scheduler(folder, **changed):
    """The oldest published form, with changes."""
    config = {
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
        "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
        "variance_type": "fixed_large",
    }  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(config | changed))


def test_the_papers_process(copy):
    write_scheduler(copy)
    model = diffusers.load(copy)
    chex.assert_trees_all_equal(model.schedule, schedules.linear(1000))
    assert (model.prediction, model.variance, model.clip, model.spacing) == ("eps", "fixed_large", True, "leading")
    assert (model.image_size, model.sampler) == ((8, 8), "ddpm")


def test_a_learned_variance_needs_its_channels(copy):
    write_scheduler(copy, variance_type="learned_range")
    with pytest.raises(ValueError, match="out_channels: expected 6"):
        diffusers.load(copy)


# -------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize(
    "network",
    [
        SMALL_NETWORK,
        SMALL_NETWORK.clone(attention_resolutions=(), num_heads=4),
        SMALL_NETWORK.clone(middle="blocks", head_dim=8, symmetric_padding=True),
        SMALL_NETWORK.clone(middle="none", residual_upsampling=(0, 1), attention_resolutions=()),
        SMALL_NETWORK.clone(time_scale_shift=True, residual_downsampling=(1,)),
        SMALL_NETWORK.clone(time_scale_shift=True, middle="attention_without_norm", num_classes=3),
        SMALL_NETWORK.clone(out_channels=6),
    ],
)
def test_our_networks_are_exported_and_imported(network, tmp_path):
    """As networks with attention by level, which compute the same function: their parameters have the same paths."""
    params = params_of(network)
    variance, sampler = ("fixed_small", "ddim") if network.out_channels is None else ("learned", "ddpm")
    process = ("x0", variance, False, (8, 8), "trailing", sampler, (0.9, 2.0))
    diffusers.save(tmp_path / "out", network, params, schedules.cosine(10), *process)
    model = diffusers.load(tmp_path / "out")
    chex.assert_trees_all_equal(model.params, params)
    assert model[3:] == process
    chex.assert_trees_all_close(model.schedule, schedules.cosine(10), rtol=1e-6)
    same = {"attention_resolutions": (), "attention_levels": model.network.attention_levels, "head_dim": None, "num_heads": 1}
    assert model.network.clone(**same) == network.clone(**same)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"network": SMALL_NETWORK.clone(num_heads=2, attention_resolutions=(4, 8))},
            "num_heads: expected 1, or the same head size",
        ),
        ({"network": SMALL_NETWORK.clone(middle="attention_without_norm")}, "middle: expected"),
        ({"network": SMALL_NETWORK.clone(attention_resolutions=(4, 8), residual_downsampling=(0,))}, "residual_downsampling"),
        ({"prediction": "score"}, "prediction: expected"),
        ({"variance": "fixed_tiny"}, "variance: expected"),
        ({"spacing": "quadratic"}, "spacing: expected"),
        ({"threshold": (0.9, 0.0)}, "threshold: expected a quantile from 0 to 1 and a limit above 0"),
        ({"variance": "learned", "sampler": "ddim"}, "variance: expected fixed_small or fixed_large for diffusers' DDIM"),
        ({"schedule": schedules.jsd(10)}, "prediction: expected x0 or v for a schedule without signal at its last step"),
        ({"schedule": schedules.continuous.cosine()}, "schedule: expected one with a number of steps for diffusers"),
        ({"image_size": None}, "image_size: expected"),
        ({"params": params_of(SMALL_NETWORK.clone(num_blocks=2))}, "params: expected those of the network.*down0_1"),
        ({"params": jax.tree.map(lambda leaf: leaf * jnp.nan, params_of(SMALL_NETWORK))}, "is not finite"),
    ],
)
def test_a_model_that_diffusers_cannot_represent_is_refused_and_nothing_is_written(tmp_path, changed, said):
    network = changed.get("network", SMALL_NETWORK)
    arguments = {"network": network, "params": params_of(network), "schedule": schedules.linear(10), "image_size": (8, 8)}
    with pytest.raises(ValueError, match=said):
        diffusers.save(tmp_path / "out", **(arguments | changed))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_completed_is_removed(tmp_path, monkeypatch):
    def full(path, arrays):
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="full"):
        diffusers.save(tmp_path / "out", *diffusers.load(FIXTURES / "plain"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_stays_as_it_is(copy):
    before = sorted(path.read_bytes() for path in copy.iterdir())
    with pytest.raises(ValueError, match="folder: expected a new or empty folder"):
        diffusers.save(copy, *diffusers.load(FIXTURES / "plain"))
    assert sorted(path.read_bytes() for path in copy.iterdir()) == before
