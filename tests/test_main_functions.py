"""train.main, sample.main and evaluate.main as functions: in one process, after JAX was used, in a thread, without memory."""

import json
import signal
import sys
import threading
import warnings

import numpy as np
import pytest

import evaluate
import sample
import train
from ddpm_jax.config.cli import UsageError, parse, run_script

SMALL = [
    "--config", "digits", "--network.channels", "4", "--network.multipliers", "1", "--network.num_blocks", "1",
    "--network.num_groups", "2", "--network.middle", "none", "--train.batch_size", "4", "--train.num_steps", "2",
    "--train.log_every", "1",
    "--train.sample_every", "2", "--checkpoint.every", "2", "--sample.num", "2", "--sample.steps", "2",
    "--diffusion.num_steps", "20",
]  # fmt: skip


def test_all_three_run_in_one_process_and_in_a_thread(tmp_path, capsys):
    failed = []

    def work():
        try:
            train.main(["--workdir", str(tmp_path / "run"), *SMALL])
        except BaseException as error:
            failed.append(error)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    sample.main(["--workdir", str(tmp_path / "run"), "--num", "3", "--out", str(tmp_path / "out")])
    assert np.load(tmp_path / "out" / "samples.npz")["image"].shape == (3, 8, 8, 1)
    evaluate.main(["--workdir", str(tmp_path / "run"), "--num", "2"])
    assert json.loads((tmp_path / "run" / "evaluation" / "2_ema_decay" / "bpd.json").read_text())["bpd"] > 0
    train.main(["--workdir", str(tmp_path / "run")])
    assert "nothing to do: step 2 is reached" in capsys.readouterr().out


def test_command_lines_are_read_one_at_a_time_in_threads():
    outcomes, stderr = [], sys.stderr

    def work(num):
        outcomes.append(parse(sample.Options(), ["--num", str(num)], "", flat="sample").sample.num)

    threads = [threading.Thread(target=work, args=[num]) for num in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [0, 1, 2, 3] and sys.stderr is stderr


def test_a_run_goes_on_with_another_average_and_without_clipping(tmp_path, capsys):
    train.main(["--workdir", str(tmp_path), *SMALL, "--optimizer.clip_norm", "0.001"])
    changed = ["--train.num_steps", "4", "--ema.half_life", "100", "--ema.decay", "0.5", "--optimizer.clip_norm", "None"]
    train.main(["--workdir", str(tmp_path), *changed, "--optimizer.warmup_steps", "0"])
    said = capsys.readouterr().out
    assert "the new EMA half_life_100 starts at the parameters of step 2" in said
    assert "optimizer.clip_norm: 0.001 -> None" in said
    assert {path.name for path in (tmp_path / "checkpoints" / "4").iterdir()} >= {"ema_decay", "ema_half_life_100"}
    with pytest.raises(UsageError, match=r"train.seed: 0 -> 1; without --config and these options it resumes"):
        train.main(["--workdir", str(tmp_path), "--train.seed", "1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network.channels 200000", "--network: expected parameters, optimizer state and EMA of at most .* received .* GB"),
        ("--network.multipliers 1 100000000", "--network"),
        ("--train.batch_size 2000000000", "--train.batch_size: expected images of at most"),
        ("--network.num_classes 100000000000", "--network.num_classes: expected at most 1,000,000"),
        ("--network.num_groups 3", "--network.num_groups: expected a divisor of the channels of every level, received 3 for 4"),
        (
            "--diffusion.zero_terminal_snr True --diffusion.prediction eps",
            "--diffusion.prediction: expected v, x0 or flow with",
        ),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_asked_for(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        train.main(["--workdir", str(tmp_path / "run"), *SMALL, *options.split()])
    assert not list(tmp_path.iterdir())


def test_a_script_ends_with_an_exit_code_not_with_the_process(monkeypatch, capfd):
    def main(argv):
        for _ in range(2):
            warnings.warn("this may\ngo wrong", stacklevel=1)
        raise UsageError("--option: expected one, received two")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 2
    note, error = capfd.readouterr().err.splitlines()
    assert note == "train.py: note: this may go wrong"
    assert error == "train.py: error: --option: expected one, received two"
