"""Copies that outlive donation."""

import types

import chex
import jax
import jax.numpy as jnp
import pytest

from ddpm_jax import aside, sharding

TREE = {
    "a": jnp.arange(6000.0).reshape(3, 2000), "b": jnp.int32(7), "c": [jnp.ones(5, jnp.bfloat16), 2 * jnp.ones((3, 2000))],
    "d": (jnp.ones(5), jnp.uint32(3), jnp.int32(9)),
}  # fmt: skip


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("spare", [True, False])
def test_what_is_set_aside_outlives_what_it_is_a_copy_of(monkeypatch, spare, stacked):
    """On the devices where they have memory to spare, on the host elsewhere."""
    monkeypatch.setattr(aside, "_has_memory_to_spare", lambda device, needed: spare)
    expected = jax.device_get(TREE)
    placed = sharding.create(lambda: jax.tree.map(jnp.copy, TREE), sharding.replicated(sharding.make_mesh()))
    add = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)
    copies, usual = [], placed["a"].sharding.memory_kind
    set_aside = aside.make_set_aside(placed, stacked)
    for _ in range(3):
        copies.append(set_aside(placed))
        placed = add(placed)
    for number, copy in enumerate(copies):
        assert {a.sharding.memory_kind for a in copy.arrays} == {usual if spare else "pinned_host"}
        assert len(copy.arrays) == (5 if spare and stacked else 7), "two pairs are alike"
        tree = copy.tree()
        chex.assert_trees_all_equal(jax.device_get(tree), jax.tree.map(lambda a, n=number: a + a.dtype.type(n), expected))
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, TREE)


def test_a_copy_of_plain_arrays():
    """Which are on no mesh."""
    chex.assert_trees_all_equal(aside.make_set_aside(TREE, stacked=True)(TREE).tree(), jax.device_get(TREE))


@pytest.mark.parametrize("platform, stats, spare", [
    ("cpu", None, True),
    ("gpu", {"bytes_in_use": 30, "bytes_limit": 100}, True),
    ("gpu", {"bytes_in_use": 31, "bytes_limit": 100}, False),
    ("gpu", {"bytes_in_use": 1}, False),
    ("gpu", None, False),
])  # fmt: skip
def test_memory_is_to_spare_where_half_is_left(platform, stats, spare):
    """Of what is held and what a step needs; not where a device does not tell, unless its memory is the host's."""
    device = types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)
    assert aside._has_memory_to_spare(device, 20) is spare
