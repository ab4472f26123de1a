"""The home of a process: a folder that it owns while it runs, with its key, its copy of the run's files and its log."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
from filelock import BaseFileLock, FileLock, Timeout

from protocols.errors import LocalError, UsageError

MAX_SIBLINGS = 64


def default_home() -> Path:
    """$DUGNAD_HOME, or the place where this system keeps a user's data."""
    return Path(os.environ.get("DUGNAD_HOME") or platformdirs.user_data_dir("dugnad"))


class Home:
    """A locked folder. The system releases the lock when the process ends, however it ends."""

    def __init__(self, path: Path, lock: BaseFileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, path: Path) -> Home:
        """Lock `path`; create it if needed. Raises UsageError if another process has it, or it cannot be written."""
        home = cls._try(path)
        if home is None:
            raise UsageError(f"another process of yours uses {path}", remedy="Wait for it to end, or choose another folder.")
        return home

    @classmethod
    def claim_free(cls, path: Path) -> Home:
        """Lock the first free folder of `path`, `path`-2, `path`-3, and so on. Raises LocalError if none is free.

        Several peers of one run may share a machine, and each needs an identity of its own.
        """
        for number in range(1, MAX_SIBLINGS + 1):
            home = cls._try(path if number == 1 else path.with_name(f"{path.name}-{number}"))
            if home is not None:
                return home
        raise LocalError(f"{MAX_SIBLINGS} peers of this run are running on this machine already")

    @classmethod
    def is_claimed(cls, path: Path) -> bool:
        """Whether a process has it now."""
        if not (path / ".lock").exists() or (home := cls._try(path)) is None:
            return (path / ".lock").exists()
        with home:
            return False

    @classmethod
    def _try(cls, path: Path) -> Home | None:
        lock = FileLock(path / ".lock", mode=0o600, thread_local=False)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            raise UsageError(f"cannot use the folder {path}: {error.strerror}", remedy="Choose another folder.") from error
        return cls(path, lock)

    def __enter__(self) -> Home:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
