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


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_draw_depends_on_key_and_example_alone_for_every_implementation(impl):
    key = jax.random.key(3, impl=impl)
    draw = lambda key, ids: keys.draw(jax.random.normal, keys.per_example(keys.stream(key, "noise"), np.asarray(ids)), (4,))  # noqa: E731
    whole = draw(key, range(8))
    np.testing.assert_array_equal(draw(key, [5, 2]), whole[np.array([5, 2])])
    np.testing.assert_array_equal(keys.draw(jax.random.normal, keys.per_example(key, np.array([5])), (4,))[0],
                                  keys.draw(jax.random.normal, keys.per_example(key, np.arange(8)), (4,))[5])  # fmt: skip
    several = jax.random.split(key, 2)
    together = jax.vmap(lambda key: draw(key, range(8)))(several)
    np.testing.assert_array_equal(together[1], draw(several[1], range(8)))
    assert len(np.unique([whole, *together])) == 3 * whole.size


@pytest.mark.parametrize("word", range(4))
def test_every_bit_of_a_longer_key_counts(word):
    words = np.arange(4, dtype=np.uint32)
    key, other = (jax.random.wrap_key_data(words + flip, impl="rbg") for flip in (0, (np.arange(4) == word).astype(np.uint32)))
    assert not np.array_equal(data(keys.stream(key, "noise")), data(keys.stream(other, "noise")))


def test_what_is_no_typed_key_or_no_ids_is_refused():
    for wrong in (0, None, jax.random.PRNGKey(0), jax.random.split(KEY)):
        with pytest.raises(TypeError, match="key: expected"):
            keys.stream(wrong, "noise")
    with pytest.raises(TypeError, match=r"ids: expected integers \[B\]"):
        keys.per_example(KEY, np.ones(3))
    with pytest.raises(ValueError, match=r"ids: expected integers \[B\]"):
        keys.per_example(KEY, 3)
    with pytest.raises(ValueError, match=r"ids: expected shape \(2,\)"):
        keys.global_ids(np.arange(3), 2)
