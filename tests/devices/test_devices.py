"""The same losses on one device, on eight, and with two processes; and how a process ends when the other is lost."""

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

import pytest
from scripts import ROOT
from test_scripts import metrics

SMALL = [
    "--network.channels", "16", "--network.multipliers", "1", "--network.num_blocks", "1", "--network.num_groups", "4",
    "--network.middle", "none", "--train.batch_size", "8", "--sample.num", "1", "--sample.steps", "1",
    "--optimizer.decay", "constant", "--optimizer.warmup_steps", "1",
]  # fmt: skip
EIGHT = ["--devices.state", "sharded"]
BY_FIVES = ["--train.log_every", "5", "--train.steps_per_call", "5"]
LOUD = ["--train.log_every", "1", "--checkpoint.every", "10", "--checkpoint.keep", "99", "--train.sample_every", "1000"]


@pytest.fixture(scope="module")
def environment():
    """Environments with a given number of devices."""

    def with_devices(count):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
        return os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}

    return with_devices


def command(workdir, num_steps, *args):
    script = [sys.executable, str(ROOT / "train.py"), "--config", "digits", "--workdir", str(workdir)]
    return [*script, *SMALL, *LOUD, "--train.num_steps", str(num_steps), *args]


def run(command, environment):
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def losses(workdir):
    return {m["step"]: m["loss"] for m in metrics(workdir)}


@pytest.fixture(scope="module")
def one(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("one") / "run"
    run(command(workdir, 20), environment(1))
    return workdir


def test_eight_devices_resume_from_a_checkpoint_of_one_with_the_same_losses(one, environment, tmp_path):
    shutil.copytree(one, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    said = run(command(tmp_path / "run", 20, *EIGHT), environment(8))
    assert "8 x cpu, from step 10 to 20" in said
    assert "each device holds parameters" in said
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=1e-5)


@contextlib.contextmanager
def two_processes(workdir, environment, until):
    """Two processes with four devices each, once the run has reached a step."""
    address = ["--devices.coordinator", f"127.0.0.1:{free_port()}", "--devices.num_processes", "2", "--devices.process_id"]
    options = {"env": environment(4), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (subprocess.Popen(command(workdir, 1000, *BY_FIVES, *address, str(i)), **options) for i in range(2))
    try:
        deadline = time.monotonic() + 240
        while max(losses(workdir) if (workdir / "metrics.jsonl").exists() else {}, default=0) < until:
            assert first.poll() is None and second.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield first, second
    finally:
        first.kill()
        second.kill()


def test_two_processes_train_as_one_and_end_together(one, environment, tmp_path):
    """After a signal to one, both save; when one is killed, the other ends soon; then one process resumes on the same data.

    In between they resume from before a damaged checkpoint, and pass its step. The two run five steps per dispatch, the one a
    single step.
    """
    workdir = tmp_path / "run"
    with two_processes(workdir, environment, until=3) as processes:
        processes[1].send_signal(signal.SIGTERM)
        ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    assert all("ended by SIGTERM; step " in error and " is saved; repeat the command" in error for _, error in ended)
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    damaged = saved // 10 * 10 + 10
    shutil.copytree(workdir / "checkpoints" / str(saved), workdir / "checkpoints" / str(damaged))
    (workdir / "checkpoints" / str(damaged) / "metadata.json").unlink()
    with two_processes(workdir, environment, until=damaged + 2) as (first, second):
        second.kill()
        began = time.monotonic()
        out, error = first.communicate(timeout=120)
        assert time.monotonic() - began < 90
    assert first.returncode in (1, -6), "by an error of its own, or aborted by JAX"
    assert "Traceback" in error or "task died" in error
    assert f"metadata.json is missing: step {saved} is used instead of {damaged}" in out
    assert f"8 x cpu, from step {saved}" in out
    assert "CANNOT SAVE" not in out, "the other process has not checked it, and would consider it saved"
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {str(damaged), f"{damaged}.damaged"}
    told = second.communicate()[0]
    assert told.startswith("process 1 of 2: process 0 prints for all\n")
    assert "parameters" not in told and "loss" not in told
    for path in (workdir / "checkpoints").iterdir():
        if path.name != "10":
            shutil.rmtree(path)
    means = {end: statistics.mean(losses(one)[step] for step in range(end - 4, end + 1)) for end in (5, 10, 15, 20)}
    seen = {step: loss for step, loss in losses(workdir).items() if step <= 20}
    assert seen == pytest.approx({step: means[step] for step in seen}, rel=1e-5)
    said = run(command(workdir, 20, "--train.log_every", "5"), environment(1))
    assert "1 x cpu, from step 10 to 20" in said
    assert losses(workdir) == pytest.approx(means, rel=1e-5)


def test_two_processes_with_only_damaged_checkpoints_both_end_with_an_error(one, environment, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(one, workdir)
    for path in (workdir / "checkpoints").glob("*/metadata.json"):
        path.unlink()
    address = ["--devices.coordinator", f"127.0.0.1:{free_port()}", "--devices.num_processes", "2", "--devices.process_id"]
    options = {"env": environment(4), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command(workdir, 30, *BY_FIVES, *address, str(i)), **options) for i in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert "all are damaged: 10: metadata.json is missing; 20: metadata.json is missing" in said[0]
    assert "error: --workdir: process 0 failed, see its error" in said[1]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


PROGRAM = """
import functools, json, re, sys, jax, jax.numpy as jnp, numpy as np, optax
from ddpm_jax import factory, losses, networks, objectives, schedules
from ddpm_jax.config import Config, Network
from ddpm_jax.devices import sharding
from ddpm_jax.runs.state_copies import make_copy
from ddpm_jax.training import ema, loop
from ddpm_jax.training.state import init_state
from ddpm_jax.training.step import make_train_step

key, mesh, optimizer = jax.random.key(0), sharding.make_mesh(), optax.adam(1e-3)
if sys.argv[1] == "unet":
    network = Network(channels=64, multipliers=(1,), num_blocks=1, attention_resolutions=(), middle="none")
    objective = factory.make_objective(Config(workdir="", network=network), (4, 4, 1))
else:  # a DiT with the flow objective
    network, schedule = networks.DiT(width=128, depth=1, num_heads=2, patch=2), schedules.flow()
    loss = lambda key, predict, x0, ids, t: losses.simple(key, schedule, predict, x0, "flow", ids, t)
    uniform = lambda key, memory, ids: (losses.timesteps.uniform(key, None, ids), jnp.ones(ids.shape))
    objective = objectives.diffusion(network, (4, 4, 1), loss, uniform, 1, lambda params, key, frozen: None)
averages = {"decay": ema.exponential(0.9)}
init = functools.partial(init_state, key, objective, optimizer, averages)
shapes = jax.eval_shape(init)
gather = functools.partial(sharding.gather, mesh)
step = make_train_step(key, objective, optimizer, lambda n: 1e-3, averages, gather=gather)
divided, copied = (sharding.placed(shapes, s) for s in (sharding.sharded(mesh, shapes), sharding.replicated(mesh)))
batch = {"image": jax.ShapeDtypeStruct((8, 4, 4, 1), np.uint8, sharding=sharding.over_batch(mesh))}
compiled = loop.compile_step(step, divided, batch, (), mesh)
shapes_gathered = re.findall(r"= f32\\[([\\d,]+)\\]\\S* all-gather", compiled.as_text())
state, spread = (sharding.create(init, s) for s in (sharding.replicated(mesh), sharding.sharded(mesh, shapes)))
copies = [make_copy(tree)(tree) for tree in (state, spread)]
held = [sum(shard.data.nbytes for a in jax.tree.leaves(copy) for shard in a.addressable_shards) for copy in copies]
print(json.dumps({
    "copies": [bytes / sharding.bytes_per_device(state) for bytes in held],
    "same": [jax.tree.all(jax.tree.map(np.array_equal, copy, jax.device_get(state))) for copy in copies],
    "fraction": sharding.bytes_per_device(divided) / sharding.bytes_per_device(copied),
    "held": compiled.memory_analysis().argument_size_in_bytes / sharding.bytes_per_device(copied),
    "gathered": sum(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes_gathered),
    "params": sum(a.size for a in jax.tree.leaves(shapes.params)),
}))
"""


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_sharded_state_takes_an_eighth_and_only_parameters_are_gathered(environment, network):
    """All gathers of the compiled step together are at most the parameters: the optimizer and the averages stay sharded."""
    found = json.loads(run([sys.executable, "-c", PROGRAM, network], environment(8)).splitlines()[-1])
    assert found["fraction"] <= 0.15
    assert found["held"] <= 0.15, "by XLA's count, including the batch"
    assert found["same"] == [True] * 2
    assert all(ratio < 1.1 for ratio in found["copies"]), "one copy in all, not one per device, except for small arrays"
    assert 0.8 * found["params"] < found["gathered"] <= found["params"]
