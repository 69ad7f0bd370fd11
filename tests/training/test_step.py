import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import factory, keys, losses, networks, objectives, schedules
from ddpm_jax.config import Diffusion, Loss
from ddpm_jax.training import ema, step
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.optimizers import clip
from ddpm_jax.training.state import TrainState, init_state, num_params, state_from_params

KEY = jax.random.key(0)
SCHEDULE = schedules.linear(1000)


class Tiny(nn.Module):
    """Compiles fast; has dropout, and depends on t."""

    dropout: float = 0.3

    @nn.compact
    def __call__(self, x_t, t, *, train=False, dropout_keys=None):
        h = nn.Conv(8, (3, 3))(x_t) + nn.Dense(8)(t[:, None] / 1000)[:, None, None]
        h = networks.dropout(dropout_keys, "dropout", self.dropout)(nn.swish(h))
        return nn.Conv(x_t.shape[-1], (3, 3))(h)


NETWORK = Tiny()
AVERAGES = {"decay": ema.exponential(0.9), "power_0.1": ema.power(0.1)}
LEARNING_RATE = optax.linear_schedule(1e-3, 2e-3, 100)
OPTIMIZER = optax.chain(clip(1.0), optax.adam(LEARNING_RATE))
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)}


def make_objective(times="uniform", of=None, network=NETWORK, image_shape=(8, 8, 1), draw_times=None, **options):
    loss = Loss(times=times)
    of = factory.make_loss(loss, Diffusion(), SCHEDULE) if of is None else of
    memory, draw = factory.make_times(loss, Diffusion(), schedules.linear(1000), 8)
    return objectives.diffusion(
        network, image_shape, of, draw_times or draw, 1000, lambda params, key, frozen: None, memory=memory, **options
    )


def new_state(objective=None):
    return init_state(KEY, make_objective() if objective is None else objective, OPTIMIZER, AVERAGES)


def make_step(objective, optimizer=OPTIMIZER, averages=AVERAGES, **options):
    train_step = step.make_train_step(KEY, objective, optimizer, LEARNING_RATE, averages, **options)
    return lambda state, batch: train_step(state, batch, objective.frozen)


def make(optimizer=OPTIMIZER, averages=AVERAGES, accumulate=1, **options):
    return make_step(make_objective(**options), optimizer, averages, accumulate=accumulate)


def test_the_state_before_training():
    state = new_state()
    assert state.step == 0
    for average in AVERAGES:
        chex.assert_trees_all_equal(state.ema[average], state.params)
    assert set(state.parts()) == {"step", "params", "opt_state", "ema_decay", "ema_power_0.1", "skipped"}
    chex.assert_trees_all_equal(TrainState.from_parts(state.parts()), state)
    again, other = map(make_objective().init, (KEY, jax.random.key(1)))
    chex.assert_trees_all_equal(state.params, again)
    assert not jax.tree.all(jax.tree.map(np.array_equal, state.params, other))
    assert num_params(state.params) == sum(a.size for a in jax.tree.leaves(state.params))


def test_a_step_lowers_the_loss_of_its_own_batch():
    train_step, state = jax.jit(make()), new_state()
    _, before = train_step(state, BATCH)
    for _ in range(30):
        state, metrics = train_step(state, BATCH)
    _, after = train_step(state._replace(step=jnp.zeros((), jnp.int32)), BATCH)
    assert state.step == 30
    assert after["loss"] < 0.9 * before["loss"]
    assert metrics["is_finite"]


def test_the_gradient_is_clipped_by_its_global_norm_and_reported_unclipped():
    sgd = optax.chain(clip(1.0), optax.sgd(1.0))
    train_step = make(sgd)
    state = new_state()._replace(opt_state=sgd.init(new_state().params))
    after, metrics = jax.jit(train_step)(state, BATCH)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
    assert metrics["grad_norm"] > 1.0, "clipping binds"
    np.testing.assert_allclose(moved, 1.0, rtol=1e-4)


def test_all_randomness_follows_the_step():
    train_step, state = jax.jit(make(random_flip=True)), new_state()
    loss_at = lambda n: float(train_step(state._replace(step=jnp.int32(n)), BATCH)[1]["loss"])  # noqa: E731
    losses = [loss_at(n) for n in range(5)]
    assert len(set(losses)) == 5
    assert loss_at(3) == losses[3]


@pytest.mark.parametrize("key", ["loss", "dropout", "flip"])
def test_each_stream_matters(key, monkeypatch):
    """If a stream were constant, replacing it by another would change nothing."""
    original = keys.stream
    train_step = lambda: jax.jit(make(random_flip=True))(new_state(), BATCH)[1]["loss"]  # noqa: E731
    before = train_step()
    monkeypatch.setattr(keys, "stream", lambda k, name: original(k, name + "!" if name == key else name))
    assert train_step() != before


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    """The next step does what it would have done without this batch, except for its random numbers."""
    of = factory.make_loss(Loss(), Diffusion(), SCHEDULE)
    broken = lambda key, predict, x0, ids, t: of(key, predict, x0, ids, t) * jnp.where(x0.max() < 1, 1, jnp.nan)  # noqa: E731
    objective = make_objective("importance", broken)
    train_step = jax.jit(make_step(objective))
    good = {"image": np.minimum(BATCH["image"], 254)}
    before, _ = train_step(new_state(objective), good)
    after, metrics = train_step(before, BATCH)
    assert not metrics["is_finite"]
    assert (metrics["skipped"], metrics["skipped_in_a_row"], after.step) == (1, 1, 2)
    chex.assert_trees_all_equal(after._replace(step=before.step, skipped=before.skipped), before)
    after, metrics = train_step(after, BATCH)
    assert (metrics["skipped"], metrics["skipped_in_a_row"], after.step) == (2, 2, 3)
    after, metrics = train_step(after, good)
    assert (metrics["skipped"], metrics["skipped_in_a_row"], after.step) == (2, 0, 4)
    assert metrics["is_finite"]
    assert optax.tree.get(after.opt_state, "count", filtering=lambda path, _: "ScaleByAdam" in str(path)) == 2
    np.testing.assert_allclose(metrics["learning_rate"], 1.01e-3, rtol=1e-6)


def test_a_gradient_that_is_not_finite_is_skipped_even_if_the_loss_is_finite():
    of = lambda key, predict, x0, ids, t: jnp.sqrt(jnp.mean(predict(x0, t) * 0, (1, 2, 3)))  # noqa: E731
    train_step = jax.jit(make(of=of))
    before = new_state()
    after, metrics = train_step(before, BATCH)
    assert metrics["loss"] == 0
    assert not metrics["is_finite"]
    chex.assert_trees_all_equal(after.params, before.params)


@pytest.mark.parametrize("times", ["uniform", "importance"])
def test_accumulated_microbatches_equal_the_full_batch(times):
    """At each of 50 steps, with the flips, dropout, times and noise of the full batch, and with active clipping."""
    one, four = (jax.jit(make(times=times, random_flip=True, accumulate=n)) for n in (1, 4))
    whole = parts = new_state(make_objective(times))
    clipped = 0
    for _ in range(50):
        whole, expected = one(whole, BATCH)
        parts, metrics = four(parts, BATCH)
        clipped += expected["grad_norm"] > 1
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
        for name, (total, count) in expected["objective"].items():
            np.testing.assert_allclose(metrics["objective"][name][0], total, rtol=1e-5, err_msg=name)
            assert metrics["objective"][name][1] == count
    assert clipped > 3
    if times == "importance":
        np.testing.assert_array_equal(parts.history.seen, whole.history.seen)
        np.testing.assert_allclose(parts.history.losses, whole.history.losses, rtol=1e-4)


def test_microbatches_are_not_in_a_loop_on_cpu():
    """The gradient of a convolution is 20 times slower inside a loop on CPU."""
    programs = [jax.jit(make(accumulate=n)).lower(new_state(), BATCH).compile().as_text() for n in (1, 4)]
    one, four = (program.count("conv_general_dilated") for program in programs)
    assert four > 2 * one > 0


def test_several_steps_equal_single_ones_and_give_the_same_bits_however_they_are_split():
    rows = {"image": np.random.default_rng(0).integers(0, 256, (5, 8, 8, 8, 1), np.uint8)}
    single = step.make_train_step(KEY, make_objective(), OPTIMIZER, LEARNING_RATE, AVERAGES)
    five, one = jax.jit(lambda state, ahead: step.multi_step(single)(state, ahead, ())), jax.jit(make())
    state, metrics = five(new_state(), (rows, 5))
    split, first = five(new_state(), (rows, 3))
    np.testing.assert_array_equal(first["loss"][3:], 0)
    split, rest = five(split, ({"image": np.resize(rows["image"][3:], rows["image"].shape)}, 2))
    chex.assert_trees_all_equal(split, state)
    both = jax.tree.map(lambda a, b: np.concatenate([a[:3], b[:2]]), first, rest)
    chex.assert_trees_all_equal(both, jax.device_get(metrics))
    singly = new_state()
    for i in range(5):
        singly, of_one = one(singly, {"image": rows["image"][i]})
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], metrics), of_one, rtol=1e-5)
    chex.assert_trees_all_close(state, singly, rtol=1e-4, atol=1e-6)
    alone, metrics = five(new_state(), ({"image": rows["image"][:1]}, 1))
    expected, of_one = one(new_state(), {"image": rows["image"][0]})
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[0], metrics), of_one, rtol=1e-5)
    chex.assert_trees_all_close(alone, expected, rtol=1e-4, atol=1e-6)


def test_losses_by_timestep_quartile():
    _, metrics = jax.jit(make(times="stratified"))(new_state(), BATCH)
    sums, counts = zip(*(metrics["objective"][f"loss_q{i}"] for i in range(4)), strict=True)
    np.testing.assert_array_equal(counts, [2, 2, 2, 2])
    np.testing.assert_allclose(sum(sums) / 8, metrics["loss"], rtol=1e-5)
    assert len(set(map(float, sums))) == 4


def test_the_state_is_donated_and_no_buffer_is_shared():
    state = jax.jit(new_state)()
    after, _ = jax.jit(make(), donate_argnums=0)(state, BATCH)
    assert all(a.is_deleted() for a in jax.tree.leaves(state.params) + jax.tree.leaves(state.ema))
    jax.block_until_ready(after)
    pointers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(after)]
    assert len(set(pointers)) == len(pointers)


def test_averages_follow_the_parameters_each_at_its_own_rate():
    train_step = jax.jit(make())
    first, _ = train_step(new_state(), BATCH)
    second, _ = train_step(first, BATCH)
    for average, kept in {"decay": 0.9, "power_0.1": 0.5 ** (1 + ema.exponent_of(0.1))}.items():
        chex.assert_trees_all_equal(first.ema[average], first.params)
        expected = jax.tree.map(lambda a, b, d=kept: d * a + (1 - d) * b, first.params, second.params)
        for found, value in zip(jax.tree.leaves(second.ema[average]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)
    assert isinstance(second, TrainState)


@pytest.mark.parametrize("times", ["uniform", "stratified", "importance"])
def test_times_are_drawn_as_configured_and_importance_sampling_remembers_losses(times):
    state = new_state(make_objective(times))
    assert ("history" in state.parts()) == (times == "importance")
    train_step = jax.jit(make(times=times))
    for _ in range(3):
        state, metrics = train_step(state, BATCH)
        assert metrics["is_finite"]
    if times == "importance":
        assert state.history.seen.sum() == 24
        assert (state.history.losses.sum(axis=1) > 0).sum() == (state.history.seen > 0).sum()
    else:
        assert state.history == ()


class LabelShift(nn.Module):
    """Predicts a single number per label: 0, 1 and 2, and 3 for unconditional."""

    @nn.compact
    def __call__(self, x_t, t, labels=None, *, train=False, dropout_keys=None):
        shift = self.param("shift", nn.initializers.zeros, (4,))
        return jnp.zeros_like(x_t) + shift[labels][:, None, None, None]


def test_labels_reach_the_network_with_label_dropout():
    """Plain gradient descent moves the entry of each label in proportion to how often it occurred."""
    optimizer = optax.sgd(1.0)
    labels = jnp.array([0, 0, 0, 0, 1, 1, -1, -1])
    batch = {"image": jnp.full((8, 2, 2, 1), 255, jnp.uint8), "label": labels}
    params = {"params": {"shift": jnp.zeros(4)}}
    of = lambda key, predict, x0, ids, t: jnp.mean(predict(x0, t) - x0, (1, 2, 3))  # noqa: E731
    state = state_from_params(params, optimizer, ())
    times = lambda key, history, ids: (jnp.zeros(8, jnp.int32), jnp.ones(8))  # noqa: E731

    def seen(dropout, steps=1):
        objective = make_objective(
            of=of, network=LabelShift(), image_shape=(2, 2, 1), draw_times=times, num_classes=3, label_dropout=dropout
        )
        train_step = jax.jit(make_step(objective, optimizer, {}))
        after = state
        for _ in range(steps):
            after, _ = train_step(after, batch)
        return -after.params["params"]["shift"] / steps

    np.testing.assert_allclose(seen(0.0), [0.5, 0.25, 0, 0.25], atol=1e-6)
    dropout = 0.3  # of 6 labels in 200 steps: 360 are dropped, with a standard deviation of 16
    found = seen(dropout, steps=200)
    assert abs(found[3] - (0.25 + dropout * 6 / 8)) < 4 * 16 / 1600
    assert found[0] > found[1] > 0.1
    np.testing.assert_allclose(found.sum(), 1, atol=1e-5)


def test_a_frozen_tree_is_an_argument_of_the_step_and_metrics_add_up_over_microbatches():
    """An objective without diffusion: the distance of a student from a frozen teacher, weighted per example."""

    def losses(params, key, step, batch, ids, frozen, memory):
        found = (batch["x"] * params["w"] - batch["x"] * frozen["w"]) ** 2
        return found, 1.0 + ids, {"error": (found.sum(), jnp.int32(len(ids)))}, {"seen": batch["x"]}

    remember = lambda memory, observed: {"seen": observed["seen"]}  # noqa: E731
    objective = Objective(
        lambda key: {"w": jnp.zeros(())},
        losses,
        remember=remember,
        frozen={"w": jnp.float32(3.0)},
        memory={"seen": jnp.zeros(4)},
    )
    batch, sgd = {"x": jnp.array([1.0, 2.0, 3.0, 4.0])}, optax.sgd(0.1)
    for accumulate in (1, 2):
        train_step = jax.jit(step.make_train_step(KEY, objective, sgd, LEARNING_RATE, {}, accumulate=accumulate))
        state, metrics = train_step(init_state(KEY, objective, sgd, ()), batch, objective.frozen)
        np.testing.assert_allclose(metrics["loss"], 9 * (1 + 2 * 4 + 3 * 9 + 4 * 16) / 4, rtol=1e-6)
        np.testing.assert_allclose(state.params["w"], 0.1 * 2 * 3 * (1 + 2 * 4 + 3 * 9 + 4 * 16) / 4, rtol=1e-6)
        np.testing.assert_allclose(metrics["objective"]["error"][0], 9 * 30, rtol=1e-6)
        assert metrics["objective"]["error"][1] == 4
        np.testing.assert_array_equal(state.history["seen"], batch["x"])
        other, _ = train_step(init_state(KEY, objective, sgd, ()), batch, {"w": jnp.float32(0.0)})
        assert other.params["w"] == 0, "the teacher is an argument, not a constant of the program"


def test_a_dit_with_the_flow_objective_accumulates_and_resumes_exactly():
    """Microbatches equal the full batch; a state that was saved as arrays goes on with the same bits."""
    network, schedule = networks.DiT(width=32, depth=1, num_heads=2, patch=4), schedules.flow()

    def of(key, predict, x0, ids, t):
        return losses.simple(key, schedule, predict, x0, "flow", ids, t)

    def times(key, memory, ids):
        return losses.timesteps.uniform(key, None, ids), jnp.ones(ids.shape)

    objective = objectives.diffusion(network, (8, 8, 1), of, times, 1, lambda params, key, frozen: None, random_flip=True)
    one, two = (jax.jit(make_step(objective, accumulate=n)) for n in (1, 2))
    whole = parts = jax.jit(lambda: new_state(objective))()
    for number in range(6):
        if number == 3:
            saved = jax.device_get(whole.parts())
        whole, expected = one(whole, BATCH)
        parts, metrics = two(parts, BATCH)
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    again = TrainState.from_parts(jax.tree.map(jnp.asarray, saved))
    for _ in range(3):
        again, metrics = one(again, BATCH)
    assert metrics["loss"] == expected["loss"]
    chex.assert_trees_all_equal(again, whole)
