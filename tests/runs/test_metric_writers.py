import json

import pytest

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
    terminal = metric_writers.Terminal(200)
    terminal.begin(0)
    terminal.advance()
    terminal.write(100, {"loss": 0.123456, "grad_norm": 1.0, "images_per_second": 321.06})
    terminal.say("done")
    terminal.close()
    assert capsys.readouterr().out == "step 100/200  loss 0.1235  images_per_second 321.1\ndone\n"


def test_a_bar_with_loss_and_speed_in_a_terminal(capsys, monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    terminal = metric_writers.Terminal(200)
    terminal.begin(100)
    terminal.advance()
    terminal.write(101, {"loss": 0.123456, "images_per_second": 321.06})
    terminal.close()
    shown = capsys.readouterr().err
    assert "101/200" in shown
    assert "loss=0.1235" in shown
    assert "images_per_second=321.1" in shown
