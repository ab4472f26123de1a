import re
from pathlib import Path

import pytest

from coordinator.report.picture import write_loss_curve
from coordinator.report.summary import Mark, Summary, smoothed
from coordinator.report.terminal_curve import terminal_loss_curve
from protocols.errors import DiskError

PNG = b"\x89PNG\r\n\x1a\n"


def a_summary(epochs: int = 30, marks: tuple[Mark, ...] = ()) -> Summary:
    train = tuple((epoch, 5 + 4 * 0.9**epoch) for epoch in range(1, epochs + 1))
    held_out = tuple((epoch, loss + 0.1) for epoch, loss in train if epoch % 10 == 0)
    first, last = (held_out[0][1], held_out[-1][1]) if held_out else (None, None)
    return Summary(epochs, 4, epochs * 96, 1, first, last, train, held_out, marks, 61.0, "nats per token")


@pytest.mark.parametrize("epochs", [0, 1, 2, 30])
def test_the_picture_is_written_however_short_the_run(tmp_path: Path, epochs: int) -> None:
    path = write_loss_curve(tmp_path / "new" / "loss.png", a_summary(epochs), unigram_loss=None, title="tiny")
    assert path.read_bytes().startswith(PNG)
    assert [path.name for path in path.parent.iterdir()] == ["loss.png"]


def test_the_picture_takes_names_from_strangers(tmp_path: Path) -> None:
    marks = (
        Mark(-1, "joined", "aa", "from the start", ""),
        Mark(5, "joined", "bb", "$x_{", ""),
        Mark(5, "joined", "cc", "[b]", ""),
        Mark(28, "left", "bb", r"$\frac", "connection-lost"),
    )
    path = write_loss_curve(tmp_path / "loss.png", a_summary(30, marks), unigram_loss=6.4, title=r"$\alpha $ {")
    assert path.read_bytes().startswith(PNG)


def test_a_picture_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="could not be written") as caught:
        write_loss_curve(tmp_path / "file" / "loss.png", a_summary(), unigram_loss=None, title="tiny")
    assert caught.value.remedy


@pytest.mark.parametrize(("width", "height"), [(60, 12), (120, 30)])
def test_the_terminal_curve_keeps_to_its_size(width: int, height: int) -> None:
    lines = terminal_loss_curve(a_summary(), width, height, unigram_loss=6.42, colour=False).split("\n")
    assert len(lines) == height
    assert max(len(line) for line in lines[1:]) == width
    assert "unigram 6.42" in lines[0]
    assert "held-out 5.27" in lines[0]


def test_the_terminal_curve_falls_with_the_loss() -> None:
    lines = terminal_loss_curve(a_summary(), 60, 16, colour=False).split("\n")
    drawn = [[at for at, letter in enumerate(line) if "⠀" <= letter <= "⣿"] for line in lines[1:]]
    columns = [min(row) for row in drawn if row]
    assert len(columns) > 6
    assert columns == sorted(columns)


def test_the_terminal_curve_is_plain_unless_asked_or_on_a_terminal() -> None:
    plain = terminal_loss_curve(a_summary(), 60, 12)
    coloured = terminal_loss_curve(a_summary(), 60, 12, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_terminal_curve_of_a_short_run(epochs: int) -> None:
    assert "training" in terminal_loss_curve(a_summary(epochs), 60, 12)


def test_a_run_without_a_commit_has_no_curve() -> None:
    assert terminal_loss_curve(a_summary(0), 60, 12) == "no epoch has been committed yet"


def test_smoothing_keeps_short_curves_as_they_are() -> None:
    assert smoothed([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    assert smoothed([1.0, 3.0] * 60)[50:52] == pytest.approx([1.8, 2.2])
