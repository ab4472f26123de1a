"""Fetching state over real gRPC on loopback from donors that are honest, cut off, or lying."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.identity import Authority, Credentials, Key
from protocols.round.records import Candidate
from protocols.state import Manifest
from protocols.transport.links import Links, admit, listen, peer_server
from protocols.transport.state_transfer import ask, fetch_snapshot
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire
from protocols.wire.dugnad_pb2_grpc import PeerServicer, add_PeerServicer_to_server

RUN = "ab" * 32
CHUNK = 1 << 16
SNAPSHOT = bytes(range(256)) * 1024  # four chunks


def manifest(snapshot: bytes = SNAPSHOT) -> Manifest:
    digests = tuple(hashlib.sha256(snapshot[at : at + CHUNK]).digest() for at in range(0, len(snapshot), CHUNK))
    return Manifest(3, "c" * 64, len(snapshot), CHUNK, digests)


def parts_of(snapshot: bytes = SNAPSHOT, named: Manifest | None = None) -> list[pb.SnapshotPart]:
    chunks = [snapshot[at : at + CHUNK] for at in range(0, len(snapshot), CHUNK)]
    first = pb.SnapshotPart(manifest=to_wire(named or manifest()))
    return [first, *(pb.SnapshotPart(chunk=pb.Chunk(offset=i * CHUNK, data=data)) for i, data in enumerate(chunks))]


class Donor(PeerServicer):  # type: ignore[misc]
    def __init__(self, parts: list[pb.SnapshotPart]) -> None:
        self._parts = parts

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotPart]:
        await admit(context, RUN)
        for part in self._parts:
            yield part


def credentials(authority: Authority) -> Credentials:
    key = Key.generate()
    return Credentials(key, authority.admit(key.request()), authority.pem)


def fetch(
    folder: Path,
    parts: list[pb.SnapshotPart],
    *,
    run: str = RUN,
    max_bytes: int = 1 << 20,
    pretend: str = "",
    outsider: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bytes:
    """Fetch from a donor that serves `parts`, as a peer of `run`; `pretend` dials it under another id."""

    async def play() -> bytes:
        authority = Authority.load_or_create(folder / "ours")
        donor = credentials(authority)
        server, tls = peer_server(donor)
        port = listen(server, tls, "127.0.0.1", 0)
        add_PeerServicer_to_server(Donor(parts), server)
        await server.start()
        mine = credentials(Authority.load_or_create(folder / "theirs") if outsider else authority)
        links = Links(replace(mine, authority=authority.pem), run)
        try:
            there = Candidate(pretend or donor.peer_id, f"127.0.0.1:{port}")
            return await asyncio.wait_for(fetch_snapshot(links, there, max_bytes, progress), 30)
        finally:
            await links.aclose()
            await server.stop(None)

    return asyncio.run(play())


def test_an_honest_donor_is_believed_and_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert fetch(tmp_path, parts_of(), progress=lambda done, total: seen.append((done, total))) == SNAPSHOT
    assert seen[-1] == (len(SNAPSHOT), len(SNAPSHOT)) and len(seen) == 4


def test_a_snapshot_that_ends_early_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadMessageError, match="ended early"):
        fetch(tmp_path, parts_of()[:-1])


def test_a_chunk_that_does_not_match_the_manifest_is_refused(tmp_path: Path) -> None:
    flipped = bytearray(SNAPSHOT)
    flipped[CHUNK + 7] ^= 1
    with pytest.raises(BadMessageError, match="chunk 1"):
        fetch(tmp_path, parts_of(bytes(flipped)))


def test_more_chunks_than_the_manifest_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadMessageError, match="does not name"):
        fetch(tmp_path, [*parts_of(), parts_of()[-1]])


def test_a_snapshot_larger_than_the_model_can_have_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(BadMessageError, match="more than this model can have"):
        fetch(tmp_path, parts_of(), max_bytes=len(SNAPSHOT) - 1)


def test_a_donor_of_another_run_refuses_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refusal:
        fetch(tmp_path, parts_of(), run="cd" * 32)
    assert refusal.value.reason == "other-run"


def test_whoever_answers_in_anothers_name_is_not_spoken_to(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        fetch(tmp_path, parts_of(), pretend="0" * 32)


def test_a_peer_with_another_authoritys_certificate_is_not_let_in(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        fetch(tmp_path, parts_of(), outsider=True)


def test_a_peer_that_is_not_there_is_said_to_be_unreachable(tmp_path: Path) -> None:
    async def play() -> None:
        links = Links(credentials(Authority.load_or_create(tmp_path)), RUN)
        try:
            await ask(links, Candidate("0" * 32, "127.0.0.1:1"))
        finally:
            await links.aclose()

    with pytest.raises(RemoteError, match="cannot be reached"):
        asyncio.run(play())
