import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import sharding
from ddpm_jax.training import loop
from ddpm_jax.training.state import Skipped, TrainState

MESH = sharding.make_mesh()


class Recorder:
    """Stands in for the terminal and for a writer."""

    def __init__(self):
        self.written, self.advanced = {}, 0

    def say(self, line):
        pass

    def advance(self):
        self.advanced += 1

    def write(self, step, figures):
        self.written[step] = figures


def counting_step(state, batch):
    """Loss n + 1 at step n, not finite where the batch says so."""
    loss = jnp.where(batch["image"].max() > 200, jnp.nan, state.step + 1.0)
    metrics = {"loss": loss, "grad_norm": jnp.float32(0.5), "is_finite": jnp.isfinite(loss)}
    return state._replace(step=state.step + 1, params=state.params + 1), metrics


def run(start=0, num_steps=10, broken_step=None, **every):
    def make():
        none = jnp.zeros((), jnp.int32)
        return TrainState(jnp.int32(start), jnp.zeros(3), jnp.zeros(2), jnp.ones(1), Skipped(none, none))

    images = ({"image": np.full((4, 2, 2, 1), 255 if n == broken_step else n, np.uint8)} for n in range(start + 1, 1000))
    first = sharding.create(make, sharding.replicated(MESH))
    recorder, saved, drawn = Recorder(), [], []
    options = {"save_every": 4, "draw_every": 6, "log_every": 5} | every
    try:
        last = loop.train(
            first, counting_step, images, MESH, num_steps,
            save=lambda s: saved.append(int(s.step)), draw=lambda s: drawn.append(int(s.step)),
            terminal=recorder, writers=[recorder], **options,
        )  # fmt: skip
    except FloatingPointError as error:
        return str(error), recorder, saved, drawn
    assert start >= num_steps or first.params.is_deleted(), "the state is donated"
    return last, recorder, saved, drawn


def test_saves_draws_and_writes_when_due_and_at_the_end():
    last, recorder, saved, drawn = run()
    assert (int(last.step), saved, drawn) == (10, [4, 8, 10], [6, 10])
    assert recorder.advanced == 10
    means = {step: figures["loss"] for step, figures in recorder.written.items()}
    assert means == {4: 2.5, 5: 5.0, 6: 6.0, 8: 7.5, 10: 9.5}, "each step in one mean"
    assert all(f["images_per_second"] > 0 and f["grad_norm"] == 0.5 for f in recorder.written.values())


def test_going_on_writes_what_an_unbroken_run_writes():
    whole = {step: f["loss"] for step, f in run()[1].written.items()}
    rest = {step: f["loss"] for step, f in run(start=4)[1].written.items()}
    assert rest == {step: loss for step, loss in whole.items() if step > 4}


def test_nothing_is_left_to_do():
    last, recorder, saved, drawn = run(start=10)
    assert (int(last.step), saved, drawn, recorder.written) == (10, [], [], {})


@pytest.mark.parametrize("broken_step", [6, 8])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(broken_step):
    message, recorder, saved, _ = run(broken_step=broken_step, log_every=100, draw_every=100)
    assert f"not finite at step {broken_step}" in message
    assert saved == [4]
    assert max(recorder.written) == 4


DEVICES = """
import json, jax, jax.numpy as jnp, numpy as np, optax
import flax.linen as nn
from ddpm_jax import ema, losses, schedules, sharding, timesteps
from ddpm_jax.training.state import init_state
from ddpm_jax.training.step import make_train_step
from ddpm_jax.training import loop

class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x_t, t, *, train=False):
        h = nn.Conv(8, (3, 3))(x_t) + nn.Dense(8)(t[:, None] / 1000)[:, None, None]
        return nn.Conv(1, (3, 3))(nn.Dropout(0.3, deterministic=not train)(nn.swish(h)))

class Quiet:
    def say(self, line): pass
    def advance(self): pass
    def write(self, step, figures): seen.append(figures["loss"])

seen, mesh, key = [], sharding.make_mesh(), jax.random.key(0)
optimizer = optax.adam(1e-3)
state = sharding.create(lambda: init_state(key, Tiny(), optimizer, (8, 8, 1)), sharding.replicated(mesh))
loss = lambda key, predict, x0, ids, t: losses.simple(key, schedules.linear(1000), predict, x0, ids=ids, t=t)
times = lambda key, history, ids: (timesteps.stratified(key, 1000, ids, 8), jnp.ones(8))
averages = {"decay": ema.exponential(0.9)}
step = make_train_step(key, Tiny(), loss, times, optimizer, lambda n: 1e-3, averages, 1000, random_flip=True)
rng = np.random.default_rng(0)
batches = iter([{"image": rng.integers(0, 256, (8, 8, 8, 1), np.uint8)} for _ in range(20)])
last = loop.train(state, step, batches, mesh, 5, save=lambda s: None, draw=lambda s: None, terminal=Quiet(), writers=[],
                  save_every=9, draw_every=9, log_every=1)
params = [np.asarray(a).tolist() for a in jax.tree.leaves(last.params)]
print(json.dumps({"devices": mesh.size, "losses": seen, "params": params}))
"""


def test_two_devices_train_as_one():
    """The same noise levels, noise, flips and dropout: equal to rounding, after 5 steps of Adam."""
    found = []
    for count in (1, 2):
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}",
            "JAX_PLATFORMS": "cpu",
        }
        result = subprocess.run([sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout.splitlines()[-1]))
    one, two = found
    assert (one["devices"], two["devices"]) == (1, 2)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)
    for a, b in zip(one["params"], two["params"], strict=True):
        np.testing.assert_allclose(np.array(b), np.array(a), atol=1e-4)
