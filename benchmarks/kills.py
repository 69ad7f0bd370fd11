"""Is a run that is killed repeatedly bit-identical to an uninterrupted one? Prints the kills and the differences, as JSON.

    python benchmarks/kills.py --kills 100
    python benchmarks/kills.py --kills 12 --run dit

Trains a small network on digits with everything that has state: two EMAs, dropout, flips, gradient accumulation, and
importance-sampled times (unet) or flow matching and weight decay (dit). One run is left alone. The other receives `kill -9` at
random moments (after a random time from its start, at a random step, or during a save), then SIGTERM, then SIGINT, and is
restarted by the same command each time. All arrays of the last checkpoint and all metrics of every step are compared, except
for timings and memory.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RUNS = {
    "unet": [
        "--config", "digits", "--network.channels", "8", "--network.multipliers", "1", "--network.num_blocks", "1",
        "--network.num_groups", "4", "--network.dropout", "0.2", "--network.middle", "none", "--loss.times", "importance",
    ],
    "dit": [
        "--config", "digits_dit", "--network.width", "16", "--network.depth", "1", "--network.num_heads", "2",
        "--network.patch", "4", "--optimizer.weight_decay", "0.1",
    ],
}  # fmt: skip
ALL = [
    "--data.random_flip", "True", "--train.batch_size", "8", "--train.accumulate", "2", "--train.log_every", "1",
    "--train.sample_every", "1000000", "--sample.num", "1", "--sample.steps", "1", "--ema.power", "0.1",
    "--checkpoint.every", "4",
]  # fmt: skip
TIMINGS = {"images_per_second", "data_wait", "memory_gib"}


def start(run: str, workdir: pathlib.Path, num_steps: int) -> "subprocess.Popen[str]":
    """Starts train.py, by the same command each time."""
    command = [sys.executable, str(ROOT / "train.py"), *RUNS[run], *ALL]
    command += ["--workdir", str(workdir), "--train.num_steps", str(num_steps)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def at_last(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def wait_for_moment(process: "subprocess.Popen[str]", workdir: pathlib.Path, kind: str, rng: random.Random) -> None:
    """Waits for a moment of the given kind, or for the end of the process."""
    began, before, delay = time.monotonic(), at_last(workdir), rng.uniform(0, 0.02)
    until, steps = rng.uniform(0.1, 4.0), rng.randint(1, 6)

    def has_come() -> bool:
        match kind:
            case "start":
                return time.monotonic() - began > until
            case "save":
                return any((workdir / "checkpoints").glob("*.unfinished*"))
        return at_last(workdir) >= max(before, 1) + steps

    while process.poll() is None and not has_come():
        time.sleep(0.001)
    time.sleep(delay)


def end(process: "subprocess.Popen[str]", number: int) -> tuple[int, str]:
    """Sends the signal; returns the exit code and stderr."""
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def arrays(workdir: pathlib.Path, step: int) -> list[tuple[str, Any]]:
    """All arrays of a checkpoint, by name."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    loaded = ocp.load_checkpointables(workdir.absolute() / "checkpoints" / str(step))
    named = jax.tree_util.tree_leaves_with_path(loaded)
    return [(jax.tree_util.keystr(path), np.asarray(array).tobytes()) for path, array in named]


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """All metrics except timings and memory."""
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in read]


def main(run: str, kills: int, signals: Sequence[str], seed: int, folder: pathlib.Path) -> None:
    """Runs both and compares them."""
    rng, num_steps, counts = random.Random(seed), 6 * kills + 30, collections.Counter[str]()
    alone, killed = folder / "alone", folder / "killed"
    code, said = start(run, alone, num_steps).wait(), ""
    assert code == 0, code
    for number in range(kills):
        kind = ("save", "step", "start")[number % 3]
        process = start(run, killed, num_steps)
        wait_for_moment(process, killed, kind, rng)
        code, said = end(process, signal.SIGKILL)
        assert code == -signal.SIGKILL, f"kill {number}, {kind}: exit code {code}: {said}"
        counts[kind] += 1
        print(f"kill {number + 1} ({kind}) after step {at_last(killed)} of {num_steps}", flush=True)
    for polite in (signal.Signals[name] for name in signals):
        process = start(run, killed, num_steps)
        wait_for_moment(process, killed, "step", rng)
        code, said = end(process, polite)
        assert code == 128 + polite, f"exit code {code}: {said}"
        assert "is saved; repeat the command to resume" in said, said
    process = start(run, killed, num_steps)
    _, said = process.communicate()
    assert process.returncode == 0, said
    whole, parts = (arrays(workdir, num_steps) for workdir in (alone, killed))
    differing = [name for (name, a), (_, b) in zip(whole, parts, strict=True) if a != b]
    same_lines = lines(alone) == lines(killed)
    print(json.dumps({
        "kills": dict(counts), "steps": num_steps, "lines": len(lines(alone)), "arrays": len(whole), "differing": differing,
        "same_lines": same_lines,
    }))  # fmt: skip
    sys.exit(0 if same_lines and not differing else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=RUNS, default="unet")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signals", nargs="*", choices=("SIGTERM", "SIGINT"), default=["SIGTERM", "SIGINT"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(given.run, given.kills, given.signals, given.seed, pathlib.Path(temporary))
