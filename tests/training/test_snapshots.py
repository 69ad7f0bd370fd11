import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.devices import sharding
from ddpm_jax.factory.load import part_of
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.training import ema
from ddpm_jax.training.snapshots import Snapshots, reconstruct

WIDTHS = {"power_0.05": 0.05, "power_0.1": 0.1}
ABSTRACT = sharding.abstract(lambda: {"w": jnp.zeros(3)}, sharding.replicated(sharding.make_mesh()))


class State:
    """Stands in for a TrainState."""

    def __init__(self, averages):
        self.ema = {name: {"w": a} for name, a in averages.items()}


def run(workdir, start, end, until=None):
    """Tracks a random walk of three numbers from step `start`, with averages of the two widths; killed at `until`."""
    values = 1 + np.random.default_rng(0).normal(size=(end, 3)).cumsum(axis=0) / 10
    rates = {name: ema.power(width) for name, width in (WIDTHS | {"power_0.15": 0.15}).items()}
    averages = dict.fromkeys(rates, jnp.zeros(3))
    step = jax.jit(lambda a, value, n: {name: ema.update(a[name], value, n, rate) for name, rate in rates.items()})
    with Snapshots(workdir, list(WIDTHS), every=5, most=24) as snapshots:
        for n in range(until if until is not None else end):
            averages = step(averages, jnp.asarray(values[n], jnp.float32), n)
            if n >= start and snapshots.is_due(n + 1):
                snapshots.save(n + 1, State(averages))
    return averages


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run(workdir, 0, 240, until=123)
    (workdir / "snapshots" / "125.unfinished").mkdir()  # as a killed run leaves it
    averages = run(workdir, 117, 240)  # from a checkpoint before the last snapshot
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(240, {f"ema_{name}": {"w": averages[name]} for name in averages}, {})
    return workdir, averages


def test_they_stay_few_and_evenly_spaced_after_an_interruption(finished):
    workdir, _ = finished
    assert sorted(int(path.name) for path in (workdir / "snapshots").iterdir()) == list(range(10, 241, 10))


def test_an_average_of_another_width_matches_the_tracked_one(finished):
    workdir, averages = finished
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        made, line = reconstruct(checkpoints, 240, workdir, WIDTHS, 0.15, ABSTRACT)
        stored, _ = reconstruct(checkpoints, 240, workdir, WIDTHS, 0.1, ABSTRACT)
    error = np.abs(made["w"] - averages["power_0.15"]).max()
    assert error < 2e-3
    assert np.abs(averages["power_0.1"] - averages["power_0.15"]).max() > 20 * error, "no stored average would pass"
    np.testing.assert_allclose(stored["w"], averages["power_0.1"], rtol=1e-4)
    assert line.startswith("width 0.15 from 24 snapshots, relative error of its profile 0.")


def test_snapshots_after_the_checkpoint_are_not_used(finished, tmp_path):
    """They belong to a run that is still alive or was reset to an earlier step."""
    workdir, averages = finished
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(30, {f"ema_{name}": {"w": averages[name]} for name in WIDTHS}, {})
        checkpoints.wait()
        assert "from 3 snapshots" in reconstruct(checkpoints, 30, workdir, WIDTHS, 0.07, ABSTRACT)[1]


def test_a_run_without_power_functions_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"with --ema\.power for a width"):
        reconstruct(checkpoints, 5, tmp_path, {}, 0.1, ABSTRACT)


def test_an_average_is_selected_by_name_or_the_first_by_default():
    names = ["decay", "power_0.1"]
    assert [part_of(name, names) for name in (None, "power_0.1", "raw")] == ["ema_decay", "ema_power_0.1", "params"]
    with pytest.raises(ValueError, match=r"ema: expected decay, power_0\.1, raw or a width, received decy"):
        part_of("decy", names)
