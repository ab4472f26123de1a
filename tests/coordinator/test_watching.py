"""Watch through a leader that moves to another lineage, or sends damaged messages. The leader is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import coordinator.watching
from coordinator.watching import watch
from protocols.observations import Committed, Swarm
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import observation_to_wire

START = "0" * 64
LEADER = Candidate("1" * 32, "lead:1")


def chain(seed: str, epochs: range, parent: str) -> list[SignedCommit]:
    found = []
    for epoch in epochs:
        commit = Commit(
            ballot=Ballot(epoch, parent, 1, LEADER.peer),
            plan_digest=seed * 64,
            contributions=(Contribution(LEADER.peer, 1, 4 * epoch, 4 * epoch + 4, parent, 1.0),),
            members=(LEADER.peer,),
            shards=(ShardResult(0, 1024, "e" * 64, 1.0),),
            codec="fp32",
            next_codec="fp32",
            total_samples=4 * epoch,
            leader=LEADER,
            succession=(),
        )
        found.append(SignedCommit(commit, b"c", b"s"))
        parent = commit.digest
    return found


class Leader:
    """Tells `records`, as they are when it is asked, and then what is in `present`."""

    def __init__(self) -> None:
        self.records: list[SignedCommit] = []
        self.present: list[SignedCommit] = []
        self.asked: list[int] = []

    def __call__(self, channel: Any) -> Leader:
        return self

    def Observe(self, request: pb.ObserveRequest, metadata: Any) -> Stream:
        self.asked.append(request.after_epoch)
        records = [signed for signed in self.records if signed.commit.ballot.epoch > request.after_epoch]
        return Stream([*records, *self.present])


class Stream:
    def __init__(self, commits: list[SignedCommit]) -> None:
        self._commits = commits

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[pb.Observation]:
        yield observation_to_wire(Swarm(None, 0, "training", (), LEADER))
        yield pb.Observation()  # damaged: without content
        for signed in self._commits:
            yield observation_to_wire(Committed(signed))


class NoLinks:
    metadata = ()

    def to(self, peer: str, address: str) -> None:
        return None


def watched(leader: Leader, most: int, epoch: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which commits are told, as chain and epoch, until there are so many."""
    monkeypatch.setattr(coordinator.watching, "PeerStub", leader)

    async def watching() -> list[str]:
        told: list[str] = []
        async for observation in watch(NoLinks(), lambda: [LEADER], lambda: epoch, START):  # type: ignore[arg-type]
            if isinstance(observation, Committed):
                commit = observation.signed_commit.commit
                told.append(f"{commit.plan_digest[0]}{commit.ballot.epoch}")
            if len(told) == most:
                break
        return told

    return asyncio.run(watching())


def test_when_another_lineage_has_won_its_commits_are_told_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = chain("a", range(1, 4), START), chain("b", range(1, 6), START)

    class Moving(Leader):
        def Observe(self, request: pb.ObserveRequest, metadata: Any) -> Stream:
            stream = super().Observe(request, metadata)
            self.records, self.present = theirs[:4], [theirs[4]]
            return stream

    moving = Moving()
    moving.records, moving.present = ours, [theirs[3]]  # it loses a fork: its next commit follows none that is known
    assert watched(moving, 8, 0, monkeypatch) == ["a1", "a2", "a3", "b1", "b2", "b3", "b4", "b5"]
    assert moving.asked == [0, 0]


def test_a_commit_whose_past_nobody_has_on_record_is_told_after_one_look_back(monkeypatch: pytest.MonkeyPatch) -> None:
    leader = Leader()
    leader.records = chain("b", range(1, 6), "f" * 64)[3:]
    assert watched(leader, 2, 3, monkeypatch) == ["b4", "b5"]
    assert leader.asked == [3, 0]


def test_a_damaged_observation_is_dropped_with_a_warning_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leader = Leader()
    leader.records = chain("a", range(1, 3), START)
    assert watched(leader, 2, 0, monkeypatch) == ["a1", "a2"]
    assert leader.asked == [0]
    assert "an observation by peer 11111111 was dropped" in caplog.text
