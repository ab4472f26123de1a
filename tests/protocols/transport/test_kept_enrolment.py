"""What a peer keeps for when the coordinator is away."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from protocols.identity import Key
from protocols.round.records import Candidate
from protocols.transport.kept_enrolment import FILE, KEY, keep, kept_in
from tests.factories import run_spec
from tests.protocols.transport.test_bulk import credentials

PEERS = (Candidate("ann", "127.0.0.1:1"), Candidate("bob", "[::1]:2"))


def home_with(folder: Path) -> Path:
    mine = credentials(folder)
    (folder / KEY).write_bytes(mine.key.pem)
    keep(folder, mine, run_spec(), PEERS)
    return folder


def test_what_was_kept_comes_back_and_is_the_owners_alone(tmp_path: Path) -> None:
    kept = kept_in(home_with(tmp_path))
    assert kept is not None
    assert kept.peers == PEERS and kept.spec.digest == run_spec().digest
    assert kept.credentials.peer_id == Key.load_or_create(tmp_path / KEY).peer_id
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"certificate": 1}', b"\xff"])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, content: bytes) -> None:
    (home_with(tmp_path) / FILE).write_bytes(content)
    assert kept_in(tmp_path) is None


def test_a_folder_in_which_nobody_enrolled_stays_as_it_is(tmp_path: Path) -> None:
    assert kept_in(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
