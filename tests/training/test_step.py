import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import ema, factory, schedules, sharding
from ddpm_jax.clipping import clip
from ddpm_jax.config import Diffusion, Loss
from ddpm_jax.training import step
from ddpm_jax.training.state import TrainState, begin, init_params, init_state, num_params

KEY = jax.random.key(0)
SCHEDULE = schedules.linear(1000)


class Tiny(nn.Module):
    """Small enough to compile at once; has dropout, and looks at t."""

    dropout: float = 0.3

    @nn.compact
    def __call__(self, x_t, t, *, train=False):
        h = nn.Conv(8, (3, 3))(x_t) + nn.Dense(8)(t[:, None] / 1000)[:, None, None]
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
        return nn.Conv(x_t.shape[-1], (3, 3))(h)


NETWORK = Tiny()
AVERAGES = {"decay": ema.exponential(0.9), "power_0.1": ema.power(0.1)}
LEARNING_RATE = optax.linear_schedule(1e-3, 2e-3, 100)
OPTIMIZER = optax.chain(clip(1.0), optax.adam(LEARNING_RATE))
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)}


def new_state():
    return init_state(KEY, NETWORK, OPTIMIZER, (8, 8, 1), AVERAGES)


def make(optimizer=OPTIMIZER, times="uniform", averages=AVERAGES, **options):
    loss = Loss(times=times)
    of = factory.make_loss(loss, Diffusion(), SCHEDULE)
    _, draw_times = factory.make_times(loss, 1000, 8)
    return step.make_train_step(KEY, NETWORK, of, draw_times, optimizer, LEARNING_RATE, averages, 1000, **options)


def test_the_state_before_training():
    state = new_state()
    assert state.step == 0
    for average in AVERAGES:
        chex.assert_trees_all_equal(state.ema[average], state.params)
    assert set(state.parts()) == {"step", "params", "opt_state", "ema_decay", "ema_power_0.1", "skipped"}
    chex.assert_trees_all_equal(TrainState.of(state.parts()), state)
    again, other = (init_params(key, NETWORK, (8, 8, 1)) for key in (KEY, jax.random.key(1)))
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


def test_everything_random_follows_the_step():
    train_step, state = jax.jit(make(random_flip=True)), new_state()
    loss_at = lambda n: float(train_step(state._replace(step=jnp.int32(n)), BATCH)[1]["loss"])  # noqa: E731
    losses = [loss_at(n) for n in range(5)]
    assert len(set(losses)) == 5
    assert loss_at(3) == losses[3]


@pytest.mark.parametrize("key", ["loss", "dropout", "flip"])
def test_each_stream_matters(key, monkeypatch):
    """Were a stream a constant, replacing it by another would change nothing."""
    original = step.keys.stream
    train_step = lambda: jax.jit(make(random_flip=True))(new_state(), BATCH)[1]["loss"]  # noqa: E731
    before = train_step()
    monkeypatch.setattr(step.keys, "stream", lambda k, name: original(k, name + "!" if name == key else name))
    assert train_step() != before


def test_dropout_masks_follow_the_example_not_its_place_in_the_batch():
    state = new_state()
    keys = jax.random.split(KEY, 6)
    x, t = jax.random.normal(KEY, (6, 8, 8, 1)), jnp.arange(6)
    predict = jax.jit(functools.partial(step.predict_in_training, NETWORK, state.params))
    whole = predict(x, t, keys)
    np.testing.assert_allclose(predict(x[4:], t[4:], keys[4:]), whole[4:], atol=1e-5)
    np.testing.assert_allclose(predict(x[::-1], t[::-1], keys[::-1]), whole[::-1], atol=1e-5)
    assert not np.allclose(whole, predict(x, t, keys[::-1]), atol=1e-3)
    still = NETWORK.clone(dropout=0.0).apply(state.params, x, t)
    assert not np.allclose(whole, still, atol=1e-3)
    plain = functools.partial(step.predict_in_training, NETWORK.clone(dropout=0.0), state.params)
    np.testing.assert_allclose(plain(x, t, keys), still, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    """As if the batch had not been: the step after it does what it would have done at once, but for its random numbers."""
    of = factory.make_loss(Loss(), Diffusion(), SCHEDULE)
    history, draw_times = factory.make_times(Loss(times="importance"), 1000, 8)
    broken = lambda key, predict, x0, ids, t: of(key, predict, x0, ids, t) * jnp.where(x0.max() < 1, 1, jnp.nan)  # noqa: E731
    train_step = jax.jit(step.make_train_step(KEY, NETWORK, broken, draw_times, OPTIMIZER, LEARNING_RATE, AVERAGES, 1000))
    good = {"image": np.minimum(BATCH["image"], 254)}
    before, _ = train_step(init_state(KEY, NETWORK, OPTIMIZER, (8, 8, 1), AVERAGES, history), good)
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


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    of = lambda key, predict, x0, ids, t: jnp.sqrt(jnp.mean(predict(x0, t) * 0, (1, 2, 3)))  # noqa: E731
    _, draw_times = factory.make_times(Loss(), 1000, 8)
    train_step = jax.jit(step.make_train_step(KEY, NETWORK, of, draw_times, OPTIMIZER, LEARNING_RATE, AVERAGES, 1000))
    before = new_state()
    after, metrics = train_step(before, BATCH)
    assert metrics["loss"] == 0
    assert not metrics["is_finite"]
    chex.assert_trees_all_equal(after.params, before.params)


@pytest.mark.parametrize("times", ["uniform", "importance"])
def test_accumulated_microbatches_are_the_full_batch(times):
    """Flips, dropout, times and noise are those of the full batch; clipping binds; 50 steps, at every one of them."""
    history, _ = factory.make_times(Loss(times=times), 1000, 8)
    one, four = (jax.jit(make(times=times, random_flip=True, accumulate=n)) for n in (1, 4))
    whole = parts = init_state(KEY, NETWORK, OPTIMIZER, (8, 8, 1), AVERAGES, history)
    clipped = 0
    for _ in range(50):
        whole, expected = one(whole, BATCH)
        parts, metrics = four(parts, BATCH)
        clipped += expected["grad_norm"] > 1
        for name in ("loss", "grad_norm", "quarter_losses"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(metrics["quarter_counts"], expected["quarter_counts"])
    assert clipped > 3
    if times == "importance":
        np.testing.assert_array_equal(parts.history.seen, whole.history.seen)
        np.testing.assert_allclose(parts.history.losses, whole.history.losses, rtol=1e-4)


def test_microbatches_are_not_in_a_loop_on_cpu():
    """Where the gradient of a convolution is 20 times slower within one."""
    programs = [jax.jit(make(accumulate=n)).lower(new_state(), BATCH).compile().as_text() for n in (1, 4)]
    one, four = (program.count("conv_general_dilated") for program in programs)
    assert four > 2 * one > 0


def test_several_steps_are_single_ones_and_however_they_are_parted_the_same_bits():
    rows = {"image": np.random.default_rng(0).integers(0, 256, (5, 8, 8, 8, 1), np.uint8)}
    five, one = jax.jit(step.several(make())), jax.jit(make())
    state, metrics = five(new_state(), (rows, 5))
    parted, first = five(new_state(), (rows, 3))
    np.testing.assert_array_equal(first["loss"][3:], 0)
    parted, rest = five(parted, ({"image": np.resize(rows["image"][3:], rows["image"].shape)}, 2))
    chex.assert_trees_all_equal(parted, state)
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


def test_losses_by_quarters_of_the_times():
    _, metrics = jax.jit(make(times="stratified"))(new_state(), BATCH)
    np.testing.assert_array_equal(metrics["quarter_counts"], [2, 2, 2, 2])
    np.testing.assert_allclose(metrics["quarter_losses"].sum() / 8, metrics["loss"], rtol=1e-5)
    assert len(set(metrics["quarter_losses"].tolist())) == 4


def test_the_state_is_donated_and_no_buffer_is_shared():
    state = jax.jit(new_state)()
    after, _ = jax.jit(make(), donate_argnums=0)(state, BATCH)
    assert all(a.is_deleted() for a in jax.tree.leaves(state.params) + jax.tree.leaves(state.ema))
    jax.block_until_ready(after)
    pointers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(after)]
    assert len(set(pointers)) == len(pointers)


def test_the_state_is_not_copied_on_cpu():
    """Each array that is trained, its moments and its average are written where they were; small numbers may be copied."""
    lowered = jax.jit(make(), donate_argnums=0).lower(new_state(), BATCH)
    program = lowered.compile(sharding.compiler_options(gradient=True)).as_text()
    names = [name for name in re.findall(r" = f32\S+ copy\(.*?%(state_\w+)", program) if "kernel" in name]
    assert "state_params" in program
    assert names == []


def test_averages_follow_the_parameters_each_at_its_own_pace():
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
def test_times_are_drawn_as_asked_and_importance_remembers(times):
    history, _ = factory.make_times(Loss(times=times), 1000, 8)
    state = init_state(KEY, NETWORK, OPTIMIZER, (8, 8, 1), AVERAGES, history)
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


class Told(nn.Module):
    """Predicts nothing but a number for its label: 3 of none, and otherwise 0, 1 or 2."""

    @nn.compact
    def __call__(self, x_t, t, labels=None, *, train=False):
        shift = self.param("shift", nn.initializers.zeros, (4,))
        return jnp.zeros_like(x_t) + shift[labels][:, None, None, None]


def test_labels_reach_the_network_and_a_share_is_withheld():
    """Plain gradient descent moves the entries of the labels that it saw, in proportion to how often it did."""
    optimizer = optax.sgd(1.0)
    labels = jnp.array([0, 0, 0, 0, 1, 1, -1, -1])
    batch = {"image": jnp.full((8, 2, 2, 1), 255, jnp.uint8), "label": labels}
    params = {"params": {"shift": jnp.zeros(4)}}
    of = lambda key, predict, x0, ids, t: jnp.mean(predict(x0, t) - x0, (1, 2, 3))  # noqa: E731
    state = begin(params, optimizer, ())
    times = lambda key, history, ids: (jnp.zeros(8, jnp.int32), jnp.ones(8))  # noqa: E731

    def seen(share, steps=1):
        options = {"num_classes": 3, "label_dropout": share}
        train_step = jax.jit(step.make_train_step(KEY, Told(), of, times, optimizer, LEARNING_RATE, {}, 1000, **options))
        after = state
        for _ in range(steps):
            after, _ = train_step(after, batch)
        return -after.params["params"]["shift"] / steps

    np.testing.assert_allclose(seen(0.0), [0.5, 0.25, 0, 0.25], atol=1e-6)
    share = 0.3  # of 6 labels in 200 steps: 360 are withheld, to 4 standard deviations of 16
    found = seen(share, steps=200)
    assert abs(found[3] - (0.25 + share * 6 / 8)) < 4 * 16 / 1600
    assert found[0] > found[1] > 0.1
    np.testing.assert_allclose(found.sum(), 1, atol=1e-5)
