"""What `dugnad pause` leaves in a peer's home, and who reads it."""

from __future__ import annotations

import os
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from peer.guest import pausing
from protocols.errors import UsageError
from protocols.host.home import Home


def test_a_pause_is_asked_for_and_ended(tmp_path: Path) -> None:
    until = datetime(2026, 11, 25, 13, 0)
    assert pausing.asked(tmp_path) == (False, None)
    pausing.ask(tmp_path, until)
    assert pausing.asked(tmp_path) == (True, until)
    pausing.ask(tmp_path, None)
    assert pausing.asked(tmp_path) == (True, None)
    pausing.end(tmp_path)
    pausing.end(tmp_path)
    assert pausing.asked(tmp_path) == (False, None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"until": "soon"}', '{"until": 5}', "{}"])
def test_a_file_that_cannot_be_read_is_a_pause_without_end(tmp_path: Path, content: str) -> None:
    (tmp_path / "paused.json").write_text(content)
    assert pausing.asked(tmp_path) == (True, None)


@pytest.mark.parametrize(
    ("text", "expected"), [("30m", timedelta(minutes=30)), ("2h", timedelta(hours=2)), (" 1d ", timedelta(days=1))]
)
def test_lengths_of_time(text: str, expected: timedelta) -> None:
    assert pausing.length(text) == expected


@pytest.mark.parametrize("text", ["", "2", "h", "2 weeks", "-1h", "99999h"])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no length of time"):
        pausing.length(text)


def test_only_homes_in_which_a_peer_runs_are_found(tmp_path: Path) -> None:
    for name in ("idle", "busy"):
        with Home.claim(tmp_path / name):
            pass
    (tmp_path / "other").mkdir()
    with Home.claim(tmp_path / "busy"):
        assert pausing.running(tmp_path) == [tmp_path / "busy"]
        assert pausing.running_in(tmp_path / "busy") == [tmp_path / "busy"]
        with pytest.raises(UsageError, match="no peer of yours runs"):
            pausing.running_in(tmp_path / "idle")
    with pytest.raises(UsageError, match="no peer of yours runs"):
        pausing.running(tmp_path)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UsageError):
        pausing.running_in(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_signals_ask_for_a_pause_and_end_it(tmp_path: Path) -> None:
    with pausing.pausing_signals(tmp_path):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert pausing.asked(tmp_path) == (True, None)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert pausing.asked(tmp_path) == (False, None)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
