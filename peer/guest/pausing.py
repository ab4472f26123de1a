"""A pause that the owner asks for: a file in the peer's home, so that any process can ask and a restart does not end it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from protocols.errors import UsageError
from protocols.host.files import write_durably
from protocols.host.home import Home

_FILE = "paused.json"
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def ask(home: Path, until: datetime | None) -> None:
    """Until then, or until `end`."""
    write_durably(home / _FILE, json.dumps({"until": until.isoformat() if until is not None else None}).encode())


def end(home: Path) -> None:
    (home / _FILE).unlink(missing_ok=True)


def asked(home: Path) -> tuple[bool, datetime | None]:
    """(whether a pause was asked for, until when)"""
    try:
        until = json.loads((home / _FILE).read_bytes())["until"]
        return True, datetime.fromisoformat(until) if until is not None else None
    except OSError:
        return False, None
    except (ValueError, TypeError, KeyError):  # somebody wrote it by hand: a pause is what was meant
        return True, None


@contextmanager
def pausing_signals(home: Path) -> Iterator[None]:
    """While entered, SIGUSR1 asks for a pause and SIGUSR2 ends it, where the system has these. Only on the main thread."""
    if not hasattr(signal, "SIGUSR1"):
        yield
        return
    acts = {signal.SIGUSR1: lambda *_: ask(home, None), signal.SIGUSR2: lambda *_: end(home)}
    before = {number: signal.signal(number, act) for number, act in acts.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def length(text: str) -> timedelta:
    """From "90m", "2h" or "1d". Raises UsageError."""
    match = re.fullmatch(r"(\d{1,4})([mhd])", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no length of time", remedy="Write 30m, 2h or 1d.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def running(homes: Path) -> list[Path]:
    """The homes in the folder `homes` in which a peer runs. Raises UsageError when there is none."""
    return _some(home for home in sorted(homes.glob("*")) if home.is_dir() and Home.is_claimed(home))


def running_in(home: Path) -> list[Path]:
    """Raises UsageError when no peer runs in `home`."""
    return _some(iter([home] if Home.is_claimed(home) else []))


def _some(homes: Iterator[Path]) -> list[Path]:
    found = list(homes)
    if not found:
        raise UsageError("no peer of yours runs on this computer", remedy="If it has a folder of its own, give --home.")
    return found
