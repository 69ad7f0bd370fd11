"""The code that diffusers' and lucidrains' models share: the PyTorch variants and the training step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ddpm_jax.config import Config
from sides.turns import Run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True  # like XLA, tries which convolution algorithm is fastest
if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")  # TF32, as in XLA


def variant_of(model: Any, variant: str) -> tuple[Any, Any]:
    """The model on its device, channels first or last; and the callable: the model itself, or compiled."""
    model = model.to(DEVICE)
    if "last" in variant:
        model = model.to(memory_format=torch.channels_last)
    return model, torch.compile(model) if "compiled" in variant else model


def images(config: Config, shape: tuple[int, int, int], variant: str) -> Any:
    """A batch in [0, 1], with the memory layout of the variant."""
    x = torch.rand(config.train.batch_size, shape[2], *shape[:2], device=DEVICE)
    return x.to(memory_format=torch.channels_last) if "last" in variant else x


def step(model: Any, config: Config, loss_of: Callable[[], Any]) -> Run:
    """The same training step as ours: loss, gradient, clipping, fused Adam, one EMA."""
    params = list(model.parameters())
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, lr=config.optimizer.learning_rate, fused=True)
    model.train()

    def run() -> Callable[[], Any]:
        with autocast(config):
            loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, config.optimizer.clip_norm, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-4)
        return waiter()

    return run


def waiter() -> Callable[[], Any]:
    """A function that waits for all work started so far."""
    if DEVICE == "cpu":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def memory() -> int:
    """Peak GPU memory in bytes; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


def autocast(config: Config) -> Any:
    """PyTorch's autocast, if the config asks for bfloat16."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=config.network.dtype == "bfloat16")


def num_params(model: Any) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def matmul(a: np.ndarray, dtype: str) -> Run:
    """The product of a matrix with itself."""
    on_device = torch.tensor(a, device=DEVICE, dtype=getattr(torch, dtype))

    def run() -> Callable[[], Any]:
        on_device @ on_device
        return waiter()

    run()()
    return run
