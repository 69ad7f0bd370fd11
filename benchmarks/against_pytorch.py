"""How fast is it beside PyTorch, on this machine? Needs pip install -e ".[bench]".

    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 8
    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 32
    python benchmarks/against_pytorch.py training --model digits --batch-size 64
    python benchmarks/against_pytorch.py ddim --model cifar10 --batch-size 4 --steps 20
    python benchmarks/against_pytorch.py ancestral --model digits --batch-size 64
    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 8 --peer lucidrains

The peer is diffusers, whose network is the same: the parameters are counted and must be as many. Or it is lucidrains'
denoising-diffusion-pytorch, whose own network has as many channels and levels. Step and batch are the same. Each side has a
process of its own, and they take turns, A B A B; a turn is an uncounted call and then calls for at least a second, of which it
is the mean, each waited for when the next has begun. The figures are medians of turns, and the ratio the median of the pairs'
ratios, above 1 where ours is faster. The peer counts by its best variant, chosen by one turn beforehand: eager or compiled,
channels first or last. On a GPU both sides take it; `--dtype bfloat16` is autocast there, and products of float32 are TF32.

`share of peak` in training is 3 times the forward pass's multiplications and additions, in the plain form of the network, by
the time, over the rate of ours or PyTorch's large matrix product, whichever is higher, measured in every pair. `memory` is the
most that was taken of the GPU's, or without one what the whole process held of the host's in its turns. Sampling divides a
batch among the cores, as sample.py does; JAX_NUM_CPU_DEVICES=1 in the environment leaves it whole.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform

import numpy as np
from sides.turns import Side

from ddpm_jax.config import Config, read_config

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SHAPES = {"cifar10": (32, 32, 3), "digits": (8, 8, 1)}
FORWARD_FLOP = {"cifar10": 11.7e9}
PEERS = {"diffusers": "diffusers", "lucidrains": "denoising-diffusion-pytorch"}
VARIANTS = ("eager", "eager, channels last", "compiled", "compiled, channels last")


def config_of(options: argparse.Namespace) -> Config:
    """The config of configs/, without classes, with the batch and the steps asked for."""
    overrides = {"train.batch_size": options.batch_size, "sample.num": options.batch_size, "network.dtype": options.dtype}
    if options.what != "training":
        overrides["sample.sampler"] = {"ddim": "ddim", "ancestral": "ddpm"}[options.what]
        overrides["sample.steps"] = options.steps if options.what == "ddim" else None
    argv = ["--config", options.model, *[word for name, value in overrides.items() for word in (f"--{name}", str(value))]]
    config = read_config(argv, CONFIGS, options.model, "")
    return dataclasses.replace(config, network=dataclasses.replace(config.network, num_classes=None))


def best_variant(peer: str, make: str, config: Config, shape: tuple[int, int, int], variants: list[str]) -> tuple[str, Side]:
    """The fastest of the peer's variants on PyTorch, by one turn."""
    best: tuple[float, str, Side] | None = None
    for variant in variants:
        side = Side(peer, make, config, shape, variant)
        turn = side.turn()
        print(f"{peer}, {variant}: {1e3 * turn.seconds:.1f} ms; the first call took {side.first:.1f} s", flush=True)
        if best is not None and best[0] <= turn.seconds:
            side.end()
            continue
        if best is not None:
            best[2].end()
        best = turn.seconds, variant, side
    assert best is not None
    return best[1:]


def main() -> None:
    """Measures, prints a table, and keeps the figures where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "ddim", "ancestral"))
    parser.add_argument("--peer", choices=tuple(PEERS), default="diffusers")
    parser.add_argument("--model", choices=tuple(SHAPES), default="cifar10")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of ddim")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of PyTorch, to choose among")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # or lucidrains' sampler shows a bar
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.45")  # of a GPU's memory, so that both sides have some
    config, shape = config_of(options), SHAPES[options.model]
    make = "training" if options.what == "training" else "sampling"

    variant, theirs = best_variant(options.peer, make, config, shape, options.variants)
    ours = Side("ours", make, config, shape)
    print(f"ours: the first call took {ours.first:.1f} s", flush=True)
    if options.peer == "diffusers":
        assert ours.num_params == theirs.num_params, f"parameters differ: {ours.num_params} and {theirs.num_params}"
    turns, rates = [], []
    for _ in range(options.pairs):
        turns.append((ours.turn(), theirs.turn()))
        rates.append((ours.matmul_rate(options.dtype), theirs.matmul_rate(options.dtype)))
        print(" ".join(f"{1e3 * turn.seconds:.1f} ms" for turn in turns[-1]), f"{max(rates[-1]) / 1e9:.0f} GFLOP/s", flush=True)

    seconds = np.array([[turn.seconds for turn in pair] for pair in turns])
    medians, ratios = np.median(seconds, axis=0), seconds[:, 1] / seconds[:, 0]
    peaks = [max(turn.peak for turn in side) for side in zip(*turns, strict=True)]
    rate = float(np.median(np.max(rates, axis=1)))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", PEERS[options.peer])}
    huge = "with" if "hugetlb" in os.environ.get("GLIBC_TUNABLES", "") else "without"
    figures = {
        "what": vars(options), "variant": variant, "parameters": [ours.num_params, theirs.num_params],
        "seconds": seconds.tolist(), "ratio": float(np.median(ratios)), "peak_bytes": peaks,
        "images_per_second": (options.batch_size / medians).tolist(),
        "matmul_flops": np.max(rates, axis=1).tolist(), "cores": os.cpu_count(), "huge_pages": huge,
        "versions": {"python": platform.python_version()} | versions,
    }  # fmt: skip
    print(f"\n{os.cpu_count()} cores, {huge} huge pages, {figures['versions']}")
    sides = (("ours", ours.num_params), (f"{options.peer}, {variant}", theirs.num_params))
    for (side, num_params), median, peak in zip(sides, medians, peaks, strict=True):
        share = ""
        if options.what == "training" and options.model in FORWARD_FLOP and num_params == ours.num_params:
            share = f"{3 * FORWARD_FLOP[options.model] * options.batch_size / median / rate:9.2f} of {rate / 1e9:.0f} GFLOP/s"
        speed = f"{1e3 * median:10.1f} ms{options.batch_size / median:12.2f} images/s"
        print(f"{side:36}{num_params:12,} parameters{speed}{peak / 2**20:9.0f} MiB memory{share}")
    print(f"ours is {np.median(ratios):.2f} times as fast, the median of the pairs {' '.join(f'{r:.2f}' for r in ratios)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)
    ours.end()
    theirs.end()


if __name__ == "__main__":
    main()
