"""Watch through a leader that moves to another lineage, or sends damaged messages. The leader is a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coordinator.watching import watch
from protocols.errors import BadMessageError
from protocols.messages import ObserveRequest
from protocols.observations import Committed, Swarm
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit
from protocols.transport.bandwidth import Bandwidth

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
    """Tells `records`, as they are when it is asked, and then what is in `present`. It is the whole transport."""

    bandwidth = Bandwidth()

    def __init__(self) -> None:
        self.records: list[SignedCommit] = []
        self.present: list[SignedCommit] = []
        self.asked: list[int] = []

    @contextlib.asynccontextmanager
    async def open(self, peer: Candidate, opening: Any) -> AsyncIterator[Stream]:
        assert peer == LEADER and isinstance(opening, ObserveRequest) and not opening.once
        yield self.told(opening.after_epoch)

    def told(self, after_epoch: int) -> Stream:
        self.asked.append(after_epoch)
        records = [signed for signed in self.records if signed.commit.ballot.epoch > after_epoch]
        return Stream([*records, *self.present])

    def bulk(self, peer: str, address: str) -> Any:
        raise AssertionError("nobody watches over a bulk connection")


class Stream:
    """How the swarm stands, then something damaged, then commits."""

    peer = LEADER.peer

    def __init__(self, commits: list[SignedCommit]) -> None:
        damaged = BadMessageError("a record that cannot be read")
        self._records = [Swarm(None, 0, "training", (), LEADER), damaged, *map(Committed, commits)]

    async def send(self, record: Any) -> None:
        raise AssertionError("whoever watches says nothing")

    post = send

    async def receive(self) -> Any | None:
        record = self._records.pop(0) if self._records else None
        if isinstance(record, Exception):
            raise record
        return record


def watched(leader: Leader, most: int, epoch: int) -> list[str]:
    """Which commits are told, as chain and epoch, until there are so many."""

    async def watching() -> list[str]:
        told: list[str] = []
        async for observation in watch(leader, lambda: [LEADER], lambda: epoch, START):
            if isinstance(observation, Committed):
                commit = observation.signed_commit.commit
                told.append(f"{commit.plan_digest[0]}{commit.ballot.epoch}")
            if len(told) == most:
                break
        return told

    return asyncio.run(watching())


def test_when_another_lineage_has_won_its_commits_are_told_from_the_beginning() -> None:
    ours, theirs = chain("a", range(1, 4), START), chain("b", range(1, 6), START)

    class Moving(Leader):
        def told(self, after_epoch: int) -> Stream:
            stream = super().told(after_epoch)
            self.records, self.present = theirs[:4], [theirs[4]]
            return stream

    moving = Moving()
    moving.records, moving.present = ours, [theirs[3]]  # it loses a fork: its next commit follows none that is known
    assert watched(moving, 8, 0) == ["a1", "a2", "a3", "b1", "b2", "b3", "b4", "b5"]
    assert moving.asked == [0, 0]


def test_a_commit_whose_past_nobody_has_on_record_is_told_after_one_look_back() -> None:
    leader = Leader()
    leader.records = chain("b", range(1, 6), "f" * 64)[3:]
    assert watched(leader, 2, 3) == ["b4", "b5"]
    assert leader.asked == [3, 0]


def test_a_damaged_observation_is_dropped_with_a_warning_and_the_stream_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    leader = Leader()
    leader.records = chain("a", range(1, 3), START)
    assert watched(leader, 2, 0) == ["a1", "a2"]
    assert leader.asked == [0]
    assert "an observation by peer 11111111 was dropped" in caplog.text
