"""The same training step and samplers in lucidrains' denoising-diffusion-pytorch, with its own network of that size."""

from collections.abc import Callable
from typing import Any, cast

import denoising_diffusion_pytorch
import torch

from ddpm_jax.config import Config, UNet
from sides.pytorch import DEVICE, autocast, images, matmul, memory, num_params, step, variant_of, waiter
from sides.turns import Run

__all__ = ["matmul", "memory", "sampling", "training"]


def make_diffusion(config: Config, shape: tuple[int, int, int], variant: str) -> Any:
    """Its GaussianDiffusion: linear betas, eps prediction, and a Unet with the config's channels and resolutions.

    Resolutions with attention in the config have full attention; the others have linear attention, which cannot be turned off.
    """
    network = cast(UNet, config.network)
    unet = denoising_diffusion_pytorch.Unet(
        dim=network.channels, dim_mults=tuple(network.multipliers), channels=shape[2], dropout=network.dropout,
        full_attn=tuple(shape[0] // 2**level in network.attention_resolutions for level in range(len(network.multipliers))),
    )  # fmt: skip
    diffusion = denoising_diffusion_pytorch.GaussianDiffusion(
        unet, image_size=shape[0], timesteps=config.diffusion.num_steps, objective="pred_noise", beta_schedule="linear",
        sampling_timesteps=config.diffusion.num_steps if config.sample.sampler != "ddim" else config.sample.steps,
    )  # fmt: skip
    _, diffusion.model = variant_of(unet, variant)
    return diffusion.to(DEVICE)


def training(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """The same training step."""
    diffusion = make_diffusion(config, shape, variant)
    x = images(config, shape, variant)
    return step(diffusion, config, lambda: diffusion(x)), num_params(diffusion)


def sampling(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """Its ancestral sampler, or its DDIM with the config's number of steps."""
    diffusion = make_diffusion(config, shape, variant).eval()

    def run() -> Callable[[], Any]:
        with autocast(config), torch.inference_mode():
            diffusion.sample(batch_size=config.sample.num)
        return waiter()

    return run, num_params(diffusion)
