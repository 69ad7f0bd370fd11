"""Do models agree with diffusers after import and after export? Needs pip install -e ".[bench]".

    python benchmarks/interop_parity.py
    python benchmarks/interop_parity.py --workdir runs/digits

UNet2DModels over a grid of options, with random parameters, at two image sizes. `import` is the largest difference between
diffusers' output and that of the imported model; `export` is the largest difference between diffusers' output before import and
after export. The older .bin format is read as well, and must give the same parameters. `cifar10` is the number of parameters
imported with the config of the published CIFAR-10 model.

With a workdir, its EMA is exported and sampled from the same noise by diffusers' pipelines and by this package. The result is
the largest difference in intensity levels of 0 to 255. DDIM either keeps the network's noise after x0 is clipped (diffusers'
default), or recomputes it (ours; `use_clipped_model_output` there).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from ddpm_jax import denoiser, interop, samplers

BASE: dict[str, Any] = {
    "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
DDPM = {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6, "attention_head_dim": None}
RESIDUAL = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (32, 32, 64), "downsample_type": "resnet", "upsample_type": "resnet",
}  # fmt: skip
THREE = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
SHIFT = {"resnet_time_scale_shift": "scale_shift"}
GRID: dict[str, dict[str, Any]] = {
    "defaults": {},
    "DDPM": DDPM,
    "DDPM, two blocks per resolution": {**DDPM, "layers_per_block": 2},
    "cosines first, shift 1": {"flip_sin_to_cos": True, "freq_shift": 1},
    "sines first, shift 0": {"flip_sin_to_cos": False, "freq_shift": 0},
    "16 groups, eps 1e-3": {"norm_num_groups": 16, "norm_eps": 1e-3},
    "heads of 32": {"attention_head_dim": 32},
    "attention at both ends": THREE,
    "attention only in the middle": PLAIN,
    "no attention": {**PLAIN, "add_attention": False},
    "no middle": {"mid_block_type": None},
    "scale-shift, bare middle attention": SHIFT,
    "scale-shift, normalised middle attention": {**SHIFT, "attn_norm_num_groups": 32},
    "10 classes": {"num_class_embeds": 10},
    "residual resampling": RESIDUAL,
    "residual resampling, scale-shift, classes": {**RESIDUAL, **SHIFT, "attn_norm_num_groups": 32, "num_class_embeds": 7},
    "residual downsampling with attention": {**THREE, "downsample_type": "resnet"},
    "residual upsampling with attention": {**THREE, "upsample_type": "resnet"},
    "learned variance": {"out_channels": 6},
    "one channel, not square": {"in_channels": 1, "out_channels": 1, "sample_size": (16, 24)},
}
CIFAR10 = {
    **DDPM, "sample_size": 32, "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def random_model(options: dict[str, Any], seed: int) -> diffusers.UNet2DModel:
    """A model in evaluation mode, with every parameter moved from its initial value."""
    torch.manual_seed(seed)
    model = diffusers.UNet2DModel(**{**BASE, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def parity(options: dict[str, Any], seed: int, folder: pathlib.Path) -> tuple[float, float]:
    """The largest differences after import and after export."""
    theirs = random_model(options, seed)
    theirs.save_pretrained(folder / "theirs")
    theirs.save_pretrained(folder / "pickled", safe_serialization=False)
    ours = interop.diffusers.load(folder / "theirs")
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.params, interop.diffusers.load(folder / "pickled").params))
    interop.diffusers.save(folder / "ours", *ours)
    again = diffusers.UNet2DModel.from_pretrained(folder / "ours", subfolder="unet").eval()
    rng, imported, exported = np.random.default_rng(seed), 0.0, 0.0
    for size in ((16, 16), (24, 32)):
        x = rng.standard_normal((2, theirs.config.in_channels, *size)).astype(np.float32)
        t = rng.integers(0, 1000, 2)
        classes = theirs.config.num_class_embeds
        labels = None if classes is None else rng.integers(0, classes, 2)
        inputs = torch.tensor(x), torch.tensor(t), None if labels is None else torch.tensor(labels)
        expected = theirs(*inputs).sample.numpy()
        output = jax.jit(ours.network.apply)(ours.params, x.transpose(0, 2, 3, 1), t, labels)
        imported = max(imported, np.abs(np.asarray(output).transpose(0, 3, 1, 2) - expected).max())
        exported = max(exported, np.abs(again(*inputs).sample.numpy() - expected).max())
    return float(imported), float(exported)


def num_parameters_of_cifar10(folder: pathlib.Path) -> int:
    """The number of imported parameters, for the config of the published model with random weights."""
    random_model(CIFAR10 | {"layers_per_block": 2}, 0).save_pretrained(folder)
    return sum(leaf.size for leaf in jax.tree.leaves(interop.diffusers.load(folder).params))


def to_uint8(image: Any) -> np.ndarray:
    """[-1, 1] to intensity levels, in a signed type, for differences."""
    return np.round((np.clip(np.asarray(image), -1, 1) + 1) * 127.5).astype(int)


def bind(model: interop.diffusers.Model, params: Any) -> denoiser.Predict:
    """The network with its parameters."""

    def predict(x_t: jax.Array, t: jax.Array) -> Any:
        return model.network.apply(params, x_t, t)

    return predict


def sample_ddim(model: interop.diffusers.Model, noise: jax.Array, steps: int, rederive_eps: bool) -> np.ndarray:
    """Our DDIM from given noise."""
    levels = samplers.grids.spaced(model.schedule, steps, model.spacing)

    @jax.jit
    def sample(params: Any, noise: jax.Array) -> jax.Array:
        denoise = denoiser.make_denoise(model.schedule, bind(model, params), model.prediction, clip=False)
        denoise = denoiser.clipped(denoise, rederive_eps=rederive_eps)
        return samplers.sample(jax.random.key(0), samplers.ddim(), denoise, levels, noise.shape, x_init=noise)

    return to_uint8(sample(model.params, noise))


def sample_ddpm(model: interop.diffusers.Model, noises: np.ndarray) -> np.ndarray:
    """Our ancestral sampler on the full grid, from given noise [1 + T - 1, B, H, W, C]: x_T, then one per step."""
    levels = samplers.grids.spaced(model.schedule)
    coefficients = samplers.ddpm(model.variance).plan(levels)

    @jax.jit
    def step(params: Any, x: jax.Array, noise: jax.Array, c: Any) -> jax.Array:
        denoise = denoiser.make_denoise(model.schedule, bind(model, params), model.prediction, model.clip)
        return c.x0_scale * denoise(x, c.level).x0 + c.x_scale * x + c.std * noise

    x = jnp.asarray(noises[0])
    for i in range(model.schedule.num_steps):
        noise = noises[i + 1] if i + 1 < len(noises) else np.zeros_like(noises[0])
        x = step(model.params, x, noise, jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), coefficients))
    return to_uint8(x)


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """[..., C, H, W] to [..., H, W, C]."""
    return np.moveaxis(tensor.numpy(), -3, -1)


def compare_samples(workdir: str, folder: pathlib.Path, num: int) -> dict[str, float]:
    """The largest differences between samples of an exported workdir."""
    command = [sys.executable, "-m", "ddpm_jax.interop", "export", str(folder), "--workdir", workdir]
    subprocess.run(command, check=True)
    model = interop.diffusers.load(folder)
    assert model.image_size is not None
    shape = (num, model.params["params"]["stem"]["kernel"].shape[2], *model.image_size)
    differences = {}

    def difference(images: np.ndarray, ours: np.ndarray) -> float:
        return float(np.abs(np.round(images * 255).astype(int) - ours).max())

    noise = jnp.asarray(channels_last(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
    for clipped in (False, True):
        pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(num, torch.Generator().manual_seed(1), num_inference_steps=50, use_clipped_model_output=clipped,
                          output_type="np").images  # fmt: skip
        differences[f"ddim, 50 steps, eps {'recomputed' if clipped else 'kept'}"] = difference(
            images, sample_ddim(model, noise, 50, rederive_eps=clipped)
        )
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num, torch.Generator().manual_seed(2), output_type="np").images
    generator = torch.Generator().manual_seed(2)
    noises = np.stack([channels_last(torch.randn(shape, generator=generator)) for _ in range(model.schedule.num_steps)])
    differences["ddpm, all steps"] = difference(images, sample_ddpm(model, noises))
    return differences


def main() -> None:
    """Prints one line per model, and fails if a difference exceeds 1e-4, or one intensity level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", help="a trained model to export and sample")
    parser.add_argument("--num", type=int, default=16, help="number of samples")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        if options.workdir is not None:
            differences = compare_samples(options.workdir, root / "exported", options.num)
            print(json.dumps(differences))
            sys.exit(any(difference > 1 for difference in differences.values()))
        for seed, (name, chosen) in enumerate(GRID.items()):
            imported, exported = parity(chosen, seed, root / str(seed))
            failed |= imported > 1e-4 or exported > 1e-4
            print(f"{name:45} import {imported:.1e}  export {exported:.1e}", flush=True)
        print(f"cifar10: {num_parameters_of_cifar10(root / 'cifar10'):,} parameters")
    sys.exit(failed)


if __name__ == "__main__":
    main()
