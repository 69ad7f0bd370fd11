import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from ddpm_jax.devices import sharding

EIGHT = AbstractMesh((8,), ("data",), (AxisType.Auto,))
SHAPES = {
    "params": {
        "kernel": (3, 3, 64, 128),
        "square": (64, 64),
        "bias": (128,),
        "odd": (3, 3, 63, 129),
        "first": (4096, 3),
    },
    "step": (),
}
TREE = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=lambda shape: isinstance(shape, tuple)
)


def specs(axes=()):
    return jax.tree.map(lambda s: s.spec, sharding.sharded(EIGHT, TREE, axes))


def test_large_arrays_are_sharded_along_the_largest_axis_that_the_devices_divide():
    assert specs() == {
        "params": {
            "kernel": PartitionSpec(None, None, None, "data"),
            "square": PartitionSpec("data"),
            "bias": PartitionSpec(),
            "odd": PartitionSpec(),
            "first": PartitionSpec("data"),
        },
        "step": PartitionSpec(),
    }


def test_exceptions_match_by_path_and_the_first_counts():
    found = specs([("params/ke", 2), ("bias$", 0), ("params", None)])["params"]
    assert found["kernel"] == PartitionSpec(None, None, "data")
    assert found["bias"] == PartitionSpec("data")
    assert found["square"] == found["first"] == PartitionSpec()


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([("kernle", 0)], "the first to match some array, received 'kernle'"),
        ([("params", None), ("kernel", 2)], "some array, received 'kernel'"),
        ([("kernel", 0)], r"axis that 8 devices divide, received 0 for params/kernel of \(3, 3, 64, 128\)"),
        ([("kernel", 4)], "received 4 for params/kernel"),
        ([("step", 0)], "received 0 for step"),
        ([("(", 0)], r"expected regular expressions, received '\('"),
    ],
)
def test_invalid_exceptions_are_refused(axes, said):
    with pytest.raises(ValueError, match=said):
        sharding.sharded(EIGHT, TREE, axes)


def test_bytes_per_device():
    sharded = sharding.placed(TREE, sharding.sharded(EIGHT, TREE))
    shards = 3 * 3 * 64 * 128 / 8 + 64 * 64 / 8 + 4096 * 3 / 8
    assert sharding.bytes_per_device(sharded) == 4 * (shards + 128 + 3 * 3 * 63 * 129 + 1)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    sharding.check_batch_size(EIGHT, 16)
    with pytest.raises(ValueError, match=r"expected a multiple of 8 \(devices\), received 12"):
        sharding.check_batch_size(EIGHT, 12)
    sharding.check_batch_size(EIGHT, 32, 4)
    with pytest.raises(ValueError, match=r"multiple of 8 \(devices\) x 4 \(--train.accumulate\), received 16"):
        sharding.check_batch_size(EIGHT, 16, 4)
