"""Watch through a leader that moves to another lineage, or sends damaged messages. The leader is a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coordinator.watching import look_once, watch
from protocols.errors import BadMessageError, RefusedError, UnreachableError
from protocols.messages import ObserveRequest
from protocols.observations import Committed, Swarm
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit
from protocols.transport.bandwidth import Bandwidth
from tests.factories import run_spec

START = "0" * 64
LEADER = Candidate("1" * 32, "lead")


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


class Peers:
    """Each tells its records and what is present, as they are when it is asked. They are the whole transport."""

    bandwidth = Bandwidth()

    def __init__(self, **records: list[SignedCommit]) -> None:
        self.records = records
        self.present: list[SignedCommit] = []
        self.asked: list[tuple[str, int]] = []

    @contextlib.asynccontextmanager
    async def open(self, peer: Candidate, opening: Any) -> AsyncIterator[Stream]:
        assert isinstance(opening, ObserveRequest) and not opening.once
        yield self.told(peer.address, opening.after_epoch)

    def told(self, by: str, after_epoch: int) -> Stream:
        self.asked.append((by, after_epoch))
        records = [signed for signed in self.records[by] if signed.commit.ballot.epoch > after_epoch]
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


def watched(peers: Peers, most: int, epoch: int) -> list[str]:
    """Which commits are told, as chain and epoch, until there are so many."""
    everybody = [LEADER, *(Candidate(f"{number}" * 32, name) for number, name in enumerate(peers.records, 2) if name != "lead")]

    async def watching() -> list[str]:
        told: list[str] = []
        async for observation in watch(peers, lambda: everybody, lambda: epoch, START):
            if isinstance(observation, Committed):
                commit = observation.signed_commit.commit
                told.append(f"{commit.plan_digest[0]}{commit.ballot.epoch}")
            if len(told) == most:
                break
        return told

    return asyncio.run(watching())


def test_when_another_lineage_has_won_its_commits_are_told_from_the_beginning() -> None:
    ours, theirs = chain("a", range(1, 4), START), chain("b", range(1, 6), START)

    class Moving(Peers):
        def told(self, by: str, after_epoch: int) -> Stream:
            stream = super().told(by, after_epoch)
            self.records["lead"] = theirs[:4]
            return stream

    moving = Moving(lead=ours)
    moving.present = theirs[3:]  # it loses a fork: its next commit follows none that is known
    assert watched(moving, 8, 0) == ["a1", "a2", "a3", "b1", "b2", "b3", "b4", "b5"]
    assert moving.asked == [("lead", 0), ("lead", 0)]


def test_commits_that_the_leader_skipped_are_told_by_those_who_applied_them() -> None:
    theirs = chain("b", range(1, 6), START)
    peers = Peers(lead=theirs[4:], south=theirs[2:4], east=theirs[:2])
    assert watched(peers, 5, 0) == ["b1", "b2", "b3", "b4", "b5"]
    assert peers.asked == [("lead", 0), ("lead", 0), ("south", 0), ("east", 0)]


def test_a_commit_whose_past_nobody_has_on_record_is_told_after_one_look_back() -> None:
    peers = Peers(lead=chain("b", range(1, 6), "f" * 64)[3:])
    assert watched(peers, 2, 3) == ["b4", "b5"]
    assert peers.asked == [("lead", 3), ("lead", 0)]


def test_a_damaged_observation_is_dropped_with_a_warning_and_the_stream_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers(lead=chain("a", range(1, 3), START))
    assert watched(peers, 2, 0) == ["a1", "a2"]
    assert peers.asked == [("lead", 0)]
    assert "an observation by peer 11111111 was dropped" in caplog.text


@pytest.mark.parametrize(("known", "said"), [(2, "none of the 2 peers that could tell answers"), (0, "nobody takes part")])
def test_when_nobody_answers_an_onlooker_is_told_so_in_words_and_what_to_do(known: int, said: str) -> None:
    class Away(Peers):
        @contextlib.asynccontextmanager
        async def open(self, peer: Candidate, opening: Any) -> AsyncIterator[Stream]:
            raise UnreachableError("unavailable: UNKNOWN: ipv4:127.0.0.1:1: connection refused")
            yield Stream([])

    with pytest.raises(UnreachableError, match=said) as raised:
        asyncio.run(look_once(Away(), [Candidate(f"{number}" * 32, "a:1") for number in range(known)], run_spec()))
    assert "organiser" in raised.value.remedy and "ipv4" not in str(raised.value)


def test_what_a_peer_answers_with_is_told_before_that_others_are_away() -> None:
    class Refusing(Peers):
        @contextlib.asynccontextmanager
        async def open(self, peer: Candidate, opening: Any) -> AsyncIterator[Stream]:
            raise RefusedError("banned", reason="banned") if peer == LEADER else UnreachableError("away")
            yield Stream([])

    with pytest.raises(RefusedError):
        asyncio.run(look_once(Refusing(), [LEADER, Candidate("2" * 32, "a:1")], run_spec()))
