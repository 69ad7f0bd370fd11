"""The same training step and samplers by diffusers on PyTorch."""

from typing import Any

import diffusers
import numpy as np
import torch

from ddpm_jax.config import Config
from sides.turns import Run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Any, Any]:
    """The UNet2DModel of the same architecture, and what is called: it, or its compiled form."""
    network = config.network
    attends = [shape[0] // 2**level in network.attention_resolutions for level in range(len(network.multipliers))]
    model = diffusers.UNet2DModel(
        sample_size=shape[0], in_channels=shape[2], out_channels=shape[2], dropout=network.dropout,
        block_out_channels=tuple(network.channels * multiplier for multiplier in network.multipliers),
        layers_per_block=network.num_blocks, downsample_padding=0, freq_shift=1, flip_sin_to_cos=False, norm_eps=1e-6,
        attention_head_dim=None, down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
    ).to(DEVICE)  # fmt: skip
    if "last" in variant:
        model = model.to(memory_format=torch.channels_last)
    return model, torch.compile(model) if "compiled" in variant else model


def training(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """The same step: noise, loss, gradient, clipping, fused Adam, average."""
    batch_size = config.train.batch_size
    model, network = make_model(config, shape, variant)
    params = list(model.parameters())
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, lr=config.optimizer.learning_rate, fused=True)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=config.diffusion.num_steps)
    x = torch.rand(batch_size, shape[2], *shape[:2], device=DEVICE) * 2 - 1
    if "last" in variant:
        x = x.to(memory_format=torch.channels_last)
    model.train()

    def run() -> float:
        noise, t = torch.randn_like(x), torch.randint(0, config.diffusion.num_steps, (batch_size,), device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=config.network.dtype == "bfloat16"):
            output = network(scheduler.add_noise(x, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, config.optimizer.clip_norm, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-4)
        return loss.item()

    return run, sum(p.numel() for p in params)


def sampling(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """The pipeline of diffusers, whose DDIM or DDPM scheduler has the config's number of steps."""
    model, network = make_model(config, shape, variant)
    ddim = config.sample.sampler == "ddim"
    kind, scheduler = (
        (diffusers.DDIMPipeline, diffusers.DDIMScheduler) if ddim else (diffusers.DDPMPipeline, diffusers.DDPMScheduler)
    )
    pipeline = kind(unet=model.eval(), scheduler=scheduler(num_train_timesteps=config.diffusion.num_steps))
    pipeline.unet = network
    pipeline.set_progress_bar_config(disable=True)
    steps = config.diffusion.num_steps if config.sample.steps is None else config.sample.steps

    def run() -> Any:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=config.network.dtype == "bfloat16"):
            return pipeline(config.sample.num, num_inference_steps=steps, output_type="np").images

    return run, sum(p.numel() for p in model.parameters())


def matmul(a: np.ndarray) -> Run:
    """The product of a matrix by itself."""
    on_device = torch.tensor(a, device=DEVICE)
    (on_device @ on_device)[0, 0].item()
    return lambda: (on_device @ on_device)[0, 0].item()
