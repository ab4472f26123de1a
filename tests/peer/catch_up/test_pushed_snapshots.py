"""State that a client-mode peer pushes to its leader, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import pytest

from peer.catch_up.kept_state import KeptState
from peer.catch_up.pushed_snapshots import PushedSnapshots, chunk_at, max_snapshot_bytes, push_state
from peer.environment import Sizes
from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.messages import Chunk, Manifest, PushReply
from protocols.reasons import Reason
from protocols.round.records import Candidate, Standing, Tip
from protocols.snapshot.fetch import IDLE_S
from protocols.snapshot.format import StateHeader, manifest_of
from protocols.transport.interface import Stream
from tests.peer.virtual import JobsAtOnce, Net

CHUNK = 1 << 10
SIZES = Sizes(snapshot_chunk_bytes=CHUNK)
TIP = Tip(3, "c" * 64, 30, Candidate("ann", "ann:1"), "fp32")
HEADER = StateHeader("ab" * 32, TIP.epoch, TIP.lineage, TIP.total_samples, "", {})
SNAPSHOT = b"".join(bytes([index // 2]) * CHUNK for index in range(20)) + b"the end"  # every chunk twice, and a short one
MANIFEST = manifest_of(SNAPSHOT, HEADER, CHUNK)


class Leader:
    """A leader that asked `wanted.request`; whoever pushes is told the outcome."""

    def __init__(self, net: Net, max_bytes: int = 1 << 20) -> None:
        self.node = net.node("leader", self)
        self.progress: list[tuple[int, int]] = []
        environment = self.node.environment(progress=lambda done, total: self.progress.append((done, total)))
        self.wanted = PushedSnapshots(max_bytes, environment)
        self.calls = 0

    async def serve(self, stream: Stream, opening: Manifest) -> None:
        self.calls += 1
        await self.wanted.receive(stream, opening)

    async def serve_bulk(self, *_: Any) -> None:
        raise AssertionError


class Hidden:
    """A client-mode peer that pushes, by itself or as `push_state` does it."""

    def __init__(self, net: Net, tip: Tip = TIP) -> None:
        self.node = net.node("hidden", reachable=False)
        replica = SimpleNamespace(tip=tip, capture=lambda: (SNAPSHOT, HEADER, TIP))
        training: Any = SimpleNamespace(replica=replica, jobs=JobsAtOnce())
        self.environment = self.node.environment(sizes=SIZES)
        self.kept = KeptState(training, self.environment)

    def pushes(self, leader: Leader, at_least: Standing) -> None:
        self.node.start(push_state(self.environment, self.kept, leader.node.candidate, at_least))

    async def push(self, leader: Leader, manifest: Manifest, chunks: list[Chunk]) -> Any:
        async with self.node.transport.open(leader.node.candidate, manifest) as stream:
            for chunk in chunks:
                await stream.send(chunk)
            return await stream.receive()


def test_what_was_asked_for_comes_whole_with_each_distinct_chunk_once(net: Net) -> None:
    leader, hidden = Leader(net), Hidden(net)
    standing = Standing(1, "b" * 64, 10)
    assert leader.node.play(leader.wanted.request("hidden", lambda: hidden.pushes(leader, standing))) == SNAPSHOT
    assert len(leader.progress) == 11 and leader.progress[-1] == (len(SNAPSHOT), len(SNAPSHOT))


def test_the_pusher_hears_that_it_came_whole(net: Net) -> None:
    leader, hidden = Leader(net), Hidden(net)
    leader.node.start(leader.wanted.request("hidden", lambda: None))
    chunks = [chunk_at(MANIFEST, SNAPSHOT, index) for index in (*range(0, 20, 2), 20)]
    assert hidden.node.play(hidden.push(leader, MANIFEST, chunks)) == PushReply()


def test_a_peer_whose_state_is_lighter_than_asked_for_pushes_nothing(net: Net) -> None:
    leader, hidden = Leader(net), Hidden(net)
    with pytest.raises(UnreachableError, match="sent nothing"):
        leader.node.play(leader.wanted.request("hidden", lambda: hidden.pushes(leader, Standing(9, "f" * 64, 99))))
    assert leader.calls == 0


def test_state_that_nobody_asked_for_is_refused(net: Net) -> None:
    leader, hidden = Leader(net), Hidden(net)
    with pytest.raises(RefusedError) as error:
        hidden.node.play(hidden.push(leader, MANIFEST, []))
    assert error.value.reason == Reason.BAD_MESSAGE.value and "nobody asked" in str(error.value)


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([Chunk(0, b"?" * CHUNK)], "another digest"),
        ([Chunk(10**9, bytes(CHUNK))], "not asked for"),
        ([chunk_at(MANIFEST, SNAPSHOT, 20)] * 2, "not asked for"),
    ],
    ids=["other bytes", "beyond the end", "the same again"],
)
def test_chunks_that_do_not_fit_end_the_wait_with_what_was_wrong(net: Net, chunks: list[Chunk], problem: str) -> None:
    leader, hidden = Leader(net), Hidden(net)

    def ask() -> None:
        hidden.node.start(quietly(hidden.push(leader, MANIFEST, chunks)))

    with pytest.raises(BadMessageError, match=problem):
        leader.node.play(leader.wanted.request("hidden", ask))


async def quietly(work: Awaitable[Any]) -> None:
    with contextlib.suppress(RemoteError):
        await work


def test_a_snapshot_larger_than_the_model_can_have_is_refused_unread(net: Net) -> None:
    leader, hidden = Leader(net, max_bytes=len(SNAPSHOT) - 1), Hidden(net)
    with pytest.raises(BadMessageError, match="more than this model can have"):
        leader.node.play(leader.wanted.request("hidden", lambda: hidden.pushes(leader, Standing(1, "b" * 64, 10))))
    assert leader.progress == []
    assert max_snapshot_bytes(1000) > 1000 * 8 * 3


@pytest.mark.parametrize("sent", [0, 3])
def test_a_peer_that_falls_silent_is_not_waited_for(net: Net, sent: int) -> None:
    leader, hidden = Leader(net), Hidden(net)

    async def stops() -> None:
        async with hidden.node.transport.open(leader.node.candidate, MANIFEST) as stream:
            for index in range(0, 2 * sent, 2):
                await stream.send(chunk_at(MANIFEST, SNAPSHOT, index))
                await asyncio.sleep(IDLE_S - 1)  # slow is not silent
            await asyncio.Event().wait()

    def ask() -> None:
        hidden.node.start(stops())

    with pytest.raises(UnreachableError, match="sent nothing"):
        leader.node.play(leader.wanted.request("hidden", ask))
    assert net.world.now == pytest.approx(IDLE_S + max(0, sent - 1) * (IDLE_S - 1), abs=1.0)


def test_a_push_that_fails_is_logged_and_the_leader_may_ask_again(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    leader, hidden = Leader(net), Hidden(net)
    hidden.node.play(push_state(hidden.environment, hidden.kept, Candidate("gone", "gone:1"), TIP.standing))
    assert "could not be pushed" in caplog.text
    assert leader.node.play(leader.wanted.request("hidden", lambda: hidden.pushes(leader, TIP.standing))) == SNAPSHOT
