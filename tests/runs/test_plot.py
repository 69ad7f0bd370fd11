import json
import sys

import pytest
from PIL import Image

from ddpm_jax.config.cli import UsageError
from ddpm_jax.runs import __main__ as script


@pytest.fixture
def runs(tmp_path):
    """Two runs, one of which still writes a line, and has a row without a loss."""
    for name, rate in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [
            {"step": 10 * n, "loss": rate / n, "grad_norm": rate, "learning_rate": 1e-4 * n, "images_per_second": 10 * rate}
            for n in (1, 2, 3)
        ]
        del rows[1]["loss"]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "lo')
    return [str(tmp_path / name) for name in "ab"]


def test_the_metrics_of_runs_become_one_picture(runs, tmp_path, monkeypatch, capsys):
    figure = pytest.importorskip("matplotlib.figure")
    figures, savefig = [], figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *args, **kw: figures.append(self) or savefig(self, *args, **kw))
    out = tmp_path / "plots" / "two.png"
    script.main(["plot", *runs, "--out", str(out)])
    assert capsys.readouterr().out == f"written to {out}\n"
    assert Image.open(out).format == "PNG"
    (drawn,) = figures
    titles = {axes.get_title(): axes for axes in drawn.axes}
    assert set(titles) == {"loss", "grad norm", "learning rate", "images per second"}
    assert [list(line.get_xdata()) for line in titles["loss"].get_lines()] == 2 * [[10, 20, 30]]
    assert [list(line.get_ydata()) for line in titles["grad norm"].get_lines()] == [3 * [1.0], 3 * [2.0]]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == runs


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "expected plot RUN [RUN ...] [--out FILE.png], received nothing"),
        (["show"], "expected plot RUN [RUN ...] [--out FILE.png], received show"),
        (["plot"], "RUN: expected the folder of a run, received nothing"),
        (["plot", "missing"], "RUN: [Errno 2] No such file or directory: 'missing/metrics.jsonl'"),
        (["plot", "a", "--out", "a.pdf"], "--out: expected a .png file, received a.pdf"),
        (["plot", "a", "--to", "a.png"], "--to: expected an option"),
        (["plot", "other"], "RUN: expected an object with a step on each line of other/metrics.jsonl"),
        (["plot", "empty"], "RUN: expected metrics in empty/metrics.jsonl, there are none yet"),
        (["plot", "a", "--out", "a/metrics.jsonl/x.png"], "--out: "),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(runs, tmp_path, monkeypatch, argv, said):
    pytest.importorskip("matplotlib")
    for name, text in (("other", "[3]\n"), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as raised:
        script.main(argv)
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib_the_error_says_how_to_install_it(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r'^plot: expected matplotlib to be installed: pip install -e "\.\[plot\]"$'):
        script.main(["plot", *runs])
