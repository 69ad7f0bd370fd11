"""The same network, training step and samplers in diffusers."""

from collections.abc import Callable
from typing import Any, cast

import diffusers
import torch

from ddpm_jax.config import Config, UNet
from sides.pytorch import DEVICE, autocast, images, matmul, memory, num_params, step, variant_of, waiter
from sides.turns import Run

__all__ = ["matmul", "memory", "sampling", "training"]


def make_model(config: Config, shape: tuple[int, int, int]) -> Any:
    """The UNet2DModel with the same architecture."""
    network = cast(UNet, config.network)
    attends = [shape[0] // 2**level in network.attention_resolutions for level in range(len(network.multipliers))]
    return diffusers.UNet2DModel(
        sample_size=shape[0], in_channels=shape[2], out_channels=shape[2], dropout=network.dropout,
        block_out_channels=tuple(network.channels * multiplier for multiplier in network.multipliers),
        layers_per_block=network.num_blocks, downsample_padding=0, freq_shift=1, flip_sin_to_cos=False, norm_eps=1e-6,
        attention_head_dim=None, down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
    )  # fmt: skip


def training(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """The same training step."""
    model, network = variant_of(make_model(config, shape), variant)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=config.diffusion.num_steps)
    x = images(config, shape, variant) * 2 - 1

    def loss_of() -> Any:
        noise, t = torch.randn_like(x), torch.randint(0, config.diffusion.num_steps, (len(x),), device=DEVICE)
        output = network(scheduler.add_noise(x, noise, t), t).sample
        return torch.nn.functional.mse_loss(output.float(), noise)

    return step(model, config, loss_of), num_params(model)


def sampling(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """The diffusers pipeline with its DDIM or DDPM scheduler and the config's number of steps."""
    model, network = variant_of(make_model(config, shape), variant)
    ddim = config.sample.sampler == "ddim"
    kind, scheduler = (
        (diffusers.DDIMPipeline, diffusers.DDIMScheduler) if ddim else (diffusers.DDPMPipeline, diffusers.DDPMScheduler)
    )
    pipeline = kind(unet=model.eval(), scheduler=scheduler(num_train_timesteps=config.diffusion.num_steps))
    pipeline.unet = network
    pipeline.set_progress_bar_config(disable=True)
    steps = config.diffusion.num_steps if config.sample.steps is None else config.sample.steps

    def run() -> Callable[[], Any]:
        with autocast(config):
            pipeline(config.sample.num, num_inference_steps=steps, output_type="np")
        return waiter()

    return run, num_params(model)
