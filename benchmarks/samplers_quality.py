"""Which sampler for which number of network evaluations? Prints and plots the Frechet distance of digits over the NFE.

    python train.py --config configs/digits.py --workdir runs/digits
    python benchmarks/samplers_quality.py --workdir runs/digits --out out/samplers

Every sampler generates the same number of digits from the same noise at each NFE; the distance is `digits_quality.frechet`, in
pixels from 0 to 16, to all 1,797 real digits. Writes samplers.json and samplers.png. Finally prints the error of DDIM inversion
and reconstruction.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from digits_quality import REAL, frechet

from ddpm_jax import factory, samplers, schedules
from ddpm_jax.data import images
from ddpm_jax.devices import compiler
from ddpm_jax.evaluation import plots
from ddpm_jax.samplers import Churn, Sampler, grids

EVALUATIONS = (5, 10, 20, 50, 100)
TWO_PER_STEP = ("heun", "heun churn", "dpm_solver_pp_2s", "langevin")


def methods(schedule: schedules.Schedule, gamma: np.ndarray) -> dict[str, Sampler]:
    """The samplers by name."""
    churn = Churn(10.0)
    return {
        "ddpm fixed_large": samplers.ddpm("fixed_large"),
        "ddpm fixed_small": samplers.ddpm("fixed_small"),
        "analytic_dpm": samplers.analytic_dpm(gamma),
        "ddim": samplers.ddim(),
        "euler": samplers.euler(),
        "euler churn": samplers.euler(schedule, churn),
        "euler_ancestral": samplers.euler_ancestral(),
        "heun": samplers.heun(),
        "heun churn": samplers.heun(schedule, churn),
        "dpm_solver_pp 2": samplers.dpm_solver_pp(2),
        "dpm_solver_pp 3": samplers.dpm_solver_pp(3, lower_order_final=True),
        "dpm_solver_pp_sde 2": samplers.dpm_solver_pp(2, sde=True),
        "dpm_solver_pp_2s": samplers.dpm_solver_pp_2s(schedule),
        "unipc 2": samplers.unipc(2),
        "unipc 3": samplers.unipc(3, lower_order_final=True),
        "deis 3": samplers.deis(3),
        "pndm": samplers.pndm(),
        "langevin": samplers.langevin(samplers.ddpm("fixed_small")),
    }


def levels_of(name: str, schedule: schedules.Schedule, num_steps: int) -> schedules.Level:
    """The grid: trailing; for Heun's method EDM's, from sigma / alpha = 80 on, since the first trailing step is too long."""
    if name.startswith("heun"):
        return grids.karras(schedule, num_steps, log_snr=(-2 * math.log(80), 10.0))
    return grids.spaced(schedule, num_steps, "trailing")


def some_data(model: factory.LoadedRun, num: int) -> tuple[jax.Array, jax.Array]:
    """Images of the model's data, in [-1, 1], and their labels, -1 if there are none."""
    source = factory.make_source(model.config.data)
    items = [source[i] for i in range(num)]
    labels = jnp.asarray(np.stack([item.get("label", np.int32(-1)) for item in items]))
    return images.to_float(jnp.asarray(np.stack([item["image"] for item in items]))), labels


def mean_squared_eps(model: factory.LoadedRun) -> np.ndarray:
    """The model statistics for analytic_dpm, from 256 images of its data."""
    x0, labels = some_data(model, 256)
    denoise = factory.bind(model.config, model.network, model.schedule, model.params, False, labels)
    schedule = schedules.require_discrete(model.schedule, "analytic_dpm")
    run = jax.jit(lambda: samplers.mean_squared_eps(jax.random.key(1), schedule, denoise, x0))
    return np.asarray(run())


def inversion_error(model: factory.LoadedRun, num_steps: int) -> float:
    """The mean absolute error of DDIM inversion and reconstruction of 256 images, on the scale [-1, 1]."""
    x0, labels = some_data(model, 256)
    denoise = factory.bind(model.config, model.network, model.schedule, model.params, False, labels)
    levels, ddim = grids.spaced(model.schedule, num_steps), samplers.ddim()

    @functools.partial(jax.jit, compiler_options=compiler.compiler_options())
    def reconstruct(x0: jax.Array) -> jax.Array:
        noise = samplers.sample(None, ddim, denoise, grids.reversed(levels), x0.shape, x_init=x0)
        return samplers.sample(None, ddim, denoise, levels, x0.shape, x_init=noise)

    return float(jnp.mean(jnp.abs(reconstruct(x0) - x0)))


def measure(model: factory.LoadedRun, num: int) -> list[dict[str, Any]]:
    """One row per sampler and number of network evaluations ("calls"): {"sampler", "calls", "frechet"}."""
    config, schedule, ids = model.config, schedules.require_discrete(model.schedule, "samplers"), jnp.arange(num)
    labels = factory.make_labels(dataclasses.replace(config.sample, label=None, guidance=1.0), config.network)(ids)
    denoise = factory.bind(config, model.network, schedule, model.params, True, labels)
    key = jax.random.key(0)

    def distance(sampler: Sampler, levels: schedules.Level) -> float:
        draw = jax.jit(
            lambda: images.to_uint8(samplers.sample(key, sampler, denoise, levels, (num, *model.image_shape))),
            compiler_options=compiler.compiler_options(),
        )
        return frechet(np.asarray(draw()).reshape(num, -1) * (16 / 255), REAL)

    rows = []
    reference = distance(samplers.ddpm(config.diffusion.variance), grids.spaced(schedule))
    rows.append({"sampler": f"ddpm {config.diffusion.variance}", "calls": schedule.num_steps, "frechet": reference})
    for name, sampler in methods(schedule, mean_squared_eps(model)).items():
        for calls in EVALUATIONS:
            steps = calls // 2 if name in TWO_PER_STEP else calls
            if steps < 3:
                continue
            rows.append({"sampler": name, "calls": calls, "frechet": distance(sampler, levels_of(name, schedule, steps))})
            print(f"{name:22}{calls:6d}{rows[-1]['frechet']:10.1f}", flush=True)
    return rows


def draw_plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    """One line per sampler, and the first row as a horizontal reference."""
    axes = figure.subplots()
    first, *others = rows
    axes.axhline(first["frechet"], color="black", linewidth=1, label=f"{first['sampler']}, NFE {first['calls']}")
    for number, name in enumerate(dict.fromkeys(row["sampler"] for row in others)):
        points = [(row["calls"], row["frechet"]) for row in others if row["sampler"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linestyle="-:"[number // 10], label=name)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="Fréchet distance in pixels", xticks=EVALUATIONS)
    axes.set_xticklabels([str(calls) for calls in EVALUATIONS])
    figure.legend(loc="outside right upper", fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--num", type=int, default=500, help="digits per distance")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/samplers"))
    args = parser.parse_args()
    model = factory.load(args.workdir)
    rows = measure(model, args.num)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "samplers.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{rows[0]['sampler']}, NFE {rows[0]['calls']}: {rows[0]['frechet']:.1f}")
    print("sampler".ljust(22) + "".join(f"{calls:8d}" for calls in EVALUATIONS))
    for name in dict.fromkeys(row["sampler"] for row in rows[1:]):
        found = {row["calls"]: row["frechet"] for row in rows[1:] if row["sampler"] == name}
        print(name.ljust(22) + "".join(f"{found[calls]:8.1f}" if calls in found else " " * 8 for calls in EVALUATIONS))
    print(f"DDIM inversion and reconstruction, 200 steps: mean absolute error {inversion_error(model, 200):.4f}")
    plots.save(args.out / "samplers.png", lambda figure: draw_plot(figure, rows))


if __name__ == "__main__":
    main()
