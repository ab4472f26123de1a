"""A folder that one process owns while it runs: its key, its copy of the run's files, its log."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock, FileLock, Timeout

from protocols.errors import DiskError, LocalError

MAX_SIBLINGS = 64


class Home:
    """A locked folder. The operating system drops the lock when the process ends, however it ends."""

    def __init__(self, path: Path, lock: BaseFileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, path: Path) -> Home:
        """Make `path` if need be, and lock it. Raises LocalError if another process has it, DiskError if it is not writable."""
        home = cls._try(path)
        if home is None:
            raise LocalError(f"another process of yours uses {path}", remedy="Wait for it to end, or choose another folder.")
        return home

    @classmethod
    def claim_free(cls, path: Path) -> Home:
        """Lock `path`, else `path`-2, -3, ...: peers of one run on one machine each need an identity of their own."""
        for number in range(1, MAX_SIBLINGS + 1):
            home = cls._try(path if number == 1 else path.with_name(f"{path.name}-{number}"))
            if home is not None:
                return home
        raise LocalError(f"{MAX_SIBLINGS} peers of this run are running on this machine already")

    @classmethod
    def _try(cls, path: Path) -> Home | None:
        lock = FileLock(path / ".lock", mode=0o600, thread_local=False)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            raise DiskError(f"cannot use the folder {path}: {error.strerror}", remedy="Choose another folder.") from error
        return cls(path, lock)

    def __enter__(self) -> Home:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()
