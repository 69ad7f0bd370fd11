import os
import pathlib
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest
from orbax.checkpoint import v1 as ocp

from ddpm_jax.devices import sharding
from ddpm_jax.runs.checkpoints import Checkpoints

EVERYWHERE = sharding.replicated(sharding.make_mesh())


def state(value):
    return {"params": {"w": jnp.full((1000, 300), value)}, "step": jnp.int32(value)}


ABSTRACT = sharding.abstract(lambda: state(0.0), EVERYWHERE)


def save(folder, *steps, **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(float(step)), {"note": [step]})
    return checkpoints


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_loads_as_a_whole_or_in_part(tmp_path):
    assert Checkpoints(tmp_path / "c").latest is None
    save(tmp_path / "c", 5, 10, 15, keep=2)
    assert names(tmp_path / "c") == ["10", "15"]
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest == 15
        chex.assert_trees_all_equal(checkpoints.load(15, ABSTRACT), state(15.0))
        chex.assert_trees_all_equal(checkpoints.load(10, {"params": ABSTRACT["params"]}), {"params": state(10.0)["params"]})
        assert checkpoints.metadata(15)["note"] == [15]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "c" / "15", check=True)


def test_the_best_are_kept_in_addition(tmp_path):
    with Checkpoints(tmp_path, keep=1, best=2) as checkpoints:
        for step, loss in enumerate([0.5, 0.2, 0.9, 0.1, 0.7, 0.3]):
            checkpoints.save(step, {"step": jnp.int32(step)}, {}, loss)
    assert names(tmp_path) == ["1", "3", "5"]


def test_find_takes_a_step_or_best(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step, loss in enumerate([0.5, 0.2, 0.9]):
            checkpoints.save(step, {"step": jnp.int32(step)}, {}, loss)
        checkpoints.wait()
        assert [checkpoints.find(which) for which in (0, 2, "best")] == [0, 2, 1]
        with pytest.raises(ValueError, match=r"expected best or one of \[0, 1, 2\] in .*, received 3"):
            checkpoints.find(3)
        (tmp_path / "1" / "metadata.json").write_text("{}")
        with pytest.raises(ValueError, match=r"expected an intact one, .*metadata\.json"):
            checkpoints.find(1)
    with pytest.raises(ValueError, match=r"one of \[\] in .*, received best"):
        Checkpoints(tmp_path / "empty").find("best")


def test_a_copy_is_unaffected_by_later_donation(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    now = sharding.create(lambda: state(0.0), EVERYWHERE)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for i in range(1, 4):
            now = step(now)
            copied = checkpoints.copy(i, now)
            now = step(now)
            checkpoints.save(i, copied, {})
            for _ in range(20):
                now = step(now)
            now = sharding.create(lambda i=i: state(float(i)), EVERYWHERE)
    with Checkpoints(tmp_path) as checkpoints:
        for i in range(1, 4):
            chex.assert_trees_all_equal(checkpoints.load(i, ABSTRACT), state(float(i)))


def test_orbax_receives_the_memory_of_the_copy_itself(tmp_path, monkeypatch):
    """On CPU; Orbax writes numpy arrays in half the time."""
    seen, begin = [], ocp.save_checkpointables_async
    recorded = lambda folder, parts, **options: seen.append(parts) or begin(folder, parts, **options)  # noqa: E731
    monkeypatch.setattr(ocp, "save_checkpointables_async", recorded)
    with Checkpoints(tmp_path) as checkpoints:
        copied = checkpoints.copy(5, state(5.0))
        checkpoints.save(5, copied, {})
    [parts] = seen
    assert copied["params"]["w"].unsafe_buffer_pointer() == parts["params"]["w"].ctypes.data


def test_an_unfinished_save_is_skipped_and_deleted_only_by_its_run(tmp_path):
    save(tmp_path, 5, keep=1)
    unfinished = tmp_path / "10.unfinished"
    shutil.copytree(tmp_path / "5", unfinished)
    (tmp_path / "15.unfinished.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).latest == 5
    assert unfinished.exists(), "it may be a save of a run that is alive"
    assert Checkpoints(tmp_path, keep=1).latest == 5
    assert names(tmp_path) == ["5"]


def test_saving_a_step_again_keeps_the_first_save(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5.0), {})
        checkpoints.save(5, state(6.0), {})
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.load(5, ABSTRACT), state(5.0))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink], ids=["truncate", "flip", "unlink"])
def test_if_any_file_is_damaged_the_previous_checkpoint_is_used_and_reported(tmp_path, damage):
    """Any file of a checkpoint, including the checksums; a damaged checkpoint is neither loaded nor deleted."""
    save(tmp_path / "good", 5, 10)
    files = [path.relative_to(tmp_path / "good") for path in (tmp_path / "good" / "10").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"SHA256SUMS", "metadata.json", "_METADATA", "manifest.ocdbt"}
    for number, file in enumerate(files):
        if damage is not pathlib.Path.unlink and not (tmp_path / "good" / file).stat().st_size:
            continue
        folder, said = tmp_path / str(number), []
        shutil.copytree(tmp_path / "good", folder)
        damage(folder / file)
        with Checkpoints(folder, report=said.append) as checkpoints:
            assert [checkpoints.latest, checkpoints.latest] == [5, 5], "and it is reported once"
        assert len(said) == 1, said
        assert f"checkpoint {folder}/10 is damaged, " in said[0]
        assert "step 5 is used instead of 10" in said[0]
        if damage is flip and file.name != "SHA256SUMS":
            assert f"{file.relative_to('10')} fails its checksum" in said[0]


def test_a_damaged_checkpoint_is_set_aside_by_the_next_save(tmp_path):
    save(tmp_path, 5, 10)
    truncate(tmp_path / "10" / "metadata.json")
    with Checkpoints(tmp_path, keep=2, report=lambda line: None) as checkpoints:
        assert checkpoints.latest == 5
        assert names(tmp_path) == ["10", "5"]
        checkpoints.save(8, state(8.0), {})
        checkpoints.save(10, state(11.0), {})
        checkpoints.wait()
        chex.assert_trees_all_equal(checkpoints.load(10, ABSTRACT), state(11.0))
    assert names(tmp_path) == ["10", "10.damaged", "8"]


def test_if_all_are_damaged_it_is_an_error_and_no_fresh_start(tmp_path):
    (tmp_path / "5").mkdir()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"all are damaged: 5: SHA256SUMS is missing"):
        assert checkpoints.latest


def test_a_checkpoint_that_cannot_be_read_is_an_error_and_not_skipped(tmp_path, monkeypatch):
    """It may be intact, for example if a network drive is briefly unavailable."""
    save(tmp_path, 5, 10)

    def away(self, *args, **options):
        raise OSError("Input/output error")

    monkeypatch.setattr(pathlib.Path, "open", away)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(OSError, match="Input/output"):
        assert checkpoints.latest


def test_arrays_of_other_shapes_are_refused_in_one_line(tmp_path):
    save(tmp_path, 5)
    for other in ({"params": {"w": jnp.zeros((7, 3))}}, {"ema": jnp.zeros(3)}):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"checkpoint in .*/5, cannot read it") as e:
            checkpoints.load(5, sharding.abstract(lambda other=other: other, EVERYWHERE))
        assert "\n" not in str(e.value)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting needs a privileged user")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_costs_only_the_save(small_disk):
    key, said = jax.random.key(0), []
    numbers = lambda step: {"w": jax.random.normal(jax.random.fold_in(key, step), (700_000,))}  # 2.8 MB # noqa: E731
    with Checkpoints(small_disk / "c", keep=1, report=said.append) as checkpoints:
        checkpoints.save(1, numbers(1), {})
        checkpoints.wait()
        assert not checkpoints.failed
        (small_disk / "other").write_bytes(bytes(4_000_000))
        checkpoints.save(2, checkpoints.copy(2, numbers(2)), {})
        checkpoints.wait()
        assert checkpoints.failed
        assert names(small_disk / "c") == ["1"], "the good one is kept, and the partial files of the other are deleted"
        assert "CANNOT SAVE step 2" in said[-1]
        assert "step 1 is kept" in said[-1]
        assert len(said) == 1
        (small_disk / "other").unlink()
        checkpoints.save(3, checkpoints.copy(3, numbers(3)), {})
        checkpoints.wait()
        assert not checkpoints.failed
    assert names(small_disk / "c") == ["3"]
    with Checkpoints(small_disk / "c") as checkpoints:
        chex.assert_trees_all_equal(checkpoints.load(3, sharding.abstract(lambda: numbers(3), EVERYWHERE)), numbers(3))


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    with Checkpoints(tmp_path / "file" / "c", keep=1, report=said.append) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(3)}, {})
        checkpoints.wait()
        assert checkpoints.failed
    assert "CANNOT SAVE step 1" in said[0]
    assert "there is no earlier checkpoint" in said[0]


@pytest.mark.skipif(sys.platform != "linux", reason="memory can be limited only on Linux")
def test_a_copy_that_runs_out_of_memory_is_reported(tmp_path):
    """At the first attempt and at a later one, when the error has another type."""
    code = """if True:
        import resource, sys, jax, jax.numpy as jnp
        from ddpm_jax.runs import failures
        from ddpm_jax.runs.checkpoints import Checkpoints
        failures.EVERY = 0.0
        state = {"w": jnp.zeros(2**28)}
        with Checkpoints(sys.argv[1], keep=1, report=print) as checkpoints:
            checkpoints.save(1, {"w": jnp.zeros(3)}, {})
            for step in (2, 3, 4):
                in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                room = resource.RLIM_INFINITY if step == 3 else in_use + 2**29
                resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
                copied = checkpoints.copy(step, state)
                print(step, copied is None, checkpoints.failed)
                del copied
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            checkpoints.save(5, {"w": jnp.zeros(3)}, {})
    """
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True)
    first, second, third, fourth, fifth, last = result.stdout.splitlines()
    assert first.startswith("CANNOT SAVE step 2: ")
    assert first.endswith("; step 1 is kept")
    assert fourth.startswith("CANNOT SAVE step 4: ")
    assert (second, third, fifth) == ("2 True True", "3 False True", "4 True True")
    assert last == "saving works again: step 5 is saved"
    assert names(tmp_path) == ["5"]


def test_a_process_ends_immediately_after_a_failed_save(tmp_path):
    """Orbax threads waiting for a folder that cannot be created would delay it for minutes."""
    (tmp_path / "file").write_text("")
    code = """if True:
        import sys, jax.numpy as jnp
        from ddpm_jax.runs.checkpoints import Checkpoints
        with Checkpoints(sys.argv[1], keep=1, report=print) as checkpoints:
            checkpoints.save(1, {"w": jnp.zeros(3)}, {})
    """
    command = [sys.executable, "-c", code, str(tmp_path / "file" / "c")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith("CANNOT SAVE step 1")
