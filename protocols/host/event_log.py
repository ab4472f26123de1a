"""The event log: a file of JSON lines that say what happened, when, and why. Each peer and each coordinator keeps one.

Times in the file are ISO 8601 in UTC with milliseconds. docs/EVENTS.md lists the events.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from protocols.errors import DiskError
from protocols.round.records import Commit

logger = logging.getLogger(__name__)
_TIME = "%Y-%m-%dT%H:%M:%S.%f%z"


class EventLog:
    """Appends events to `path`, from any thread. The operating system has the line when a call returns."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, max_bytes: int | None = None) -> None:
        """`max_bytes`: a file that has grown so large becomes the older one, NAME.1.jsonl, and a new one begins."""
        self.path = path
        self._clock = clock
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._torn = _ends_torn(self.path)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _disk_error(self.path, error) from error

    def record(self, event: str, /, **fields: Any) -> dict[str, Any]:
        """Append one event that happens now, and return it as written. Raises DiskError: see `append`."""
        record = event_record(self._clock(), event, fields)
        self.append(record)
        return record

    def append(self, record: Mapping[str, Any]) -> None:
        """Append an `event_record`. Raises DiskError if it was not written whole; the next call starts a line of its own."""
        at = datetime.fromtimestamp(record["time"], timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({**record, "time": at}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._lock:
            if self._max_bytes is not None and os.fstat(self._file).st_size + len(line) > self._max_bytes:
                self._begin_anew()
            if self._torn:
                line = b"\n" + line
            self._torn = True
            try:
                written = os.write(self._file, line)
            except OSError as error:
                raise _disk_error(self.path, error) from error
            if written != len(line):
                raise DiskError(f"{self.path} could not be written whole", remedy="Free some space on that disk.")
            self._torn = False

    def _begin_anew(self) -> None:
        try:
            self.path.replace(_older(self.path))
        except OSError as error:
            raise _disk_error(self.path, error) from error
        os.close(self._file)
        self._open()

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def event_record(at: float, event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """An event as plain JSON values. `at` is in Unix seconds; a number that is not finite becomes None."""
    return {"time": at, "event": event, **_plain(dict(fields))}


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every whole event in the file and in the older one beside it, oldest first, with `time` in Unix seconds. Raises
    DiskError if it cannot be read.

    A line torn by a crash or a full disk is skipped with a warning.
    """
    if _older(path).exists():
        yield from read_events(_older(path))
    try:
        file = path.open("rb")
    except OSError as error:
        raise DiskError(
            f"the event log {path} cannot be read: {error.strerror}", remedy="Check the path of the run's folder."
        ) from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record["event"], str):
                    raise TypeError("not an event")
                record["time"] = datetime.strptime(record["time"], _TIME).timestamp()
            except (ValueError, KeyError, TypeError):
                logger.warning("history-line-skipped: line %d of %s is no event (torn by a crash?)", number, path)
                continue
            yield record


def commit_fields(commit: Commit) -> dict[str, Any]:
    """The fields of a commit's event in the log."""
    return {
        "epoch": commit.ballot.epoch,
        "lineage": commit.digest,
        "parent": commit.ballot.parent,
        "attempt": commit.ballot.attempt,
        "codec": commit.codec,
        "leader": commit.leader.peer,
        "samples": commit.samples,
        "total_samples": commit.total_samples,
        "loss": commit.loss,
        "grad_norm": commit.gradient_norm,
        "contributors": [asdict(contribution) for contribution in commit.contributions],
        "members": list(commit.members),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _older(path: Path) -> Path:
    return path.with_suffix(f".1{path.suffix}")


def _ends_torn(path: Path) -> bool:
    """Whether the file's last line lacks its newline."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _disk_error(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"the event log {path} cannot be written: {error.strerror or error}",
        remedy="Free some space on that disk, or give the run a folder that you may write to.",
    )
