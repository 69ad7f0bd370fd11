"""How fast is it beside diffusers on PyTorch, on this machine? Needs pip install -e ".[bench]".

    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 8
    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 32
    python benchmarks/against_pytorch.py training --model digits --batch-size 64
    python benchmarks/against_pytorch.py ddim --model cifar10 --batch-size 4 --steps 20
    python benchmarks/against_pytorch.py ancestral --model digits --batch-size 64

The same network, step and batch on both sides: the parameters are counted and must be as many. Both run in turn in one process,
A B A B; the figures are medians, and the ratio the median of the pairs' ratios, above 1 where ours is faster. PyTorch counts
by its best variant, chosen by one round beforehand: eager or compiled, channels first or last. On a GPU both sides take it;
`--dtype bfloat16` is then autocast there.

`share of peak` in training is 3 times the forward pass's multiplications and additions, in the plain form of the network, by
the time, over the rate of ours or PyTorch's large matrix product, whichever is higher.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from ddpm_jax import factory, sharding
from ddpm_jax.config import Config
from ddpm_jax.training.state import init_state, num_params
from ddpm_jax.training.step import make_train_step

SHAPES = {"cifar10": (32, 32, 3), "digits": (8, 8, 1)}
FORWARD_FLOP = {"cifar10": 11.7e9}
VARIANTS = ("eager", "eager, channels last", "compiled", "compiled, channels last")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Run = Callable[[], Any]


def read_config(options: argparse.Namespace) -> Config:
    """The config of configs/, without classes, and with the dtype asked for."""
    config = importlib.import_module(f"configs.{options.model}").get_config()
    return dataclasses.replace(config, network=dataclasses.replace(config.network, dtype=options.dtype, num_classes=None))


def our_training(config: Config, shape: tuple[int, int, int], batch_size: int) -> tuple[Run, int]:
    """One step of training, its metrics waited for; and the number of parameters."""
    schedule, network = factory.make_schedule(config.diffusion), factory.make_network(config, shape)
    history, draw_times = factory.make_times(config.loss, schedule.num_steps, batch_size)
    learning_rate = factory.make_learning_rate(config.optimizer, config.train.num_steps)
    optimizer = factory.make_optimizer(config.optimizer, learning_rate)
    averages = factory.make_averages(config.ema, batch_size)
    key, mesh = jax.random.key(0), sharding.make_mesh()
    step = make_train_step(
        key, network, factory.make_loss(config.loss, config.diffusion, schedule), draw_times, optimizer, learning_rate,
        averages, schedule.num_steps, random_flip=config.data.random_flip,
    )  # fmt: skip
    init = functools.partial(init_state, key, network, optimizer, shape, averages, history)
    state = sharding.create(init, sharding.replicated(mesh))
    image = np.random.default_rng(0).integers(0, 256, (batch_size, *shape), np.uint8)
    batch = sharding.put_batch(mesh, {"image": image})
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile(sharding.compiler_options())
    memory = compiled.memory_analysis()
    assert memory is not None
    print(f"compiled in {time.perf_counter() - began:.1f} s; XLA plans {memory.temp_size_in_bytes / 2**20:.0f} MiB "
          f"beside a state of {memory.argument_size_in_bytes / 2**20:.0f}")  # fmt: skip
    held = [state]

    def run() -> None:
        state, metrics = compiled(held.pop(), batch)
        held.append(state)
        jax.block_until_ready(metrics)

    return run, num_params(state.params)


def our_sampling(config: Config, shape: tuple[int, int, int], batch_size: int) -> tuple[Run, int]:
    """A batch of images with the config's sampler."""
    schedule, network = factory.make_schedule(config.diffusion), factory.make_network(config, shape)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32))
    draw = factory.make_draw(config, network, schedule, shape)
    ids = sharding.put_ids(sharding.make_mesh(), range(batch_size))
    return lambda: jax.block_until_ready(draw(jax.random.key(0), params, ids)), num_params(params)


def their_model(config: Config, shape: tuple[int, int, int], variant: str) -> tuple[Any, Any]:
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


def their_training(config: Config, shape: tuple[int, int, int], batch_size: int, variant: str) -> tuple[Run, int]:
    """The same step: noise, loss, gradient, clipping, fused Adam, average."""
    model, network = their_model(config, shape, variant)
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


def their_sampling(config: Config, shape: tuple[int, int, int], batch_size: int, variant: str) -> tuple[Run, int]:
    """The pipeline of diffusers, whose DDIM or DDPM scheduler has the config's number of steps."""
    model, network = their_model(config, shape, variant)
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
            return pipeline(batch_size, num_inference_steps=steps, output_type="np").images

    return run, sum(p.numel() for p in model.parameters())


def seconds(run: Run) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def matmul_rate(size: int = 2048, repeats: int = 9) -> float:
    """FLOP/s of a float32 product of square matrices, the faster of both libraries."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
    b, product = torch.tensor(np.asarray(a), device=DEVICE), jax.jit(jnp.matmul)
    ours = min(seconds(lambda: jax.block_until_ready(product(a, a))) for _ in range(repeats))
    theirs = min(seconds(lambda: (b @ b)[0, 0].item()) for _ in range(repeats))
    return 2 * size**3 / min(ours, theirs)


def best_variant(make: Callable[[str], tuple[Run, int]], variants: list[str]) -> tuple[str, Run, int]:
    """The fastest of PyTorch's variants, the best of two calls after two more."""
    times, runs = {}, {}
    for variant in variants:
        began = time.perf_counter()
        runs[variant] = make(variant)
        run = runs[variant][0]
        run()
        first = time.perf_counter() - began
        run()
        times[variant] = min(seconds(run) for _ in range(2))
        print(f"PyTorch, {variant}: {1e3 * times[variant]:.0f} ms; the first call took {first:.1f} s", flush=True)
    best = min(times, key=lambda variant: times[variant])
    return best, *runs[best]


def main() -> None:
    """Measures, prints a table, and keeps the figures where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "ddim", "ancestral"))
    parser.add_argument("--model", choices=tuple(SHAPES), default="cifar10")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of ddim")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of PyTorch, to choose among")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    config, shape = read_config(options), SHAPES[options.model]
    if options.what != "training":
        steps = options.steps if options.what == "ddim" else None
        sample = dataclasses.replace(config.sample, sampler="ddim" if options.what == "ddim" else "ddpm", steps=steps)
        config = dataclasses.replace(config, sample=sample)
    ours_of, theirs_of = (our_training, their_training) if options.what == "training" else (our_sampling, their_sampling)

    ours, num_ours = ours_of(config, shape, options.batch_size)
    ours()
    variant, theirs, num_theirs = best_variant(lambda v: theirs_of(config, shape, options.batch_size, v), options.variants)
    assert num_ours == num_theirs, f"expected as many parameters, received {num_ours} and {num_theirs}"
    rate = matmul_rate()
    pairs = np.array([[seconds(ours), seconds(theirs)] for _ in range(options.pairs)])

    medians = np.median(pairs, axis=0)
    ratio = float(np.median(pairs[:, 1] / pairs[:, 0]))
    figures = {
        "what": vars(options), "parameters": num_ours, "seconds": pairs.tolist(), "variant": variant, "ratio": ratio,
        "images_per_second": (options.batch_size / medians).tolist(), "matmul_flops": rate,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
                   f"{jax.devices()[0].device_kind}",
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "torch": torch.__version__,
                     "diffusers": diffusers.__version__},
    }  # fmt: skip
    print(f"\n{figures['machine']}; {figures['versions']}; {num_ours:,} parameters; products at {rate / 1e9:.0f} GFLOP/s")
    for name, median in zip(("ours", f"PyTorch, {variant}"), medians, strict=True):
        share = ""
        if options.what == "training" and options.model in FORWARD_FLOP:
            share = f"   {3 * FORWARD_FLOP[options.model] * options.batch_size / median / rate:.2f} of peak"
        print(f"{name:32}{1e3 * median:10.1f} ms{options.batch_size / median:12.2f} images/s{share}")
    print(f"ours is {ratio:.2f} times as fast, the median of {options.pairs} pairs: {np.round(pairs[:, 1] / pairs[:, 0], 2)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
