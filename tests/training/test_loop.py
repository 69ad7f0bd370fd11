import contextlib
import json
import signal
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.devices import sharding
from ddpm_jax.devices.preemption import EarlyExit, Preemption
from ddpm_jax.training import loop, saving
from ddpm_jax.training.metrics import MetricLog
from ddpm_jax.training.state import Skipped, TrainState

MESH = sharding.make_mesh()


class Recorder:
    """Stands in for the terminal and for a writer."""

    def __init__(self):
        self.written, self.advanced, self.said, self.full = {}, 0, [], False

    def say(self, line):
        self.said.append(line)

    def doing(self, what, after=0.0):
        return contextlib.nullcontext()

    def advance(self):
        self.advanced += 1

    def write(self, step, figures):
        self.written[step] = figures

    def flush(self):
        if self.full:
            raise OSError("no space left")


class Saves:
    """Stands in for a Saver: records the sums at each save."""

    def __init__(self, log, every, works=True):
        self.log, self.every, self.works, self.sums = log, every, works, {}

    def is_due(self, step):
        return step % self.every == 0

    def save(self, step, state, is_last):
        assert int(state.step) == step
        self.sums[step] = json.loads(json.dumps(self.log.sums()))

    def finish(self, step, state):
        assert int(state.step) == step
        assert step in self.sums
        return self.works


class Averages:
    """Stands in for Snapshots: records the steps and values of saves."""

    def __init__(self, every):
        self.every, self.saved = every, {}

    def is_due(self, step):
        return step % self.every == 0

    def save(self, step, state):
        self.saved[step] = float(state.params[0])


def counting_step(state, batch, frozen):
    """Loss n + 1 at step n; not finite if the batch has a pixel above 200."""
    is_finite = batch["image"].max() <= 200
    in_a_row = jnp.where(is_finite, 0, state.skipped.in_a_row + 1)
    skipped = Skipped(state.skipped.total + ~is_finite, in_a_row)
    metrics = {
        "loss": jnp.where(is_finite, state.step + 1.0, jnp.nan), "grad_norm": jnp.float32(0.5), "is_finite": is_finite,
        "param_norm": jnp.float32(2.0), "learning_rate": jnp.float32(0.1), "skipped": skipped.total,
        "skipped_in_a_row": in_a_row,
        "objective": {f"loss_q{i}": (jnp.float32(i), jnp.float32(n)) for i, n in enumerate((0, 1, 1, 2))},
    }  # fmt: skip
    return state._replace(step=state.step + 1, params=state.params + 1, skipped=skipped), metrics


def run(
    start=0, num_steps=10, broken_steps=(), sums=None, ends=None, batches=None, works=True, draw=None,
    steps_per_call=1, draw_every=6, **every,
):  # fmt: skip
    def make():
        none = jnp.zeros((), jnp.int32)
        return TrainState(jnp.int32(start), jnp.zeros(3), jnp.zeros(2), {"decay": jnp.ones(1)}, Skipped(none, none))

    images = ({"image": np.full((4, 2, 2, 1), 255 if n in broken_steps else n, np.uint8)} for n in range(start + 1, 1000))
    first = sharding.create(make, sharding.replicated(MESH))
    recorder, drawn = Recorder(), []
    every = {"save": 4, "draw": draw_every, "log": 5} | every
    snapshots = Averages(every.get("snapshot", 1000))
    log = MetricLog(recorder, [recorder], every["log"], num_steps, 4, sums)
    saves, preemption = Saves(log, every["save"], works), Preemption()

    class Data:
        """Delivers the signal during a step."""

        def __next__(self):
            batch = next(images if batches is None else batches)
            if ends is not None and batch["image"].max() == ends + 1:
                preemption.number = signal.SIGTERM
            return batch

    try:
        last = loop.train(
            first, counting_step, Data(), MESH, num_steps, log=log, saver=saves, snapshots=snapshots,
            hooks=[(every["draw"], (lambda step, params: drawn.append(step)) if draw is None else draw)],
            average="decay", preemption=preemption, steps_per_call=steps_per_call,
        )  # fmt: skip
    except (FloatingPointError, EarlyExit) as error:
        return error, recorder, saves, drawn
    assert start >= num_steps or first.params.is_deleted(), "the state is donated"
    assert snapshots.saved == {n: n - start for n in range(start + 1, num_steps + 1) if n % snapshots.every == 0}
    return last, recorder, saves, drawn


def test_saves_and_samples_when_due_and_at_the_end():
    last, recorder, saves, drawn = run()
    assert (int(last.step), list(saves.sums), drawn) == (10, [4, 8, 10], [6, 10])
    assert recorder.advanced == 10


def test_snapshots_are_saved_when_due():
    run(snapshot=3)
    run(num_steps=9, snapshot=3)
    run(start=4, num_steps=12, snapshot=4, steps_per_call=2)


def test_a_state_is_logged_sampled_and_saved_before_the_next_step_overwrites_it(monkeypatch):
    events, compile_step, save, add = [], loop.compile_step, Saves.save, MetricLog.add

    def watched(*args):
        compiled = compile_step(*args)
        return lambda state, *rest: events.append(f"call {int(state.step) + 1}") or compiled(state, *rest)

    monkeypatch.setattr(loop, "compile_step", watched)
    monkeypatch.setattr(MetricLog, "add", lambda self, step, now: events.append(f"log {step}") or add(self, step, now))
    monkeypatch.setattr(
        Saves, "save", lambda self, step, *rest, **last: events.append(f"save {step}") or save(self, step, *rest, **last)
    )
    run(num_steps=5, save=2, draw=lambda step, params: events.append(f"draw {step}"), draw_every=4)
    assert events == [
        "call 1", "call 2", "log 1", "log 2", "save 2", "call 3", "call 4", "log 3", "log 4", "draw 4", "save 4",
        "call 5", "log 5", "draw 5", "save 5",
    ]  # fmt: skip


def test_hooks_receive_the_requested_average():
    given = {}
    run(num_steps=6, draw=lambda step, params: given.update({step: np.asarray(params)}))
    np.testing.assert_array_equal(given[6], np.ones(1))


def test_saving_and_sampling_do_not_count_as_training_time(monkeypatch):
    monkeypatch.setattr(
        Saves, "save", lambda self, *args, save=Saves.save, **last: time.sleep(0.3) or save(self, *args, **last)
    )
    _, recorder, *_ = run(num_steps=8, save=2, log=4, draw=lambda step, params: time.sleep(0.3))
    assert min(figures["images_per_second"] for figures in recorder.written.values()) > 4 * 4 / 0.5


def test_lines_are_means_regardless_of_saves_in_between():
    _, recorder, _, _ = run(num_steps=12)
    assert {step: figures["loss"] for step, figures in recorder.written.items()} == {5: 3.0, 10: 8.0, 12: 11.5}
    timings = {"images_per_second", "data_wait", "memory_gib"}
    for figures in recorder.written.values():
        expected = {"grad_norm": 0.5, "param_norm": 2.0, "skipped": 0, "loss_q1": 1.0, "loss_q2": 2.0, "loss_q3": 1.5}
        assert {name: value for name, value in figures.items() if name in expected} == expected
        assert set(figures) == set(expected) | timings | {"loss", "learning_rate"}, "the first quartile had no examples"
        assert figures["images_per_second"] > 0
        assert 0 <= figures["data_wait"] <= 1
        assert 0.01 < figures["memory_gib"] < 100


def test_a_resumed_run_writes_the_lines_of_an_uninterrupted_one():
    """From a save between two lines, by the saved sums."""
    exact = lambda recorder: {step: (f["loss"], f["loss_q3"]) for step, f in recorder.written.items()}  # noqa: E731
    _, whole, saves, _ = run()
    _, rest, _, _ = run(start=8, sums=saves.sums[8])
    assert exact(rest) == {step: figures for step, figures in exact(whole).items() if step > 8}


@pytest.mark.parametrize("start", [0, 3])
def test_several_steps_per_dispatch_equal_single_ones(start):
    """From a step inside a dispatch to a step inside another."""
    every = {"log": 4, "num_steps": 13, "start": start, "broken_steps": [6]}
    exact = lambda recorder: {step: (f["loss"], f["loss_q3"], f["skipped"]) for step, f in recorder.written.items()}  # noqa: E731
    one, by_one, saves, drawn = run(**every)
    two, by_two, saves_by_two, drawn_by_two = run(**every, steps_per_call=2)
    assert int(two.step) == int(one.step) == 13
    assert (exact(by_two), by_two.advanced) == (exact(by_one), 13 - start)
    assert list(exact(by_one)) == [4, 8, 12, 13]
    assert (saves_by_two.sums, drawn_by_two) == (saves.sums, drawn)
    assert [line for line in by_two.said if "step 6 is skipped" in line]


def test_a_dispatch_takes_no_longer_than_a_signal_may_wait(monkeypatch):
    """As measured on the second dispatch, if steps are too slow for more than one; the first includes other work."""
    assert [loop.largest_dispatch(10, seconds) for seconds in (0.017, 0.2, 0.21, 0.4, 0.5, 1.1, 60)] == [10, 10, 5, 5, 2, 1, 1]
    nums, put = [], loop._Feed.put
    monkeypatch.setattr(loop._Feed, "put", lambda self: nums.append(len(self.queued)) or put(self))
    every = {"log": 4, "num_steps": 12, "steps_per_call": 2}
    _, quick, *_ = run(**every)
    assert nums[1:] == [2] * 6
    nums.clear()
    monkeypatch.setattr(loop, "MAX_DISPATCH_SECONDS", 0.0)
    _, slow, *_ = run(**every)
    assert nums[1:] == [2] * 2 + [1] * 8
    means = [{step: figures["loss"] for step, figures in recorder.written.items()} for recorder in (quick, slow)]
    assert means[0] == means[1]


def test_steps_per_dispatch_are_1_on_cpu_and_elsewhere_as_many_as_divide_the_intervals(monkeypatch):
    assert loop.default_steps_per_call([100, 500]) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [loop.default_steps_per_call(steps) for steps in ([100, 500], [1, 500], [45, 500], [28, 1000])] == [
        10,
        1,
        5,
        4,
    ]


def test_a_signal_or_the_end_of_the_data_within_a_dispatch():
    def batches():
        yield from ({"image": np.full((4, 2, 2, 1), n, np.uint8)} for n in range(6))
        raise OSError("the drive is gone")

    error, _, saves, _ = run(ends=5, steps_per_call=4)
    assert str(error).startswith("ended by SIGTERM; step 4 is saved"), "it arrives while the next batches are read"
    assert list(saves.sums) == [4]
    error, recorder, saves, _ = run(batches=batches(), steps_per_call=4)
    assert str(error).startswith("cannot read the batch of step 7: OSError: the drive is gone; step 6 is saved")
    assert (list(saves.sums), recorder.advanced) == ([4, 6], 6)


def test_a_finished_run_returns_immediately():
    last, recorder, saves, drawn = run(start=10)
    assert (int(last.step), saves.sums, drawn, recorder.written) == (10, {}, [], {})


def test_a_skipped_step_is_reported_and_excluded_from_the_means():
    last, recorder, _, _ = run(broken_steps=[2, 7, 8])
    assert int(last.step) == 10
    assert [line for line in recorder.said if "skipped" in line] == [
        f"step {step} is skipped: its loss or gradient is not finite ({count} skipped so far)"
        for step, count in ((2, 1), (7, 2), (8, 3))
    ]
    assert {step: (f["loss"], f["skipped"]) for step, f in recorder.written.items()} == {5: (3.25, 1), 10: (25 / 3, 3)}


def test_too_many_consecutive_skipped_steps_end_the_run():
    error, recorder, saves, _ = run(num_steps=100, broken_steps=range(31, 90), save=10)
    assert isinstance(error, FloatingPointError)
    assert "not finite at step 50" in str(error)
    assert list(saves.sums) == [10, 20, 30, 40]
    assert "loss" not in recorder.written[45], "there is none to write"


def test_a_signal_ends_the_run_after_the_step_and_a_save():
    error, recorder, saves, drawn = run(ends=7)
    assert isinstance(error, EarlyExit)
    assert (error.code, str(error)) == (143, "ended by SIGTERM; step 7 is saved; repeat the command to resume")
    assert (list(saves.sums), drawn, list(recorder.written)) == ([4, 7], [6], [5]), "only lines of an uninterrupted run"
    error, *_ = run(ends=7, works=False)
    assert (error.code, str(error)) == (143, "ended by SIGTERM; step 7 is NOT SAVED; repeat the command to resume")


def test_an_unsaved_last_state_is_an_error():
    error, *_ = run(works=False)
    assert (error.code, str(error)) == (1, "step 10 is NOT SAVED; repeat the command to resume")


@pytest.mark.parametrize("error", [OSError("the drive is gone"), SystemExit(3)])
def test_the_end_of_the_data_costs_no_step(error):
    def batches():
        yield from ({"image": np.full((4, 2, 2, 1), n, np.uint8)} for n in range(6))
        raise error

    ended, _, saves, _ = run(batches=batches())
    assert isinstance(ended, EarlyExit)
    assert ended.code == 1
    assert str(ended).startswith(f"cannot read the batch of step 7: {type(error).__name__}: {error}; step 6 is saved")
    assert list(saves.sums) == [4, 6]


class FailingCheckpoints:
    """Stands in for Checkpoints: saves at the given steps fail."""

    def __init__(self, *failing):
        self.failing, self.failed, self.saved = failing, False, []

    def copy(self, step, parts):
        return parts

    def save(self, step, parts, metadata, loss):
        self.failed = step in self.failing
        if not self.failed:
            self.saved.append(step)

    def fail(self, step, error):
        self.failed = True

    def wait(self):
        pass


def test_a_failed_save_is_retried_after_a_tenth_of_the_interval(monkeypatch):
    monkeypatch.setattr(saving, "PAUSE", 0)
    recorder = Recorder()
    log = MetricLog(recorder, [recorder], 5, 100, 4)
    state = lambda step: TrainState(jnp.int32(step), {}, {}, {}, Skipped(jnp.int32(0), jnp.int32(0)))  # noqa: E731
    checkpoints = FailingCheckpoints(40, 44)
    saver = saving.Saver(checkpoints, log, {}, every=40)
    for step in range(1, 121):
        if saver.is_due(step):
            saver.save(step, state(step))
    assert checkpoints.saved == [48, 80, 120]
    checkpoints = FailingCheckpoints(40)
    saver = saving.Saver(checkpoints, log, {}, every=40)
    for step in range(5, 121, 5):  # as with dispatches of five steps
        if saver.is_due(step):
            saver.save(step, state(step))
    assert checkpoints.saved == [45, 80, 120]
    recorder.full = True
    saver.save(121, state(121))
    assert checkpoints.failed, "a checkpoint before its lines are written would lose them"
    assert not saver.finish(121, state(121))
    recorder.full = False
    assert saver.finish(121, state(121))
    assert checkpoints.saved[-1] == 121


def test_an_objectives_metrics_do_not_hide_the_loops_own():
    """An objective may use any names; its `num` is not mistaken for the count in checkpoints of version 0.1."""
    recorder = Recorder()
    log = MetricLog(recorder, [recorder], 1, 10, 4)
    now = {"loss": 2.0, "grad_norm": 1.0, "param_norm": 1.0, "learning_rate": 0.1, "skipped": 0, "skipped_in_a_row": 0}
    log.add(1, now | {"is_finite": True, "objective": {"loss": (50.0, 1), "num": (6.0, 2)}})
    assert (recorder.written[1]["loss"], recorder.written[1]["num"]) == (2.0, 3.0)
    log = MetricLog(recorder, [recorder], 2, 10, 4, {"loss": [1.0, 1], "grad_norm": [1.0, 1], "num": [6.0, 2]})
    log.add(2, now | {"is_finite": True, "objective": {"num": (1.0, 1)}})
    assert (recorder.written[2]["loss"], recorder.written[2]["num"]) == (1.5, 7 / 3)


def test_the_copy_of_the_average_is_freed_after_a_hook():
    held = []
    _, *_ = run(num_steps=9, draw=lambda step, params: held.append(weakref.ref(params)) if step < 9 else held.append(held[0]()))
    assert held[1] is None


def test_metrics_that_cannot_be_written_are_reported_once_and_so_is_the_end_of_it():
    """A thousand rows within a minute; the other writers receive each of them."""
    recorder, other = Recorder(), Recorder()
    broken = Recorder()

    def write(step, metrics):
        if step < 1000:
            raise OSError(28, "No space left on device", "metrics.jsonl")

    broken.write = write
    log = MetricLog(recorder, [broken, other], 1, 1000, 4)
    now = {"loss": 2.0, "grad_norm": 1.0, "param_norm": 1.0, "learning_rate": 0.1, "skipped": 0, "skipped_in_a_row": 0}
    for step in range(1, 1001):
        log.add(step, now | {"is_finite": True, "objective": {}})
    first, last = recorder.said
    assert first.startswith("CANNOT WRITE the metrics of step 1: No space left on device: metrics.jsonl; ")
    assert last.startswith("metrics are written again")
    assert list(other.written) == list(range(1, 1001))


def test_the_loop_says_what_it_does_besides_steps(monkeypatch):
    jobs = []
    monkeypatch.setattr(Recorder, "doing", lambda self, what, after=0.0: jobs.append((what, after)) or contextlib.nullcontext())
    run(num_steps=5, save=2, draw_every=4)
    assert jobs == [
        ("compiling the training step", 0.0), ("saving step 2", 2.0), ("generating samples at step 4", 2.0),
        ("saving step 4", 2.0), ("generating samples at step 5", 2.0), ("saving step 5", 2.0), ("saving step 5", 2.0),
    ]  # fmt: skip
