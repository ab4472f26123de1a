"""Write files that survive a crash: write a temporary file, flush it to the disk, rename it into place."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from protocols.errors import DiskError


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`. A crash at any instant leaves the old file or the new one. Raises DiskError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise DiskError(
            f"cannot write {path}: {error.strerror}", remedy="Free some space or choose another folder, then start again."
        ) from error


def matching_files(pattern: Path) -> list[Path]:
    """The files that a path or a glob names; ~ is the user's home."""
    path = pattern.expanduser().absolute()
    matches = [path] if path.exists() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return [match for match in matches if match.is_file()]


def keep_short(path: Path, max_bytes: int) -> None:
    """Once a child's output in `path` has `max_bytes`, move what it holds to NAME.1. The child, which has `path` open to append,
    goes on at its beginning. Does nothing where that fails: a log ends nobody."""
    with contextlib.suppress(OSError):
        if path.stat().st_size >= max_bytes:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Does nothing where the system cannot open folders."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
