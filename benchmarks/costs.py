"""What does a program cost, how does the cost scale, and how close is it to the machine's limits?

    python benchmarks/costs.py training --model cifar10 1 2 4 8 16 32 --vary batch_size
    python benchmarks/costs.py training --model cifar10 32 64 96 128 --vary channels
    python benchmarks/costs.py training --model cifar10 16 32 64 --vary image_size
    python benchmarks/costs.py training --model cifar10 1 2 --vary devices
    python benchmarks/costs.py sampling --model cifar10 5 10 20 40 --vary steps
    python benchmarks/costs.py sampling --model digits --batch-size 64 1 2 --vary devices

One row per value, each measured in its own process. Operations and bytes are XLA's counts for the compiled program on one
device, the same for each step of a sampler; Winograd's convolutions have fewer operations than plain ones. `least` is the time
that the operations or the bytes would take, whichever is longer, at the rates printed beside it: operations as in the product
of two large matrices, bytes as in adding to an array of 256 MB. Data that stays in the cache counts as bytes but costs no
memory traffic, so that the measured time may be shorter. Multiple devices are those of the CPU, which share its cores.
"""

import argparse
import dataclasses
import os
from typing import cast

from against_pytorch import SHAPES, config_of
from sides.turns import Side

from ddpm_jax.config import Config, UNet

VARIED = ("batch_size", "channels", "image_size", "devices", "steps")


def config_with(options: argparse.Namespace, value: int) -> tuple[Config, tuple[int, int, int], int]:
    """The config with the varied value, the images' shape, and the number of devices."""
    if options.vary in vars(options):
        setattr(options, options.vary, value)
    config, (height, width, channels) = config_of(options), SHAPES[options.model]
    if options.vary == "channels":
        config = dataclasses.replace(config, network=dataclasses.replace(cast(UNet, config.network), channels=value))
    if options.vary == "image_size":
        height = width = value
    return config, (height, width, channels), value if options.vary == "devices" else 1


def main() -> None:
    """Measures each value and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "sampling"))
    parser.add_argument("values", type=int, nargs="+")
    parser.add_argument("--vary", choices=VARIED, required=True)
    parser.add_argument("--model", choices=tuple(SHAPES), default="cifar10")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="number of DDIM steps")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=5, help="measurements of a second each; the median is printed")
    options = parser.parse_args()
    if options.what == "sampling":
        options.what = "ddim"

    print(f"{options.vary:>10}  images/s  ms taken  ms least   GFLOP      GB   MiB   GFLOP/s of maximum   GB/s of maximum")
    for value in options.values:
        config, shape, num_devices = config_with(options, value)
        os.environ["JAX_NUM_CPU_DEVICES"] = str(num_devices)
        side = Side("ours", "training" if options.what == "training" else "sampling", config, shape)
        taken = sorted(side.turn().seconds for _ in range(options.turns))[options.turns // 2]
        most_flops, most_bytes, cost = side.matmul_rate(options.dtype), side.ask("bandwidth"), side.ask("cost")
        side.end()
        times = num_devices * (1 if options.what == "training" else options.steps)
        flops, moved = times * cost["flops"], times * cost["bytes"]
        least = max(flops / most_flops, moved / most_bytes)
        memory = num_devices * cost["memory"] / 2**20
        row = f"{value:10}{config.sample.num / taken:10.2f}{1e3 * taken:10.1f}{1e3 * least:10.1f}{flops / 1e9:8.1f}"
        row += f"{moved / 1e9:8.2f}{memory:6.0f}{flops / taken / 1e9:10.0f}{most_flops / 1e9:12.0f}"
        print(f"{row}{moved / taken / 1e9:10.1f}{most_bytes / 1e9:9.1f}", flush=True)


if __name__ == "__main__":
    main()
