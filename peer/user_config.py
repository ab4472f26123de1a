"""The volunteer's own defaults for `dugnad peer`: one TOML file for all runs, whose keys are the options without their dashes."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
import typer
from typer.core import TyperCommand, TyperOption

from protocols.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIABLE = "DUGNAD_CONFIG"
COMMANDS = ("peer", "doctor", "pause", "resume")


def path() -> Path:
    """$DUGNAD_CONFIG, or config.toml where this system keeps a user's settings."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_config_dir("dugnad")) / "config.toml"


def defaults(commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The default map of the command line: for `peer` all keys, for other commands those that they share with it.

    `commands` are typer's, by name.

    Raises UsageError for a file that cannot be read, a key that is no option of `peer`, or a value that the option refuses.
    """
    file = path()
    settings = _read(file)
    options = _options(commands["peer"])
    for key, value in settings.items():
        if key not in options:
            near = difflib.get_close_matches(key, options, n=1)
            remedy = f"Did you mean {near[0]}?" if near else "Keys are the options of dugnad peer, without the dashes."
            raise UsageError(f"{file}: there is no option {key!r}", remedy=remedy)
        _check(file, key, options[key], value)
    return {
        name: {str(option.name): settings[key] for key, option in _options(commands[name]).items() if key in settings}
        for name in COMMANDS
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if VARIABLE in os.environ:
            raise UsageError(f"there is no file {file}", remedy=f"Correct ${VARIABLE}, or unset it.") from error
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read: {error}", remedy="Write a line for each option, such as: max-upload = 5"
        ) from error


def _options(command: Any) -> dict[str, TyperOption]:
    """By their names on the command line, without the dashes."""
    options = [option for option in command.params if isinstance(option, TyperOption) and not option.hidden]
    return {max(option.opts, key=len).lstrip("-"): option for option in options}


def _check(file: Path, key: str, option: TyperOption, value: Any) -> None:
    try:
        option.process_value(typer.Context(TyperCommand("peer")), value)
    except typer.BadParameter as error:
        remedy = "dugnad peer --help says what it takes."
        raise UsageError(f"{file}: {key} = {value!r}: {error.message}", remedy=remedy) from error
