"""A folder that one process owns while it runs: its key, its copy of the run's files, its log."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from protocols.errors import DiskError, LocalError

MAX_SIBLINGS = 64


class Home:
    """A locked folder. The lock goes with the process, however it ends."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, path: Path) -> Home:
        """Lock `path`, made if need be. Raises LocalError while another process has it, DiskError when it cannot be written."""
        home = cls._try(path)
        if home is None:
            raise LocalError(f"another process of yours uses {path}", remedy="Wait for it to end, or choose another folder.")
        return home

    @classmethod
    def claim_free(cls, path: Path) -> Home:
        """`path`, or `path`-2, -3, ... when several peers of one run share a machine: each needs an identity of its own."""
        for number in range(1, MAX_SIBLINGS + 1):
            home = cls._try(path if number == 1 else path.with_name(f"{path.name}-{number}"))
            if home is not None:
                return home
        raise LocalError(f"{MAX_SIBLINGS} peers of this run are running on this machine already")

    @classmethod
    def _try(cls, path: Path) -> Home | None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DiskError(f"cannot use the folder {path}: {error.strerror}", remedy="Choose another folder.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return cls(path, lock)

    def __enter__(self) -> Home:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._lock)
