"""The volunteer's own defaults: what the file may say, and that the command line comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

import dugnad
from peer import user_config
from protocols.errors import UsageError

COMMANDS: dict[str, Any] = typer.main.get_command(dugnad.app).commands  # type: ignore[attr-defined]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("DUGNAD_CONFIG", str(path))
    return path


def defaults(file: Path, text: str) -> dict[str, dict[str, Any]]:
    file.write_text(text)
    return user_config.defaults(COMMANDS)


def test_keys_are_options_and_every_command_takes_those_that_it_has(file: Path) -> None:
    found = defaults(
        file, 'max-upload = 5\nhours = "22:00-07:00"\ndata = ["a.txt", "b.txt"]\ncompile = false\nhome = "/srv/peer"\n'
    )
    assert found["peer"] == {
        "max_upload": 5,
        "hours": "22:00-07:00",
        "data": ["a.txt", "b.txt"],
        "compiled": False,
        "home": "/srv/peer",
    }
    assert found["pause"] == {"home": "/srv/peer"}
    assert found["doctor"] == {"data": ["a.txt", "b.txt"], "max_upload": 5}


def test_every_option_of_peer_is_a_key(file: Path) -> None:
    keys = user_config._options(COMMANDS["peer"])
    assert {"max-transfer", "on-battery", "yes", "device", "compile", "load"} <= set(keys)
    assert "start-from" not in keys


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("max_upload = 5", "no option 'max_upload'", "max-upload"),
        ("colour = 1", "no option 'colour'", "without the dashes"),
        ('threads = "many"', "threads = 'many'", "--help"),
        ("load = 500", "load = 500", "--help"),
        ('precision = "fp8"', "precision = 'fp8'", "--help"),
        ("threads", "cannot be read", "such as"),
    ],
)
def test_what_is_wrong_in_it_is_named_with_the_file(file: Path, text: str, cause: str, remedy: str) -> None:
    with pytest.raises(UsageError) as refused:
        defaults(file, text)
    assert cause in str(refused.value) and str(file) in str(refused.value)
    assert remedy in refused.value.remedy


def test_no_file_is_no_defaults_unless_one_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        user_config.defaults(COMMANDS)
    monkeypatch.delenv("DUGNAD_CONFIG")
    monkeypatch.setattr(user_config.platformdirs, "user_config_dir", lambda name: str(tmp_path / "none"))
    assert user_config.defaults(COMMANDS) == {name: {} for name in user_config.COMMANDS}


def test_the_command_line_comes_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('hours = "25:00"\n')
    told = []
    for arguments in (["peer", "x"], ["peer", "x", "--hours", "1:00-2:00"]):
        context = typer.Context(COMMANDS["peer"], default_map=user_config.defaults(COMMANDS)["peer"])
        COMMANDS["peer"].parse_args(context, arguments[1:])
        told.append(context.params["hours"])
    assert told == ["25:00", "1:00-2:00"]
