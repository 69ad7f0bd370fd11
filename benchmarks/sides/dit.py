"""DiT (Peebles & Xie 2022) as its authors have it in PyTorch, with our training step and sampler."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention, silu

from ddpm_jax.config import Config, DiT
from ddpm_jax.networks.transformer import positions_2d
from sides.pytorch import DEVICE, autocast, images, matmul, memory, num_params, step, variant_of, waiter
from sides.turns import Run

__all__ = ["matmul", "memory", "sampling", "training"]


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and MLP on modulated norms, with q, k and v as one product."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads, self.norm = num_heads, nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj, self.modulation = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 6 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).chunk(6, dim=1)
        h = self.qkv(modulate(self.norm(x), shift_a, scale_a))
        q, k, v = h.reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        h = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + gate_a[:, None] * self.proj(h)
        return x + gate_m[:, None] * self.mlp(modulate(self.norm(x), shift_m, scale_m))


class Network(nn.Module):
    """The whole network, on images with channels first."""

    def __init__(self, options: DiT, shape: tuple[int, int, int]):
        super().__init__()
        width, self.patch = options.width, options.patch
        rows, columns = shape[0] // self.patch, shape[1] // self.patch
        self.rows, self.columns, self.num_classes = rows, columns, cast(int, options.num_classes)
        self.patches = nn.Conv2d(shape[2], width, self.patch, self.patch)
        self.register_buffer("positions", torch.tensor(positions_2d(rows, columns, width))[None])
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(self.num_classes + 1, width)
        self.blocks = nn.ModuleList([Block(width, options.num_heads) for _ in range(options.depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.head_modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, self.patch**2 * shape[2])

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        angles = 1000 * t[:, None] * torch.exp(-9.210340 * torch.arange(128, device=t.device) / 128)
        c = silu(self.time(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label(labels))
        h = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            h = block(h, c)
        h = self.head(modulate(self.norm(h), *self.head_modulation(c).chunk(2, dim=1)))
        h = h.reshape(len(x), self.rows, self.columns, self.patch, self.patch, -1)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def training(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """The same training step: flow matching at logit-normal times."""
    model, network = variant_of(Network(cast(DiT, config.network), shape), variant)
    x = images(config, shape, variant) * 2 - 1
    labels = torch.zeros(len(x), dtype=torch.long, device=DEVICE)

    def loss_of() -> Any:
        noise, t = torch.randn_like(x), torch.sigmoid(torch.randn(len(x), device=DEVICE))
        level = t[:, None, None, None]
        return mse_loss(network((1 - level) * x + level * noise, t, labels).float(), noise - x)

    return step(model, config, loss_of), num_params(model)


def sampling(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Run, int]:
    """Euler's method with classifier-free guidance, both halves in one batch."""
    model, network = variant_of(Network(cast(DiT, config.network), shape).eval(), variant)
    num, steps = config.sample.num, cast(int, config.sample.steps)
    labels = torch.tensor([0] * num + [model.num_classes] * num, device=DEVICE)

    def run() -> Callable[[], Any]:
        x = torch.randn(num, shape[2], *shape[:2], device=DEVICE)
        with autocast(config), torch.inference_mode():
            for i in range(steps):
                t = torch.full((2 * num,), 1 - i / steps, device=DEVICE)
                conditional, unconditional = network(torch.cat([x, x]), t, labels).chunk(2)
                x = x - (unconditional + config.sample.guidance * (conditional - unconditional)) / steps
        return waiter()

    return run, num_params(model)
