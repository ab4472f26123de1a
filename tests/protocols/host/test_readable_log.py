"""The log for people."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import pytest

from protocols.errors import DiskError
from protocols.host import readable_log
from protocols.host.readable_log import OLDER_FILES, screen


def test_the_screens_lines_and_all_warnings_are_kept_with_times(tmp_path: Path) -> None:
    with readable_log.readable_log(tmp_path / "peer.log"):
        screen.info("caught up at epoch 3")
        logging.getLogger("some.library").warning("mind this")
        logging.getLogger("some.library").debug("not this")
    screen.info("too late")
    lines = (tmp_path / "peer.log").read_text().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO caught up at epoch 3", lines[0])
    assert re.fullmatch(r"\S+Z WARN(ING)? mind this", lines[1]), "hivemind renames the level where it is imported"


def test_on_a_terminal_warnings_leave_the_screen_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    shown = logging.StreamHandler(out)
    logging.getLogger().addHandler(shown)
    try:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with readable_log.readable_log(tmp_path / "peer.log"):
            logging.getLogger("some.library").warning("during")
        logging.getLogger("some.library").warning("after")
        assert out.getvalue() == "after\n"
    finally:
        logging.getLogger().removeHandler(shown)


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable_log, "FILE_BYTES", 500)
    with readable_log.readable_log(tmp_path / "peer.log"):
        for number in range(200):
            screen.info("line %d", number)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["peer.log", *(f"peer.log.{number}" for number in range(1, OLDER_FILES + 1))]
    assert all(file.stat().st_size <= 500 for file in tmp_path.iterdir())
    assert (tmp_path / "peer.log").read_text().splitlines()[-1].endswith("line 199")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"peer\.log cannot be written"), readable_log.readable_log(tmp_path / "no" / "peer.log"):
        pass
