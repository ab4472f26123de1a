from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import DiskError
from protocols.host.files import keep_short, write_durably


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"old", b"", b"x" * 100_000):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_the_mode_is_that_asked_for_from_the_first_byte_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    before = os.umask(0)
    try:
        write_durably(tmp_path / "secret", b"s", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert seen[0] == 0o600


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(self: Path, target: Any) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_durably(tmp_path / "file", b"data")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_names_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), full)
    with pytest.raises(DiskError, match="No space left") as caught:
        write_durably(path, b"new")
    assert caught.value.remedy
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError):
        write_durably(tmp_path / "file" / "below", b"x")


def test_a_childs_output_stays_short_while_the_child_writes_on(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    with log.open("ab", buffering=0) as child:
        for number in range(50):
            child.write(b"%09d\n" % number)
            keep_short(log, 100)
    both = log.with_name("output.log.1").read_bytes() + log.read_bytes()
    assert len(both) <= 200 and both.endswith(b"000000049\n")


def test_a_log_that_is_not_there_ends_nobody(tmp_path: Path) -> None:
    keep_short(tmp_path / "absent.log", 100)
