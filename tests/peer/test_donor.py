from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

import peer.donor
from peer.donor import KEPT_COMMITS, Donor
from peer.handover import Handover
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Tip
from protocols.state import StateHeader

T = TypeVar("T")
GENESIS = Tip(0, "a" * 64, 0, Candidate("ann", "a:1"))


def chain(length: int, start: Tip = GENESIS) -> list[SignedCommit]:
    tip, signed = start, []
    for _ in range(length):
        commit = Commit(
            ballot=Ballot(tip.epoch + 1, tip.lineage, 1, "ann"),
            plan_digest="b" * 64,
            contributions=(Contribution("ann", 1, tip.total_samples, tip.total_samples + 4, tip.lineage, 1.0),),
            members=("ann",),
            shards=(ShardResult(0, 10, "c" * 64, 1.0),),
            codec="fp32",
            total_samples=tip.total_samples + 4,
            lead=Candidate("ann", "a:1"),
            succession=(),
        )
        signed.append(SignedCommit(commit, b"s", b"c"))
        tip = Tip.after(commit)
    return signed


class FakeReplica:
    """Counts how often it is captured."""

    def __init__(self) -> None:
        self.captures = 0
        self.lineage = "d" * 64

    def capture(self) -> tuple[bytes, StateHeader, Tip]:
        self.captures += 1
        header = StateHeader("ab" * 32, 3, self.lineage, 12, "", {})
        return f"state of {self.lineage}".encode(), header, Tip(3, self.lineage, 12, Candidate("ann", "a:1"))


@pytest.fixture
def handover() -> Iterator[Handover]:
    it, stopped = Handover(), False

    def train() -> None:
        while not stopped:
            job = it.next(wait_s=0.01)
            if job is not None:
                job.run()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(train)
        yield it
        stopped = True


def donor(handover: Handover | None = None, replica: FakeReplica | None = None) -> Donor:
    anything: Any = replica or FakeReplica()
    return Donor(anything, handover or Handover())


def run(work: Awaitable[T]) -> T:
    async def wait() -> T:
        return await work

    return asyncio.run(wait())


def lineages(found: Iterator[Any] | None) -> list[str] | None:
    return None if found is None else [kept.signed.commit.digest for kept in found]


def test_the_commits_after_a_lineage_come_oldest_first_with_their_averages() -> None:
    it, commits = donor(), chain(4)
    for number, signed in enumerate(commits):
        it.keep(signed, f"averaged {number}".encode())
    found = list(it.commits_after(commits[1].commit.digest) or ())
    assert [kept.signed for kept in found] == commits[2:]
    assert [kept.averaged for kept in found] == [b"averaged 2", b"averaged 3"]
    assert lineages(it.commits_after(GENESIS.lineage)) == [signed.commit.digest for signed in commits]


def test_who_is_up_to_date_gets_nothing_and_who_is_elsewhere_is_told_so() -> None:
    it, commits = donor(), chain(3)
    for signed in commits:
        it.keep(signed, b"")
    assert lineages(it.commits_after(commits[-1].commit.digest)) == []
    assert it.commits_after("f" * 64) is None


def test_old_commits_go_when_there_are_too_many() -> None:
    it, commits = donor(), chain(KEPT_COMMITS + 3)
    for signed in commits:
        it.keep(signed, b"x")
    assert it.commits_after(GENESIS.lineage) is None
    assert lineages(it.commits_after(commits[2].commit.digest)) == [s.commit.digest for s in commits[3:]]
    assert it.commits_after(commits[1].commit.digest) is None


def test_old_commits_go_when_they_are_too_large_but_the_newest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer.donor, "KEPT_BYTES", 100)
    it, commits = donor(), chain(3)
    it.keep(commits[0], b"x" * 60)
    it.keep(commits[1], b"x" * 40)
    assert len(list(it.commits_after(GENESIS.lineage) or ())) == 2
    it.keep(commits[2], b"x" * 500)
    assert lineages(it.commits_after(commits[1].commit.digest)) == [commits[2].commit.digest]
    assert it.commits_after(commits[0].commit.digest) is None


def test_after_moving_to_another_lineage_nothing_old_is_given(handover: Handover) -> None:
    replica = FakeReplica()
    it, commits = donor(handover, replica), chain(2)
    it.keep(commits[0], b"")
    found = run(it.snapshot("", replica.lineage))
    assert found is not None
    it.forget()
    assert it.commits_after(GENESIS.lineage) is None
    assert run(it.snapshot(found[0].digest, replica.lineage)) is None


def test_a_snapshot_is_captured_once_per_lineage_however_many_ask(handover: Handover) -> None:
    replica = FakeReplica()
    it = donor(handover, replica)

    async def many() -> list[Any]:
        return await asyncio.gather(*(it.snapshot("", replica.lineage) for _ in range(20)))

    found = asyncio.run(many())
    assert replica.captures == 1
    assert all(each is found[0] for each in found)
    manifest, snapshot = found[0]
    assert snapshot == f"state of {replica.lineage}".encode()
    assert manifest.chunk_sha256 == (hashlib.sha256(snapshot).digest(),)
    replica.lineage = "e" * 64
    assert asyncio.run(it.snapshot("", replica.lineage)) != found[0]
    assert replica.captures == 2


def test_a_download_goes_on_only_from_the_very_snapshot_that_it_began_with(handover: Handover) -> None:
    replica = FakeReplica()
    it = donor(handover, replica)
    first = run(it.snapshot("", replica.lineage))
    assert first is not None
    assert run(it.snapshot(first[0].digest, "whatever the tip is now")) == first
    replica.lineage = "e" * 64
    run(it.snapshot("", replica.lineage))
    assert run(it.snapshot(first[0].digest, replica.lineage)) is None


def test_a_replica_without_state_has_no_snapshot_to_give(handover: Handover) -> None:
    replica = FakeReplica()

    def fail() -> Any:
        raise ValueError("no lineage")

    replica.capture = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no lineage"):
        run(donor(handover, replica).snapshot("", replica.lineage))
