"""train.py and sample.py as their users run them: real processes, real files."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, run, run_inside

SMALL = [
    "--network.channels", "8", "--network.multipliers", "1", "--network.num_blocks", "1", "--network.num_groups", "4",
    "--network.middle", "none", "--train.batch_size", "8", "--train.log_every", "2", "--sample.num", "4",
    "--sample.sampler", "ddim", "--sample.steps", "5", "--optimizer.decay", "constant", "--optimizer.warmup_steps", "1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def this_package():
    """The runs below are of the package that lies here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


def train(workdir, *args, run=run_inside):
    return run("train.py", "--config", "digits", "--workdir", workdir, *SMALL, *args)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def digest(folder):
    """The names and contents of all files, but for the lock."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    result = train(workdir, "--train.num_steps", 6, "--checkpoint.every", 4, "--train.sample_every", 4, run=run)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_training_leaves_what_it_should(trained):
    workdir, result = trained
    assert [m["step"] for m in metrics(workdir)] == [2, 4, 6]
    assert all(m["loss"] > 0 and m["grad_norm"] > 0 and m["images_per_second"] > 0 for m in metrics(workdir))
    assert json.loads((workdir / "config.json").read_text())["train"]["num_steps"] == 6
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "6"]
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == ["4.png", "6.png"]
    assert Image.open(workdir / "samples" / "6.png").size == (510, 510)
    assert "step 6/6  loss" in result.stdout, "plain lines where there is no terminal"
    assert "\r" not in result.stdout + result.stderr


def test_the_same_command_goes_on_to_the_same_end(trained, tmp_path):
    """In two parts, with metrics of steps that were never saved: the same losses and the same picture as in one."""
    workdir, _ = trained
    first = train(tmp_path, "--train.num_steps", 4, "--checkpoint.every", 4, "--train.sample_every", 4)
    assert first.returncode == 0, first.stderr
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')
    second = train(tmp_path, "--train.num_steps", 6, "--checkpoint.every", 4, "--train.sample_every", 4, run=run)
    assert second.returncode == 0, second.stderr
    assert "from step 4 to 6" in second.stdout
    assert "train.num_steps: 4 -> 6" in second.stdout
    whole, parts = ([(m["step"], m["loss"]) for m in metrics(folder)] for folder in (workdir, tmp_path))
    assert whole == parts
    assert (workdir / "samples" / "6.png").read_bytes() == (tmp_path / "samples" / "6.png").read_bytes()


def test_training_that_has_ended_stays_as_it_is(trained):
    workdir, _ = trained
    before = digest(workdir)
    again = train(workdir, "--train.num_steps", 6, "--checkpoint.every", 4, "--train.sample_every", 4)
    assert again.returncode == 0, again.stderr
    assert digest(workdir) == before


def test_the_papers_experiments_are_drawn(trained, tmp_path):
    workdir, _ = trained
    draw = lambda *args: run_inside("sample.py", "--workdir", workdir, "--out", tmp_path, "--num", 3, *args)  # noqa: E731
    sizes = {"film": (5, 3), "shared": (2, 2), "interpolate": (13, 3), "slerp": (4, 1), "coding": (5, 3)}
    options = {
        "film": (5, "--guidance", 2),
        "shared": (500, "--sampler", "ddpm", "--label", 3, "--guidance", 2),
        "interpolate": (500, "--label", 3),
    }
    options |= {"slerp": (2, "--label", 3), "coding": (4,)}
    for name, (columns, rows) in sizes.items():
        result = draw(f"--{name}", *options[name])
        assert result.returncode == 0, result.stderr
        scale = max(512 // (columns * 9 - 1), 1)
        assert Image.open(tmp_path / f"{name}.png").size == ((columns * 9 - 1) * scale, (rows * 9 - 1) * scale)
    assert result.stdout.count("bits/dim") == 4
    film = Image.open(tmp_path / "film.gif")
    assert (film.is_animated, film.n_frames) == (True, 5)


def test_sampling_needs_the_workdir_alone(trained, tmp_path):
    workdir, _ = trained
    draw = lambda out, *args: run_inside("sample.py", "--workdir", workdir, "--out", tmp_path / out, *args)  # noqa: E731
    alone = run("sample.py", "--workdir", workdir, "--out", "a", "--num", 5, "--batch-size", 4, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert draw("b", "--num", 3, "--batch-size", 3).returncode == 0
    assert draw("c", "--num", 3, "--seed", 1).returncode == 0
    assert draw("d", "--num", 3, "--sampler", "ddpm", "--steps", 5, "--variance", "fixed_small").returncode == 0
    a, b, c, d = (np.load(tmp_path / name / "samples.npz")["image"] for name in "abcd")
    assert a.shape == (5, 8, 8, 1)
    assert a.dtype == np.uint8
    assert np.abs(a[:3].astype(int) - b).max() <= 1, "image i is the same for any number and batch size"
    assert not np.array_equal(b, c)
    assert not np.array_equal(b, d)
    assert Image.open(tmp_path / "a" / "grid.png").size == (3 * 19 * 9 - 19, 2 * 19 * 9 - 19), "enlarged 19 times"
    earlier = draw("f", "--num", 1, "--checkpoint", 4)
    assert "1 images from step 4 of" in earlier.stdout
    assert "compiled the sampler in" in earlier.stdout
    eight = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    assert run("sample.py", "--workdir", workdir, "--num", 8, "--out", tmp_path / "e", env=eight).returncode == 0
    e = np.load(tmp_path / "e" / "samples.npz")["image"]
    assert np.abs(e[:5].astype(int) - a).max() <= 1, "on eight devices too"


def test_a_killed_run_of_sampling_goes_on_to_the_same_images(trained, tmp_path):
    command = [sys.executable, str(ROOT / "sample.py"), "--workdir", str(trained[0]), "--num", "40", "--batch-size", "2"]
    command += ["--first", "3", "--guidance", "2", "--png", "True", "--out"]
    with subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").rglob("*.npy"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
    left = sorted((tmp_path / "killed" / "unfinished").glob("*.npy"))
    assert 3 <= len(left) <= 21 and not (tmp_path / "killed" / "samples.npz").exists()
    os.utime(left[0], ns=(1, 1))
    before = left[0].read_bytes()
    left[0].write_bytes(before[:-2] + b"ab")  # so that it shows whether it is drawn again
    for folder in ("killed", "whole"):
        result = subprocess.run([*command, str(tmp_path / folder)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    killed, whole = (np.load(tmp_path / folder / "samples.npz")["image"] for folder in ("killed", "whole"))
    assert whole.shape == (40, 8, 8, 1)
    assert killed[0].reshape(-1)[-2:].tolist() == list(b"ab"), "what was drawn stays"
    np.testing.assert_array_equal(killed[1:], whole[1:])
    np.testing.assert_array_equal(Image.open(tmp_path / "whole" / "images" / "000042.png"), whole[-1, ..., 0])


def test_an_image_is_filled_in_and_departed_from(trained, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :5] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(0 * mask).save(tmp_path / "black.png")
    Image.fromarray(mask[:4]).save(tmp_path / "half.png")
    common = ["sample.py", "--workdir", trained[0], "--num", 3, "--init-image", "x.png"]
    draw = lambda *args: run_inside(*common, *args, cwd=tmp_path)  # noqa: E731
    assert draw("--inpaint", "mask.png", "--out", "filled").returncode == 0
    assert draw("--strength", 0, "--out", "same").returncode == 0
    assert draw("--strength", 0.6, "--out", "edited").returncode == 0
    filled, same, edited = (np.load(tmp_path / name / "samples.npz")["image"][..., 0] for name in ("filled", "same", "edited"))
    np.testing.assert_array_equal(filled[:, :, :5], np.tile(image[:, :5], (3, 1, 1)))
    assert np.std(filled[:, :, 5:], axis=0).mean() > 1
    np.testing.assert_array_equal(same, np.tile(image, (3, 1, 1)))
    assert not np.array_equal(edited, same)
    mistakes = {
        ("--inpaint", "black.png"): "--inpaint: mask: expected 1 where pixels are known, received zeros alone",
        ("--inpaint", "half.png"): "--inpaint: expected an image 8 wide and 8 high",
        ("--strength", "1.5"): "--strength: expected 0 to 1, received 1.5",
        ("--inpaint", "mask.png", "--strength", "1"): "--strength: expected without --inpaint",
    }
    for args, said in mistakes.items():
        result = draw(*args, "--out", "none")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert said in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--train.num_stepz", "3"], "--train.num_stepz: expected an option, perhaps --train.num_steps"),
        (["--train.batch_size", "many"], "--train.batch_size"),
        (["--train.batch_size", "0"], "--train.batch_size: expected a positive number, received 0"),
        (["--config", "mnist"], "--config: expected a file.py or one of"),
        (["--data.source", "folder", "--data.image_size", "8", "--data.path", "missing"], "--data.path: "),
        (["--data.source", "folder", "--data.image_size", "8", "--data.path", "empty"], "--data.path: "),
        (["--data.source", "folder", "--data.path", "empty"], "--data.image_size: expected"),
        (["--data.source", "npz", "--data.path", "ragged.npz"], "--data.path: "),
        (["--data.source", "npz"], "--data.path: expected an .npz file, received nothing"),
        (["--data.source", "tfds", "--data.name", "cifar10", "--data.data_dir", "empty"], "download_and_prepare"),
        (["--network.multipliers", "1", "1", "1", "1", "1"], "--network.multipliers: 5 levels expected"),
        (["--data.source", "folder", "--data.image_size", "8", "--data.path", "broken"], "--data: none of the 1 images"),
        (["--network.channels", "9"], "--network.num_groups: expected a divisor of the channels"),
        (["--loss.kind", "hybrid"], "--loss.kind: expected --diffusion.variance learned"),
        (["--diffusion.variance", "learned"], "--loss.kind: expected hybrid or vlb"),
        (["--loss.kind", "vlb", "--loss.distance", "l1"], "--loss.kind: expected simple or hybrid with"),
        (["--data.split", "validation"], "--data.split: split: expected all, train or test"),
        (["--sample.steps", "1001"], "--sample.steps: num_steps: expected 1 to 1000"),
        (["--sample.sampler", "ddim", "--sample.eta", "2"], "--sample.eta: "),
        (["--train.num_steps", "0"], "--train.num_steps: expected a positive number"),
    ],
)
def test_a_mistake_in_training_is_one_line_and_writes_nothing(tmp_path, args, said):
    (tmp_path / "empty").mkdir()
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros((2, 2), np.uint8), np.zeros((3, 3), np.uint8)]
    np.savez(tmp_path / "ragged.npz", image=ragged)
    (tmp_path / "broken").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "broken" / "0.png")
    (tmp_path / "broken" / "0.png").write_bytes((tmp_path / "broken" / "0.png").read_bytes()[:500])
    before = sorted(tmp_path.rglob("*"))
    start = run if "broken" in args else run_inside  # here pytest would keep the warning
    result = start("train.py", "--config", "digits", "--workdir", "run", *SMALL, *args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    *warnings, error = result.stderr.splitlines()
    assert error.startswith("train.py: error: ")
    assert said in error
    assert bool(warnings) == ("broken" in args), "the damaged file is named first"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--num", "0"], "--num: expected at least 1, received 0"),
        (["--batch-size", "0"], "--batch_size: expected at least 1"),
        (["--workdir", "nowhere"], "--workdir: expected a folder that train.py has saved checkpoints in"),
        (["--steps", "0"], "--steps: num_steps: expected 1 to 1000"),
        (["--eta", "2", "--sampler", "ddim"], "error: --eta: eta: expected 0 to 1"),
        (["--seed", "99999999999999999999"], "--seed: expected 0 to 4294967295"),
        (["--eta", "0.5", "--sampler", "ddpm"], "--eta: expected with --sampler ddim"),
        (["--nmu", "3"], "--nmu: expected an option, perhaps --num"),
        (["--sampler", "ddmp"], "--sampler"),
        (["--sampler", "unipc", "--order", "4"], "error: --order: order: expected 1, 2 or 3"),
        (["--sampler", "unipc", "--order", "3", "--steps", "2"], "--steps: levels: unipc expected at least 3 steps"),
        (["--order", "2"], "--order: expected with --sampler dpm_solver_pp or"),
        (["--film", "0"], "--film: expected at least 1, received 0"),
        (["--first", "-1"], "--first: expected 0 or more"),
        (["--sampler", "analytic_dpm", "--gamma_images", "0"], "--gamma_images: expected at least 1, received 0"),
        (["--jump_length", "3"], "--jump_length: expected with --resamplings, received without"),
        (["--label", "10"], "error: --label: expected classes in 0..9, received (10,)"),
        (["--strength", "0.5"], "--strength: expected with --init-image"),
        (["--init-image", "missing.png"], "--init-image: "),
        (["--slerp", "3", "--sampler", "ddpm"], "--slerp: expected a sampler without noise, received ddpm"),
        (["--film", "3", "--coding", "3"], "--film: expected one experiment at a time"),
        (["--interpolate", "-1"], "--interpolate: t: expected at least 0"),
        (["--variance", "learned", "--sampler", "ddpm"], "--variance: expected fixed_small or fixed_large"),
        (["--checkpoint", "5"], "checkpoint: expected best or one of [4, 6] in "),
        (["--checkpoint", "worst"], "--checkpoint"),
    ],
)
def test_a_mistake_in_sampling_is_one_line_and_writes_nothing(trained, tmp_path, args, said):
    result = run_inside("sample.py", "--workdir", trained[0], *args, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("sample.py: error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_another_config_and_a_damaged_checkpoint_are_refused_and_nothing_is_overwritten(trained, tmp_path):
    workdir = tmp_path / "copy"
    subprocess.run(["cp", "-r", trained[0], workdir], check=True)
    before = digest(workdir)
    other = train(workdir, "--train.num_steps", 8, "--train.seed", 1, "--diffusion.prediction", "x0")
    assert other.returncode == 2
    assert "--workdir: " in other.stderr
    assert "diffusion.prediction: " in other.stderr
    assert "train.seed: 0 -> 1" in other.stderr
    assert digest(workdir) == before
    for step in (4, 6):
        (workdir / "checkpoints" / str(step) / "params" / "_METADATA").write_text("{")
    before = digest(workdir)
    damaged = train(workdir, "--train.num_steps", 8)
    assert damaged.returncode == 2
    assert damaged.stderr.startswith("train.py: error: --workdir: expected an intact checkpoint in ")
    assert "all are damaged: 4: params/_METADATA fails its checksum; 6: " in damaged.stderr
    assert damaged.stderr.count("\n") == 1
    assert digest(workdir) == before


def test_the_checkpoint_before_a_damaged_one_is_taken_in_training_and_in_sampling(trained, tmp_path):
    workdir = tmp_path / "copy"
    subprocess.run(["cp", "-r", trained[0], workdir], check=True)
    (workdir / "checkpoints" / "6" / "params" / "_METADATA").write_text("{")
    said = f"checkpoint {workdir}/checkpoints/6 is damaged, params/_METADATA fails its checksum: step 4 is used"
    drawn = run("sample.py", "--workdir", workdir, "--out", tmp_path, "--num", 1, "--steps", 2)
    assert drawn.returncode == 0, drawn.stderr
    assert said in drawn.stderr
    again = train(workdir, "--train.num_steps", 6, "--checkpoint.every", 4, "--train.sample_every", 4)
    assert again.returncode == 0, again.stderr
    assert said in again.stdout
    whole, parts = ([(m["step"], m["loss"]) for m in metrics(folder)] for folder in (trained[0], workdir))
    assert whole == parts
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "6", "6.damaged"]


def test_a_file_that_is_no_image_is_named_and_the_run_goes_on(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "pictures" / "notes.png").write_text("no image")
    result = train(
        tmp_path / "run", "--data.source", "folder", "--data.path", tmp_path / "pictures", "--data.image_size", 8,
        "--train.num_steps", 2, "--data.random_flip", "True", "--network.num_classes", "None", run=run,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "notes.png" in result.stderr
    assert "5 images of (8, 8, 3)" in result.stdout


def test_cifar10_trains_from_tfds_without_tensorflow(tmp_path):
    result = run_inside(
        "train.py", "--config", "cifar10", "--workdir", tmp_path, *SMALL, "--train.num_steps", 3,
        "--data.data_dir", ROOT / "tests" / "data" / "fixtures" / "tfds",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "images of (32, 32, 3)" in result.stdout
    assert metrics(tmp_path)[-1]["step"] == 3


def test_real_cifar10_trains_through_npz_and_the_loss_falls(test_data, tmp_path):
    unpack = test_data / "data" / "unpack.py"
    subprocess.run([sys.executable, str(unpack), "cifar10", str(tmp_path / "cifar10")], check=True)
    result = run(
        "train.py", "--config", "npz", "--workdir", tmp_path / "run", *SMALL, "--data.path", tmp_path / "cifar10" / "train.npz",
        "--network.channels", 16, "--train.batch_size", 16, "--train.num_steps", 150, "--train.log_every", 25,
        "--train.sample_every", 150, "--optimizer.learning_rate", 2e-3, "--optimizer.warmup_steps", 20,
        "--diffusion.schedule", "linear", "--diffusion.prediction", "eps",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "50,000 images of (32, 32, 3)" in result.stdout
    losses = [m["loss"] for m in metrics(tmp_path / "run")]
    assert losses[0] > 2 * losses[-1]
    assert losses[-1] < 0.2


def test_tensorboard_and_a_progress_bar_in_a_terminal(tmp_path):
    pytest.importorskip("tensorboardX")
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 120))
    command = [sys.executable, str(ROOT / "train.py"), "--config", "digits", "--workdir", str(tmp_path), *SMALL]
    command += ["--train.num_steps", "4", "--train.tensorboard", "True"]
    with subprocess.Popen(command, stdout=child, stderr=child) as process:
        os.close(child)
        shown = b""
        while chunk := _read(parent):
            shown += chunk
    assert process.returncode == 0, shown.decode()
    assert b"4/4" in shown
    assert b"loss " in shown
    assert b" images/s" in shown
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_programs_are_kept_in_the_users_folder_unless_the_environment_says_otherwise(tmp_path):
    """As a script: the second process compiles nothing, finding what the first has left."""
    code = """if True:
        import sys, jax
        from ddpm_jax.config.cli import run_script
        compiled = []
        jax.monitoring.register_event_listener(lambda event, **_: compiled.append(event.endswith("cache_misses")))
        run_script(lambda argv: jax.block_until_ready(jax.jit(lambda x: 3 * x)(jax.numpy.arange(3))))
        print(sum(compiled))
    """
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "caches"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    del env["JAX_COMPILATION_CACHE_DIR"]

    def misses(**environment):
        command = [sys.executable, "-c", code]
        return int(subprocess.run(command, env=env | environment, capture_output=True, text=True, check=True).stdout)

    assert misses(JAX_COMPILATION_CACHE_DIR="") == 0, "turned off"
    assert misses(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) > 0
    assert list((tmp_path / "mine").iterdir()) and not (tmp_path / "caches").exists()
    assert misses() > 0
    assert misses() == 0
    assert list((tmp_path / "caches" / "ddpm_jax").iterdir())


def test_help_answers_at_once_and_lists_the_options():
    result = run("train.py", "--config", "digits", "--help")
    assert result.returncode == 0
    assert "--train.num_steps" in result.stdout
    assert "8x8 handwritten digits" in result.stdout
    assert "--train.num_steps" in run("train.py").stdout
    assert "--num" in run("sample.py", "--help").stdout


def test_help_into_a_pipe_that_closes_early_is_no_traceback():
    command = f"{sys.executable} {ROOT / 'train.py'} --help | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout.startswith("usage: ") and result.stderr == ""
