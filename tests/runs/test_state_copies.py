"""State copies that survive donation."""

import types

import chex
import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.devices import sharding
from ddpm_jax.runs import state_copies

TREE = {
    "a": jnp.arange(6000.0).reshape(3, 2000), "b": jnp.int32(7), "c": [jnp.ones(5, jnp.bfloat16), 2 * jnp.ones((3, 2000))],
    "d": (jnp.ones(5), jnp.uint32(3), jnp.int32(9)),
}  # fmt: skip
NUM_BYTES = 2 * 24_000 + 10 + 20 + 3 * 4


@pytest.mark.parametrize("has_room", [True, False])
def test_copies_survive_donation_and_go_to_the_host_if_the_devices_have_no_room(monkeypatch, has_room):
    asked = []
    monkeypatch.setattr(state_copies, "_has_room", lambda num_bytes: asked.append(num_bytes) or has_room)
    expected = jax.device_get(TREE)
    placed = sharding.create(lambda: jax.tree.map(jnp.copy, TREE), sharding.replicated(sharding.make_mesh()))
    usual = placed["a"].sharding.memory_kind
    add = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)
    copies, copy = [], state_copies.make_copy(placed)
    for _ in range(3):
        before = placed
        copies.append(copy(placed))
        placed = add(placed)
        assert before["a"].is_deleted(), "otherwise there is nothing to survive"
    assert asked == [NUM_BYTES]
    for number, copied in enumerate(copies):
        assert {a.sharding.memory_kind for a in jax.tree.leaves(copied)} == {usual if has_room else "pinned_host"}
        chex.assert_trees_all_equal_shapes_and_dtypes(copied, TREE)
        chex.assert_trees_all_equal(jax.device_get(copied), jax.tree.map(lambda a, n=number: a + a.dtype.type(n), expected))


def test_a_copy_of_arrays_without_a_mesh():
    copied = state_copies.make_copy(TREE)(TREE)
    chex.assert_trees_all_equal(copied, TREE)
    assert copied["a"].unsafe_buffer_pointer() != TREE["a"].unsafe_buffer_pointer()


@pytest.mark.parametrize("platform, stats, has_room", [
    ("cpu", None, True),
    ("gpu", {"bytes_in_use": 20, "peak_bytes_in_use": 40, "bytes_limit": 100}, True),
    ("gpu", {"bytes_in_use": 20, "peak_bytes_in_use": 41, "bytes_limit": 100}, False),
    ("gpu", {"bytes_in_use": 20, "bytes_limit": 100}, False),
    ("gpu", {"peak_bytes_in_use": 20}, False),
    ("gpu", None, False),
])  # fmt: skip
def test_there_is_room_if_two_copies_of_30_bytes_fit_beside_the_peak(monkeypatch, platform, stats, has_room):
    """On every device; a device without statistics has no room, unless its memory is the host's."""
    devices = [
        types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 0, "bytes_limit": 100}),
        types.SimpleNamespace(memory_stats=lambda: stats),
    ]
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert state_copies._has_room(30) is has_room
