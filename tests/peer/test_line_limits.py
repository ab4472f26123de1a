"""State keeps to what a volunteer allows: over real gRPC on loopback, timed by a clock that only waiting for a turn moves on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from peer.catch_up.pushed_snapshots import PushedSnapshots
from protocols.gradients.codecs import CODECS
from protocols.gradients.slices import ResultLayout, Slices
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit
from protocols.snapshot.chunks import Manifest
from protocols.transport import bandwidth as traffic_module
from protocols.transport.bandwidth import Bandwidth, Direction
from protocols.transport.channels import admit
from protocols.transport.state_transfer import fetch_commits, give_snapshot, whole_snapshot
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire
from tests.peer.catch_up.test_state_transfer import RUN, SNAPSHOT, KeptState, fetch, manifest, table

LIMIT = 1e4  # bytes/s: a snapshot takes more than a minute of the clock's time
SNAPSHOT_S = pytest.approx(len(SNAPSHOT) / LIMIT, rel=0.05)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(traffic_module, "asyncio", SimpleNamespace(sleep=made.sleep))
    return made


def test_a_snapshot_is_downloaded_no_faster_than_allowed(tmp_path: Path, clock: Clock) -> None:
    assert fetch(tmp_path, KeptState(), bandwidth=Bandwidth(max_download_bytes_s=LIMIT, clock=clock)) == SNAPSHOT
    assert clock.now == SNAPSHOT_S


def test_donors_share_what_is_allowed(tmp_path: Path, clock: Clock) -> None:
    async def work() -> bytes:
        async with table(tmp_path, KeptState(), KeptState(), bandwidth=Bandwidth(max_download_bytes_s=LIMIT, clock=clock)) as it:
            return await it.run()

    assert asyncio.run(work()) == SNAPSHOT
    assert clock.now >= len(SNAPSHOT) / LIMIT * 0.95


def test_a_limit_on_uploads_does_not_slow_a_download(tmp_path: Path, clock: Clock) -> None:
    assert fetch(tmp_path, KeptState(), bandwidth=Bandwidth(max_upload_bytes_s=LIMIT, clock=clock)) == SNAPSHOT
    assert clock.now == 0


ELEMENTS = 16 * 1024
OUTCOME = ResultLayout(Slices.of(ELEMENTS), 1, CODECS["fp32"], 4)
AVERAGED = bytes(OUTCOME.total_bytes)


class Keeper(KeptState):
    """Gives one commit."""

    async def Commits(self, request: pb.CommitsRequest, context: Any) -> AsyncIterator[pb.CommitPart]:
        await admit(context, RUN)
        given, shard = Contribution("ann", 1, 0, 4, "a" * 64, 1.0), ShardResult(0, ELEMENTS, blake3(AVERAGED).hexdigest(), 0.0)
        leader = Candidate("ann", "h:1")
        commit = Commit(Ballot(1, "a" * 64, 1, "ann"), "b" * 64, (given,), ("ann",), (shard,), "fp32", 4, leader, (), "fp32")
        yield pb.CommitPart(signed_commit=to_wire(SignedCommit(commit, b"", b"")))
        for at in range(0, len(AVERAGED), 1 << 14):
            yield pb.CommitPart(chunk=pb.Chunk(offset=at, data=AVERAGED[at : at + (1 << 14)]))


def test_commits_are_fetched_no_faster_than_allowed(tmp_path: Path, clock: Clock) -> None:
    async def work() -> list[bytes]:
        async with table(tmp_path, Keeper(), bandwidth=Bandwidth(max_download_bytes_s=LIMIT, clock=clock)) as it:
            commits = fetch_commits(it.channels, it.there[0], "a" * 64, lambda epoch: OUTCOME)
            return [averaged async for _, averaged in commits]

    assert asyncio.run(work()) == [AVERAGED]
    assert clock.now == pytest.approx(len(AVERAGED) / LIMIT, rel=0.05)


class Leader(KeptState):
    """Takes state that is brought."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[pb.SnapshotPart] = []

    async def Give(self, requests: AsyncIterator[pb.SnapshotPart], context: Any) -> pb.GiveReply:
        await admit(context, RUN)
        self.parts = [part async for part in requests]
        return pb.GiveReply()


def test_what_a_client_mode_peer_brings_goes_up_no_faster_than_allowed(tmp_path: Path, clock: Clock) -> None:
    leader = Leader()

    async def work() -> None:
        async with table(tmp_path, leader, bandwidth=Bandwidth(max_upload_bytes_s=LIMIT, clock=clock)) as it:
            await give_snapshot(it.channels, it.there[0], manifest(), SNAPSHOT)

    asyncio.run(work())
    assert b"".join(part.chunk.data for part in leader.parts) == SNAPSHOT
    assert clock.now == SNAPSHOT_S


def test_what_is_brought_comes_down_no_faster_than_allowed(clock: Clock) -> None:
    async def parts(named: Manifest) -> AsyncIterator[pb.SnapshotPart]:
        for part in whole_snapshot(named, SNAPSHOT):
            yield part

    async def work() -> bytes:
        pushed_snapshots = PushedSnapshots(1 << 24, lambda done, total: None, Direction(LIMIT, clock))
        wanted = asyncio.create_task(pushed_snapshots.request("ann", lambda: None))
        await asyncio.sleep(0)
        await pushed_snapshots.receive("ann", parts(manifest()))
        return await wanted

    assert asyncio.run(work()) == SNAPSHOT
    assert clock.now == SNAPSHOT_S
