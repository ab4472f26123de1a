"""What a command prints when it fails: words of other machines are in it, and must not steer the terminal."""

from __future__ import annotations

import logging
import sys

import pytest
import typer

from protocols.errors import RefusedError
from protocols.host import command
from protocols.host.command import run_app
from protocols.host.readable_log import CleanFormatter

HOSTILE = "no\x1b]0;owned\x07\x1b[2J\x1b]52;c;aGk=\x07 entry"


def test_an_error_with_another_machines_words_prints_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise RefusedError(f"the peer refused: {HOSTILE}", reason="busy", sentence=HOSTILE, remedy="Try\x1b[1m again.")

    monkeypatch.setattr(sys, "argv", ["dugnad"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "error: the peer refused: no" in said and "again." in said
    assert all(letter.isprintable() or letter == "\n" for letter in said)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_a_command_may_open_as_many_files_as_the_system_allows() -> None:
    import resource

    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), most))
        command._allow_open_files()
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    assert allowed == min(most if most != resource.RLIM_INFINITY else command.OPEN_FILES, command.OPEN_FILES)


def test_logs_print_none_either() -> None:
    record = logging.LogRecord("grpc", logging.WARNING, "f.py", 1, "%s breaks the protocol", (HOSTILE,), None)
    line = CleanFormatter("%(message)s").format(record)
    assert line.isprintable() and line.endswith("entry breaks the protocol")
