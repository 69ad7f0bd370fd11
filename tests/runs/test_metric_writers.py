import inspect
import json
import sys
import types

import pytest

from ddpm_jax.config import schema
from ddpm_jax.config.cli import UsageError
from ddpm_jax.runs import metric_writers


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_per_line(tmp_path):
    writer = metric_writers.Jsonl(tmp_path / "metrics.jsonl")
    writer.write(100, {"loss": 0.5, "images_per_second": 10.0})
    writer.write(200, {"loss": 0.25})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 100, "loss": 0.5, "images_per_second": 10.0},
        {"step": 200, "loss": 0.25},
    ], "even before it is closed"
    writer.close()


def test_lines_that_a_full_disk_refused_are_written_later_each_once(tmp_path):
    writer = metric_writers.Jsonl(tmp_path / "metrics.jsonl")
    whole, writer._file = writer._file, Full(5)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space"):
            writer.write(step, {"loss": 0.5})
    begun, writer._file = writer._file.written, whole
    writer._file.write(begun)
    writer.flush()
    writer.flush()
    writer.write(3, {"loss": 0.5})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": step, "loss": 0.5} for step in (1, 2, 3)]


class Full:
    """A file on a disk with room for a given number of bytes."""

    def __init__(self, room):
        self.room, self.written = room, b""

    def write(self, data):
        taken = data[: self.room]
        if not taken:
            raise OSError("No space left on device")
        self.room, self.written = self.room - len(taken), self.written + taken
        return len(taken)


@pytest.mark.parametrize("tail", ["", '{"step": 400, "lo', '{"step": 400}'])
def test_after_resuming_each_step_has_one_line(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (100, 200, 300)) + tail)
    writer = metric_writers.Jsonl(path, step=200)
    writer.write(300, {"loss": 1.0})
    writer.close()
    assert lines(path) == [{"step": 100}, {"step": 200}, {"step": 300, "loss": 1.0}]


@pytest.mark.parametrize("line", ["oops}", '{"loss": 1.0}', "[3}"])
def test_a_file_with_other_content_is_refused_and_kept(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        metric_writers.Jsonl(path)
    assert path.read_text() == line + "\n"


def test_tensorboard_writes_events(tmp_path):
    tensorboardX = pytest.importorskip("tensorboardX")
    assert tensorboardX
    writer = metric_writers.TensorBoard(tmp_path)
    writer.write(1, {"loss": 0.5})
    writer.close()
    (event,) = tmp_path.glob("events.out.tfevents.*")
    assert b"loss" in event.read_bytes()


def test_plain_lines_without_a_terminal(capsys):
    """Rows only change what the lines show; the last row is printed at once."""
    terminal = metric_writers.Terminal(200)
    terminal.begin(99)
    for step in (100, 200):
        terminal.advance(1 if step == 100 else 100)
        terminal.write(step, {"loss": 12.3456 / step, "grad_norm": 1.0, "images_per_second": 321.06})
    terminal.say("done")
    terminal.close()
    line, done = capsys.readouterr().out.splitlines()
    assert line.startswith("step 200/200  loss 0.06173  ") and line.endswith(" elapsed")
    assert done == "done"


def test_a_bar_with_loss_and_speed_in_a_terminal(capsys, monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    terminal = metric_writers.Terminal(200, batch_size=4)
    terminal.begin(100)
    terminal.advance()
    terminal.write(101, {"loss": 0.123456, "images_per_second": 321.06})
    terminal.close()
    shown = capsys.readouterr().err
    assert "101/200" in shown
    assert "loss 0.1235" in shown
    assert " images/s  0:00 elapsed, about 0:" in shown


class StubRun:
    """Stands in for a run of W&B."""

    def __init__(self, **options):
        self.options, self.id, self.logged, self.is_finished = options, options["id"] or "new", [], False

    def log(self, metrics, step):
        if "broken" in metrics:
            raise RuntimeError("the connection\nis lost")
        self.logged.append((step, metrics))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def wandb_runs(monkeypatch):
    """The runs that a stub of the package wandb starts."""
    runs = []
    stub = types.ModuleType("wandb")
    stub.init = lambda **options: runs.append(StubRun(**options)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return runs


def test_a_resumed_run_continues_its_wandb_run(tmp_path, wandb_runs):
    for step in (100, 200):
        *_, writer = metric_writers.make_writers(tmp_path, step - 100, False, "digits", {"train": {"seed": 3}})
        writer.write(step, {"loss": 0.5})
        writer.flush()
        writer.close()
    first, second = wandb_runs
    assert first.options == {
        "project": "digits", "id": None, "resume": "allow", "dir": str(tmp_path), "config": {"train": {"seed": 3}}
    }  # fmt: skip
    assert second.options == first.options | {"id": "new"}
    assert (first.logged, second.logged) == ([(100, {"loss": 0.5})], [(200, {"loss": 0.5})])
    assert first.is_finished and second.is_finished


def test_an_error_of_wandb_is_one_line_at_the_start_and_an_oserror_later(tmp_path, wandb_runs, monkeypatch):
    writer = metric_writers.WandB(tmp_path, "digits")
    with pytest.raises(OSError, match="W&B: the connection"):
        writer.write(1, {"broken": 1.0})

    def no_login(**options):
        raise RuntimeError("api_key not configured (no-tty).\ncall wandb.login()")

    monkeypatch.setattr(sys.modules["wandb"], "init", no_login)
    with pytest.raises(UsageError, match=r"^--train\.wandb: api_key not configured \(no-tty\)\. call wandb\.login\(\)$"):
        metric_writers.WandB(tmp_path, "digits")


def test_the_line_that_installs_a_missing_package_is_that_of_the_help(monkeypatch):
    monkeypatch.setattr(metric_writers.importlib.util, "find_spec", lambda name: None)
    help_text = inspect.getsource(schema.Train)
    for module, extra in (("tensorboardX", "tensorboard"), ("wandb", "wandb")):
        with pytest.raises(ImportError) as raised:
            metric_writers.require(module, extra)
        _, command = str(raised.value).split(": ")
        assert command == f'pip install -e ".[{extra}]"' and command in help_text
