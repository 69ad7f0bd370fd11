import time

import chex
import jax
import jax.numpy as jnp
import pytest

from ddpm_jax import sharding
from ddpm_jax.checkpoint import Checkpoints

EVERYWHERE = sharding.replicated(sharding.make_mesh())


def state(value):
    return {"params": {"w": jnp.full((1000, 300), value)}, "step": jnp.int32(value)}


ABSTRACT = sharding.abstract(lambda: state(0.0), EVERYWHERE)


def test_what_was_saved_is_loaded_whole_or_in_part(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in (5, 10, 15):
            checkpoints.save(step, state(float(step)), {"note": [step]})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["10", "15"]
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest == 15
        chex.assert_trees_all_equal(checkpoints.load(15, ABSTRACT), state(15.0))
        chex.assert_trees_all_equal(checkpoints.load(10, {"params": ABSTRACT["params"]}), {"params": state(10.0)["params"]})
        assert checkpoints.metadata(15) == {"note": [15]}


def test_a_save_holds_the_state_of_its_moment_whatever_is_donated_meanwhile(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    now = sharding.create(lambda: state(0.0), EVERYWHERE)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for i in range(1, 4):
            now = step(now)
            checkpoints.save(i, now, {})
            for _ in range(20):
                now = step(now)
            now = sharding.create(lambda i=i: state(float(i)), EVERYWHERE)
    with Checkpoints(tmp_path) as checkpoints:
        for i in range(1, 4):
            chex.assert_trees_all_equal(checkpoints.load(i, ABSTRACT), state(float(i)))


def test_an_unfinished_save_is_passed_over_and_removed_by_the_run_alone(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(5, state(5.0), {})
    unfinished = tmp_path / "10.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "part").write_text("half")
    with Checkpoints(tmp_path) as reader:
        assert reader.latest == 5
        assert unfinished.exists(), "it may be a save of a run that is alive"
    with Checkpoints(tmp_path, keep=1) as writer:
        assert writer.latest == 5
    deadline = time.monotonic() + 20
    while unfinished.exists() and time.monotonic() < deadline:  # Orbax removes it in the background
        time.sleep(0.05)
    assert not unfinished.exists()


def test_saving_a_step_again_leaves_it_as_it_is(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5.0), {})
        checkpoints.save(5, state(6.0), {})
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.load(5, ABSTRACT), state(5.0))


def damage_arrays(folder):
    for file in (folder / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_metadata(folder):
    for file in folder.rglob("_METADATA"):
        file.write_text("{")


@pytest.mark.parametrize("damage", [damage_arrays, damage_metadata])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5.0), {})
    damage(tmp_path / "5")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"checkpoint in .*/5, cannot read it") as e,
    ):
        checkpoints.load(5, ABSTRACT)
    assert "\n" not in str(e.value)


def test_a_folder_with_a_checkpoints_name_is_never_taken_for_a_fresh_start(tmp_path):
    (tmp_path / "5").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 5
        with pytest.raises(ValueError, match=r"/5, cannot read it"):
            checkpoints.load(5, ABSTRACT)


def test_other_shapes_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5.0), {})
        other = sharding.abstract(lambda: {"params": {"w": jnp.zeros((7, 3))}}, EVERYWHERE)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="checkpoint"):
        checkpoints.load(5, other)
