"""Assets: the files of a run that every machine needs. The resolved spec names their digests; any task may have some.

They lie in `directory/assets`, where `directory` is a coordinator's or a peer's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from protocols.errors import BadMessageError, SpecError
from protocols.host.files import write_durably
from protocols.run_spec import MAX_ASSETS_BYTES, RunSpec


def folder_of(directory: Path) -> Path:
    return directory / "assets"


def create_assets(directory: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write what a task prepared, and return each file's SHA-256 by name. Raises SpecError when it is too much, or DiskError."""
    size = sum(map(len, files.values()))
    if size > MAX_ASSETS_BYTES:
        raise SpecError(
            f"the files that the task prepared are {size >> 20} MiB, above the {MAX_ASSETS_BYTES >> 20} MiB that peers accept",
            remedy="Hold out less data; for text, lower task.data.held_out_bytes or use a smaller tokenizer.",
        )
    for name, content in files.items():
        write_durably(folder_of(directory) / name, content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def read_asset(resolved: RunSpec, directory: Path, name: str) -> bytes:
    """An asset's bytes, checked. Raises BadMessageError when the file is not the one that the spec names, or is not there."""
    expected = _digest_of(resolved, name)
    try:
        content = (folder_of(directory) / name).read_bytes()
    except OSError as error:
        raise BadMessageError(
            f"the run's file {name} cannot be read: {error}", remedy="Remove the folder and join again."
        ) from error
    _check(content, expected, name)
    return content


def write_asset(resolved: RunSpec, directory: Path, name: str, content: bytes) -> None:
    """Store an asset that came over the network. Raises BadMessageError, and writes nothing, when the spec names another."""
    _check(content, _digest_of(resolved, name), name)
    write_durably(folder_of(directory) / name, content)


def _digest_of(resolved: RunSpec, name: str) -> str:
    expected = resolved.assets.get(name)
    if expected is None:
        raise BadMessageError(f"the run has no asset {name[:100]!r}")
    return expected


def _check(content: bytes, expected: str, name: str) -> None:
    if len(content) > MAX_ASSETS_BYTES or hashlib.sha256(content).hexdigest() != expected:
        raise BadMessageError(f"the run's file {name} has another digest than the run spec names", remedy="Fetch it again.")
