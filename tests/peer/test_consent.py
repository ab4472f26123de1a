"""What a volunteer is shown and asked before a run uses the computer, and when not again."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn

from peer.consent import Demands, ask_once, parameters_of
from protocols.errors import UsageError

DIGEST = "ab" * 32


def demands(home: Path, data: str = "your files: mine.txt") -> Demands:
    return Demands("\x1b[2Jlife", "127.0.0.1:1", 1_000_000, 512, 4_000_000, 50_000, home, data)


class Volunteer:
    """Sits at the terminal and gives this answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
        self.asked = 0
        self._answer = answer
        monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
        monkeypatch.setattr(typer, "confirm", self._confirm)

    def _confirm(self, question: str, **options: Any) -> bool:
        self.asked += 1
        return self._answer


def test_what_a_run_wants_is_shown_in_words(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    Volunteer(monkeypatch, True)
    assert ask_once(demands(tmp_path), DIGEST, yes=False)
    shown = capsys.readouterr().err
    for part in (
        "1,000,000 parameters",
        "32.0 MB",
        "8.0 MB each way",
        "480.0 MB an hour",
        "12.0 MB once",
        "your files: mine.txt",
    ):
        assert part in shown
    assert "\x1b[2J" not in shown


def test_a_volunteer_is_asked_once_for_each_run_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volunteer = Volunteer(monkeypatch, True)
    for _ in range(3):
        assert ask_once(demands(tmp_path), DIGEST, yes=False)
    assert volunteer.asked == 1
    ask_once(demands(tmp_path, "your files: other.txt"), DIGEST, yes=False)
    ask_once(demands(tmp_path), "cd" * 32, yes=False)
    assert volunteer.asked == 3


def test_who_declines_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volunteer = Volunteer(monkeypatch, False)
    assert not ask_once(demands(tmp_path), DIGEST, yes=False)
    assert not ask_once(demands(tmp_path), DIGEST, yes=False)
    assert volunteer.asked == 2


def test_yes_agrees_without_a_terminal_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UsageError, match="nobody is at the terminal"):
        ask_once(demands(tmp_path), DIGEST, yes=False)
    assert ask_once(demands(tmp_path), DIGEST, yes=True)
    assert ask_once(demands(tmp_path), DIGEST, yes=False)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_an_answer_that_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "consent.json").write_text(content)
    volunteer = Volunteer(monkeypatch, True)
    assert ask_once(demands(tmp_path), DIGEST, yes=False)
    assert volunteer.asked == 1


def test_a_models_size_is_found_also_where_it_computes_while_it_is_built() -> None:
    def plain() -> nn.Module:
        return nn.Linear(3, 4)

    def computing() -> nn.Module:
        model = nn.Linear(3, 4)
        assert float(model.weight.abs().sum()) > 0
        return model

    for build in (plain, computing):
        task: Any = type("Task", (), {"build_model": staticmethod(build)})()
        assert parameters_of(task) == 16
    assert torch.get_default_device() == torch.device("cpu")
    assert replace(demands(Path("/")), parameters=1).rows()
