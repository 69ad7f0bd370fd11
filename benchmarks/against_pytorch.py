"""How fast are training and sampling compared with PyTorch on this machine? Needs pip install -e ".[bench]".

    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 8
    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 32
    python benchmarks/against_pytorch.py training --model digits --batch-size 64
    python benchmarks/against_pytorch.py ddim --model cifar10 --batch-size 4 --steps 20
    python benchmarks/against_pytorch.py ancestral --model digits --batch-size 64
    python benchmarks/against_pytorch.py training --model cifar10 --batch-size 8 --peer lucidrains
    python benchmarks/against_pytorch.py training --model dit --batch-size 8 --peer dit
    python benchmarks/against_pytorch.py ddim --model dit --batch-size 4 --steps 20 --peer dit

The peer is diffusers, with the same network (the parameter counts must be equal), or lucidrains'
denoising-diffusion-pytorch, with its own network of the same channels and resolutions. For `dit`, DiT-S/2 on 32x32x4 with
1,000 classes, it is the authors' network in PyTorch; its samples are guided, two evaluations per step in one batch. Step
and batch are the same. Each side runs in its own process, and they alternate, A B A B. A turn is one uncounted call, then
calls for at least a second, whose mean is taken; each call is waited for after the next one has started. The times are
medians over turns; the ratio is the median of the pairs' ratios, above 1 if ours is faster. The peer uses its fastest
variant, chosen by one turn beforehand: eager or compiled, channels first or last. On a GPU both sides use it; PyTorch runs
`--dtype bfloat16` by autocast, and float32 products are TF32.

The fraction of peak, in training, is 3 times the FLOPs of the plain network's forward pass, per time, relative to the rate of
a large matrix product, ours or PyTorch's, whichever is higher, measured in every pair. `memory` is the peak use of the GPU's
memory or, without a GPU, of the whole process during its turns. Sampling divides a batch among the cores, like sample.py;
JAX_NUM_CPU_DEVICES=1 in the environment prevents it.
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
from ddpm_jax.networks.dit import SIZES

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SHAPES = {"cifar10": (32, 32, 3), "digits": (8, 8, 1), "dit": (32, 32, 4)}
FORWARD_FLOP = {"cifar10": 11.7e9, "dit": 12.1e9}
PEERS = {"diffusers": "diffusers", "lucidrains": "denoising-diffusion-pytorch", "dit": "torch"}
VARIANTS = ("eager", "eager, channels last", "compiled", "compiled, channels last")


def config_of(options: argparse.Namespace) -> Config:
    """The config of configs/, unconditional except for DiT, with the requested batch size and steps."""
    overrides = {"train.batch_size": options.batch_size, "sample.num": options.batch_size, "network.dtype": options.dtype}
    if options.what != "training":
        overrides["sample.sampler"] = {"ddim": "ddim", "ancestral": "ddpm"}[options.what]
        overrides["sample.steps"] = options.steps if options.what == "ddim" else None
    name, num_classes = options.model, None
    if options.model == "dit":
        name, num_classes = "digits_dit", 1000
        width, depth, num_heads = SIZES["S"]
        overrides |= {"network.width": width, "network.depth": depth, "network.num_heads": num_heads, "sample.guidance": 2.0}
    argv = ["--config", name, *[word for option, value in overrides.items() for word in (f"--{option}", str(value))]]
    config = read_config(argv, CONFIGS, "")
    return dataclasses.replace(config, network=dataclasses.replace(config.network, num_classes=num_classes))


def best_variant(peer: str, make: str, config: Config, shape: tuple[int, int, int], variants: list[str]) -> tuple[str, Side]:
    """The fastest of the peer's PyTorch variants, by one turn."""
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
    """Measures and prints a table; with --json, also writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "ddim", "ancestral"))
    parser.add_argument("--peer", choices=tuple(PEERS), default="diffusers")
    parser.add_argument("--model", choices=tuple(SHAPES), default="cifar10")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="number of DDIM steps")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="PyTorch variants to choose from")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # hides the progress bar of lucidrains' sampler
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.45")  # leaves GPU memory for the other side
    config, shape = config_of(options), SHAPES[options.model]
    make = "training" if options.what == "training" else "sampling"

    variant, theirs = best_variant(options.peer, make, config, shape, options.variants)
    ours = Side("ours", make, config, shape)
    print(f"ours: the first call took {ours.first:.1f} s", flush=True)
    if options.peer != "lucidrains":
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
    results = {
        "what": vars(options), "variant": variant, "parameters": [ours.num_params, theirs.num_params],
        "seconds": seconds.tolist(), "ratio": float(np.median(ratios)), "peak_bytes": peaks,
        "images_per_second": (options.batch_size / medians).tolist(),
        "matmul_flops": np.max(rates, axis=1).tolist(), "cores": os.cpu_count(), "huge_pages": huge,
        "versions": {"python": platform.python_version()} | versions,
    }  # fmt: skip
    print(f"\n{os.cpu_count()} cores, {huge} huge pages, {results['versions']}")
    sides = (("ours", ours.num_params), (f"{options.peer}, {variant}", theirs.num_params))
    for (side, num_params), median, peak in zip(sides, medians, peaks, strict=True):
        peak_used = ""
        if options.what == "training" and options.model in FORWARD_FLOP and num_params == ours.num_params:
            fraction = 3 * FORWARD_FLOP[options.model] * options.batch_size / median / rate
            peak_used = f"{fraction:9.2f} of {rate / 1e9:.0f} GFLOP/s"
        speed = f"{1e3 * median:10.1f} ms{options.batch_size / median:12.2f} images/s"
        print(f"{side:36}{num_params:12,} parameters{speed}{peak / 2**20:9.0f} MiB memory{peak_used}")
    print(f"ours is {np.median(ratios):.2f} times as fast, the median of the pairs {' '.join(f'{r:.2f}' for r in ratios)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)
    ours.end()
    theirs.end()


if __name__ == "__main__":
    main()
