"""Norms and clipping, against NumPy, closed forms and optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training.optimizers import clip, norm

SHAPES = {"a": (3, 4), "b": {"c": (4, 3), "d": (3, 4), "e": (3, 4)}, "f": (7,), "g": ()}
TREE = jax.tree.map(
    lambda shape: jax.random.normal(jax.random.key(sum(shape)), shape), SHAPES, is_leaf=lambda a: isinstance(a, tuple)
)


def test_the_norm_is_that_of_the_concatenated_arrays():
    numbers = np.concatenate([np.ravel(a) for a in jax.tree.leaves(TREE)]).astype(np.float64)
    np.testing.assert_allclose(norm(TREE), np.linalg.norm(numbers), rtol=1e-6)
    assert norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}) == 5
    assert np.isnan(norm({"a": jnp.array([3.0, jnp.nan]), "b": jnp.array([4.0, 1.0])}))


def test_other_dtypes_are_summed_in_float32_and_preserved():
    """The squared norm of 600 arrays of seven ones is 4,200, more than the 8-bit significand can count to."""
    tree = {str(i): jnp.ones(7, jnp.bfloat16) for i in range(600)}
    assert norm(tree).dtype == jnp.float32
    np.testing.assert_allclose(norm(tree), 4200**0.5, rtol=1e-6)
    chex.assert_trees_all_equal_dtypes(clip(1.0).update(tree, optax.EmptyState())[0], tree)
    assert norm({}) == 0


@pytest.mark.parametrize("limit", [0.5, 100.0, float("inf")])
def test_clipping_matches_optax(limit):
    ours, theirs = clip(limit), optax.clip_by_global_norm(limit)
    assert ours.init(TREE) == theirs.init(TREE)
    clipped, state = jax.jit(ours.update)(TREE, ours.init(TREE))
    chex.assert_trees_all_close(clipped, theirs.update(TREE, theirs.init(TREE))[0], rtol=1e-6)
    assert state == ours.init(TREE)
    np.testing.assert_allclose(norm(clipped), min(limit, norm(TREE)), rtol=1e-6)


def test_zero_gradients_stay_zero():
    """The norm is 0, and the clipping scale limit / 0."""
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    chex.assert_trees_all_equal(clip(1.0).update(zeros, optax.EmptyState())[0], zeros)
