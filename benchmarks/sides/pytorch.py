"""What diffusers' and lucidrains' models share: the variants of PyTorch, and the step of training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ddpm_jax.config import Config
from sides.turns import Run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True  # as XLA, that it tries which way to convolve is the fastest
if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")  # TF32, which XLA takes as well


def variant_of(model: Any, variant: str) -> tuple[Any, Any]:
    """The model where it computes, channels first or last, and what is called: it, or its compiled form."""
    model = model.to(DEVICE)
    if "last" in variant:
        model = model.to(memory_format=torch.channels_last)
    return model, torch.compile(model) if "compiled" in variant else model


def images(config: Config, shape: tuple[int, int, int], variant: str) -> Any:
    """A batch in [0, 1], as `variant` has it lie in memory."""
    x = torch.rand(config.train.batch_size, shape[2], *shape[:2], device=DEVICE)
    return x.to(memory_format=torch.channels_last) if "last" in variant else x


def step(model: Any, config: Config, loss_of: Callable[[], Any]) -> Run:
    """A step of training as ours: the loss, its gradient, clipping, fused Adam, one average."""
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
    """What waits for all that was begun until now."""
    if DEVICE == "cpu":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def memory() -> int:
    """The most of a GPU's memory that was taken, in bytes; 0 without one."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


def autocast(config: Config) -> Any:
    """Where bfloat16 is asked for, PyTorch's way to compute in it."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=config.network.dtype == "bfloat16")


def num_params(model: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(p.numel() for p in model.parameters())


def matmul(a: np.ndarray, dtype: str) -> Run:
    """The product of a matrix by itself."""
    on_device = torch.tensor(a, device=DEVICE, dtype=getattr(torch, dtype))

    def run() -> Callable[[], Any]:
        on_device @ on_device
        return waiter()

    run()()
    return run
