import jax
import numpy as np
import pytest

from ddpm_jax import keys

KEY = jax.random.key(0)


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_streams_differ_by_name_and_are_the_same_in_every_process():
    """The name is hashed by CRC-32; Python's own hash would differ from run to run."""
    assert not np.array_equal(data(keys.stream(KEY, "noise")), data(keys.stream(KEY, "flip")))
    assert not np.array_equal(data(keys.stream(KEY, "noise")), data(KEY))
    np.testing.assert_array_equal(data(keys.stream(KEY, "123456789")), data(jax.random.fold_in(KEY, 0xCBF43926)))


def test_an_example_has_its_own_key_wherever_it_stands():
    all_keys = data(keys.per_example(KEY, np.arange(10)))
    assert len(np.unique(all_keys, axis=0)) == 10
    np.testing.assert_array_equal(data(keys.per_example(KEY, np.array([7, 3]))), all_keys[[7, 3]])


def test_draws_are_those_of_the_single_keys():
    some = keys.per_example(KEY, np.arange(3))
    together = keys.draw(jax.random.normal, some, (4,))
    np.testing.assert_array_equal(together[2], jax.random.normal(some[2], (4,)))


def test_folding_folds_into_each_key():
    some = keys.per_example(KEY, np.arange(3))
    np.testing.assert_array_equal(data(keys.fold(some, 7)[2]), data(jax.random.fold_in(some[2], 7)))
    np.testing.assert_array_equal(keys.global_ids(None, 3), [0, 1, 2])
    np.testing.assert_array_equal(keys.global_ids(np.array([5, 0]), 2), [5, 0])


def test_a_missing_key_is_an_error():
    with pytest.raises(TypeError):
        keys.stream(None, "noise")
