"""All that a peer sends and receives keeps to what its volunteer allows, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from peer.catch_up.kept_state import KeptState
from peer.catch_up.pushed_snapshots import PushedSnapshots, push_state
from peer.simulation.network import Network
from peer.simulation.problem import ELEMENTS as SIMULATED_ELEMENTS
from protocols.errors import RemoteError
from protocols.gradients.codecs import CODECS
from protocols.gradients.slices import ResultLayout, Slices
from protocols.messages import Chunk, CommitsRequest, Manifest, OfferRequest, SnapshotRequest
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Standing, Tip
from protocols.snapshot.commits import fetch_commits
from protocols.snapshot.format import StateHeader
from protocols.transport.bandwidth import BURST_S, Bandwidth
from protocols.transport.interface import Stream, call
from tests.peer.virtual import Answers, JobsAtOnce, Net, Node, SmallSwarm, limit

LIMIT = 1e4  # bytes/s
ELEMENTS = 16 * 1024
LAYOUT = ResultLayout(Slices.of(ELEMENTS), 1, CODECS["fp32"], 4)
RESULT = bytes(LAYOUT.total_bytes)
TIP = Tip(3, "c" * 64, 30, Candidate("ann", "ann:1"), "fp32")
SNAPSHOT = b"".join(bytes([index]) * (8 << 10) for index in range(48))


def signed_commit() -> SignedCommit:
    given, shard = Contribution("ann", 1, 0, 4, "a" * 64, 1.0, 1e6), ShardResult(0, ELEMENTS, blake3(RESULT).hexdigest(), 0.0)
    leader = Candidate("ann", "h:1")
    commit = Commit(Ballot(1, "a" * 64, 1, "ann"), "b" * 64, (given,), ("ann",), (shard,), "fp32", 4, leader, (), "fp32")
    return SignedCommit(commit, b"", b"")


def test_commits_are_fetched_no_faster_than_allowed(net: Net) -> None:
    async def give(stream: Stream, request: CommitsRequest) -> AsyncIterator[Any]:
        yield signed_commit()
        for at in range(0, len(RESULT), 1 << 14):
            yield Chunk(at, RESULT[at : at + (1 << 14)])

    donor = net.node("ann", Answers(CommitsRequest=give))
    joiner = net.node("bob", bandwidth=lambda clock: Bandwidth(max_download_bytes_s=LIMIT, clock=clock))

    async def fetch() -> list[bytes]:
        return [result async for _, result in fetch_commits(joiner.transport, donor.candidate, "a" * 64, lambda epoch: LAYOUT)]

    assert joiner.play(fetch()) == [RESULT]
    assert net.world.now == pytest.approx(len(RESULT) / LIMIT, rel=0.05)


def test_a_donor_sends_no_faster_than_allowed_and_neither_does_the_joiner_take_more(net: Net) -> None:
    for up, down in ((LIMIT, None), (None, LIMIT)):
        began = net.world.now
        hidden = net.node("hidden", reachable=False, bandwidth=lambda clock, up=up: Bandwidth(max_upload_bytes_s=up, clock=clock))
        assert pushed(net, hidden, max_download=down) == SNAPSHOT
        assert net.world.now - began == pytest.approx(len(SNAPSHOT) / LIMIT, rel=0.05), (up, down)


def pushed(net: Net, hidden: Node, *, max_download: float | None) -> bytes:
    """What a leader has of a client-mode peer that it asked for its state."""

    class Leader:
        async def serve(self, stream: Stream, opening: Manifest) -> None:
            await wanted.receive(stream, opening)

        async def serve_bulk(self, *_: Any) -> None:
            raise AssertionError

    leader = net.node("leader", Leader(), bandwidth=lambda clock: Bandwidth(max_download_bytes_s=max_download, clock=clock))
    wanted = PushedSnapshots(1 << 24, leader.environment())
    header = StateHeader("ab" * 32, TIP.epoch, TIP.lineage, TIP.total_samples, "", {})
    replica = SimpleNamespace(tip=TIP, capture=lambda: (SNAPSHOT, header, TIP))
    training: Any = SimpleNamespace(replica=replica, jobs=JobsAtOnce())
    kept = KeptState(training, hidden.environment())

    def ask() -> None:
        hidden.start(push_state(hidden.environment(), kept, leader.candidate, Standing(1, "b" * 64, 10)))

    return leader.play(wanted.request("hidden", ask))


class Measured:
    """Notes the bulk bytes and the pieces of state that leave a machine, or arrive at it, and when."""

    def __init__(self, network: Network, name: str) -> None:
        self.sent: list[tuple[float, int, str]] = []  # (when, bytes, "round" or "state")
        depart = network._depart

        def departing(way: Any, message: Any, size: float, after_s: float) -> None:
            if way.source.machine.name == name and isinstance(message, bytes | Chunk):
                kind = "state" if isinstance(message, Chunk) else "round"
                self.sent.append((network.world.now, len(message.data if isinstance(message, Chunk) else message), kind))
            depart(way, message, size, after_s)

        network._depart = departing  # type: ignore[method-assign]

    def bytes_of(self, kind: str) -> int:
        return sum(size for _, size, what in self.sent if what == kind)

    def most_over(self, bytes_s: float) -> float:
        """The most bytes that any stretch of time has above `bytes_s`."""
        over = worst = 0.0
        for (before, *_), (now, size, _) in pairwise([(self.sent[0][0], 0, ""), *self.sent]):
            over = max(0.0, over - (now - before) * bytes_s) + size
            worst = max(worst, over)
        return worst


MAX_UPLOAD = 1e5  # a round alone takes more in a moment than this lets pass
ROUND_BYTES = 8 * SIMULATED_ELEMENTS


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("allowed", [MAX_UPLOAD, None])
def test_what_a_peer_sends_in_rounds_and_in_state_together_stays_within_max_upload(allowed: float | None) -> None:
    """One budget a direction: p1 gives to rounds, and state to newcomers, at the same time. Without a limit it sends more."""
    with SmallSwarm(3) as swarm:
        swarm.start_all("p0", "p1")
        swarm.until(lambda: swarm.epoch("p1") >= 1)
        giver = swarm.processes["p1"]
        if allowed is not None:
            limit(giver.transport.bandwidth.up, allowed, giver.loop.time)
        measured = Measured(swarm.network, "p1")
        fetchers = [swarm.node(f"n{index}", reachable=False) for index in range(4)]
        for node in fetchers:
            node.start(fetching(node, giver.candidate))
        swarm.for_s(20)
        assert measured.bytes_of("round") > 2 * ROUND_BYTES and measured.bytes_of("state") > 2 * ROUND_BYTES
        piece = max(size for _, size, _ in measured.sent)
        assert (measured.most_over(MAX_UPLOAD) <= BURST_S * MAX_UPLOAD + 2 * piece) == (allowed is not None)


async def fetching(node: Node, donor: Candidate) -> None:
    """Fetch the donor's snapshots, one after another."""
    while True:
        try:
            manifest = await call(node.transport, donor, OfferRequest("", None), 30.0)
            async with node.transport.open(donor, SnapshotRequest(manifest.digest, 0, len(manifest.chunk_sha256))) as stream:
                while await stream.receive() is not None:
                    pass
        except RemoteError:
            continue
