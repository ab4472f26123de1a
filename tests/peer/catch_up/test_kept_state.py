from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

import peer.catch_up.kept_state
from peer.catch_up.kept_state import ASKED_SHARE, CAPTURE_SHARE, UNUSED_S, WANTED_S, KeptState
from peer.environment import Sizes
from protocols.errors import BadMessageError
from protocols.messages import Manifest
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Standing, Tip
from protocols.snapshot.format import StateHeader
from tests.peer.virtual import JobsAtOnce, in_virtual_time

T = TypeVar("T")
KEPT_COMMITS = Sizes().kept_commits
GENESIS = Tip(0, "a" * 64, 0, Candidate("ann", "a:1"), "fp32")


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
            next_codec="fp32",
            total_samples=tip.total_samples + 4,
            leader=Candidate("ann", "a:1"),
            succession=(),
        )
        signed.append(SignedCommit(commit, b"s", b"c"))
        tip = Tip.after(commit)
    return signed


class FakeReplica:
    """Counts how often it is captured; stands wherever the test says."""

    def __init__(self, tip: Tip = GENESIS) -> None:
        self.captures = 0
        self.tip = tip
        self.takes: Callable[[], None] = lambda: None  # lets the clock go on during a capture

    def capture(self) -> tuple[bytes, StateHeader, Tip]:
        self.captures += 1
        self.takes()
        header = StateHeader("ab" * 32, self.tip.epoch, self.tip.lineage, self.tip.total_samples, "", {})
        return f"state of {self.tip.lineage}".encode(), header, self.tip


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def kept_state(replica: FakeReplica | None = None, clock: Clock | None = None) -> KeptState:
    """With a training thread that does its jobs at once."""
    training: Any = SimpleNamespace(replica=replica or FakeReplica(), jobs=JobsAtOnce())
    environment: Any = SimpleNamespace(clock=clock or Clock(), sizes=Sizes())
    return KeptState(training, environment)


def run(work: Coroutine[Any, Any, T]) -> T:
    return in_virtual_time(lambda node: work)


def lineages(found: Iterator[Any] | None) -> list[str] | None:
    return None if found is None else [kept.signed.commit.digest for kept in found]


def test_the_commits_after_a_lineage_come_oldest_first_with_their_averages() -> None:
    it, commits = kept_state(), chain(4)
    for number, signed in enumerate(commits):
        it.keep(signed, f"averaged {number}".encode())
    found = list(it.commits_after(commits[1].commit.digest) or ())
    assert [kept.signed for kept in found] == commits[2:]
    assert [kept.result for kept in found] == [b"averaged 2", b"averaged 3"]
    assert lineages(it.commits_after(GENESIS.lineage)) == [signed.commit.digest for signed in commits]


def test_who_is_up_to_date_gets_nothing_and_who_is_elsewhere_is_told_so() -> None:
    it, commits = kept_state(), chain(3)
    for signed in commits:
        it.keep(signed, b"")
    assert lineages(it.commits_after(commits[-1].commit.digest)) == []
    assert it.commits_after("f" * 64) is None


def test_old_commits_go_when_there_are_too_many() -> None:
    it, commits = kept_state(), chain(KEPT_COMMITS + 3)
    for signed in commits:
        it.keep(signed, b"x")
    assert it.commits_after(GENESIS.lineage) is None
    assert lineages(it.commits_after(commits[2].commit.digest)) == [s.commit.digest for s in commits[3:]]
    assert it.commits_after(commits[1].commit.digest) is None


def test_old_commits_go_when_they_are_too_large_but_the_newest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer.catch_up.kept_state, "KEPT_BYTES", 100)
    it, commits = kept_state(), chain(3)
    it.keep(commits[0], b"x" * 60)
    it.keep(commits[1], b"x" * 40)
    assert len(list(it.commits_after(GENESIS.lineage) or ())) == 2
    it.keep(commits[2], b"x" * 500)
    assert lineages(it.commits_after(commits[1].commit.digest)) == [commits[2].commit.digest]
    assert it.commits_after(commits[0].commit.digest) is None


class Peer:
    """A donor that applies commits: its replica moves with them."""

    def __init__(self) -> None:
        self.replica, self.clock = FakeReplica(), Clock()
        self.kept_state = kept_state(self.replica, self.clock)

    async def apply(self, *commits: SignedCommit, seconds: float = 1.0, result: bytes = b"x") -> None:
        for signed in commits:
            self.clock.now += seconds
            self.replica.tip = Tip.after(signed.commit)
            self.kept_state.keep(signed, result)
            for task in list(self.kept_state._tasks):
                await task

    async def offered(self, digest: str = "", at_least: Standing | None = None) -> Manifest:
        offer = await self.kept_state.offer(digest, at_least)
        assert offer is not None
        return offer


def test_after_moving_to_another_lineage_nothing_old_is_given() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(2)
        await it.apply(commits[0])
        offer = await it.offered()
        it.kept_state.forget()
        assert it.kept_state.commits_after(GENESIS.lineage) is None
        assert it.kept_state.fetched("eve", offer.digest) is None

    run(play())


def test_a_snapshot_is_captured_once_however_many_ask() -> None:
    async def play() -> None:
        it = Peer()
        offers = await asyncio.gather(*(it.offered() for _ in range(20)))
        assert it.replica.captures == 1 and set(offers) == {offers[0]}
        held = it.kept_state.fetched("eve", offers[0].digest)
        assert held is not None and held.snapshot == f"state of {GENESIS.lineage}".encode()
        assert offers[0].chunk_sha256 == (hashlib.sha256(held.snapshot).digest(),)

    run(play())


def test_what_is_at_hand_is_offered_while_the_commits_kept_lead_on_from_it() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(KEPT_COMMITS + 4)
        await it.apply(commits[0])
        first = await it.offered()
        it.clock.now += WANTED_S - 10
        it.kept_state._asked_at -= 2 * WANTED_S  # so that it captures nothing of its own accord
        await it.apply(*commits[1:4], seconds=0.1)
        assert await it.offered() == first and it.replica.captures == 1
        it.kept_state._asked_at -= 2 * WANTED_S
        await it.apply(*commits[4 : KEPT_COMMITS + 2], seconds=0.1, result=b"x" * 500)
        assert (await it.offered()).epoch == KEPT_COMMITS + 2 and it.replica.captures == 2

    run(play())


@pytest.mark.parametrize(
    ("commits", "rested_s", "captures"),
    [(2, 100.0, 1), (3, 100.0, 2), (3, 1 / ASKED_SHARE - 1, 1)],
    ids=["a short way on", "a long way on", "a capture just before"],
)
def test_a_snapshot_at_hand_is_offered_unless_a_new_one_is_smaller_than_the_way_on_from_it(
    commits: int, rested_s: float, captures: int
) -> None:
    async def play() -> None:
        it = Peer()
        it.replica.takes = lambda: setattr(it.clock, "now", it.clock.now + 1.0)
        first = await it.offered()
        it.kept_state._asked_at -= 2 * WANTED_S  # so that it captures nothing of its own accord
        it.clock.now += rested_s
        it.kept_state.fetched("eve", first.digest)
        await it.apply(*chain(commits), seconds=0.0, result=b"x" * (first.total_bytes // 2))
        assert (await it.offered()).epoch == (commits if captures == 2 else 0) and it.replica.captures == captures
        assert await it.offered(first.digest) == first, "a download under way goes on"

    run(play())


def test_a_state_less_far_than_asked_for_is_not_offered() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(2)
        await it.apply(commits[0])
        early = await it.offered()
        await it.apply(commits[1])
        there = Tip.after(commits[1].commit).standing
        later = await it.offered(early.digest, there)
        assert later.epoch == 2, "what the joiner holds already is not offered to it"
        heavier = Standing(3, "0" * 64, there.total_samples)
        assert heavier.heavier_than(there), "by the tie-break"
        assert await it.kept_state.offer("", heavier) is None and it.replica.captures == 2

    run(play())


def test_a_download_under_way_is_offered_again_by_its_name() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(2)
        first = await it.offered()
        await it.apply(*commits)
        newer = await it.offered("", Tip.after(commits[1].commit).standing)
        assert newer != first
        assert await it.offered() == newer and await it.offered(first.digest) == first

    run(play())


def test_donors_that_were_asked_at_different_epochs_soon_hold_the_same_snapshot() -> None:
    async def play() -> None:
        commits = chain(9)
        sources = [Peer() for _ in range(3)]
        for epoch, it in enumerate(sources, start=1):
            await it.apply(*commits[:epoch])
            await it.offered()
            # One captures at every epoch, one at every second, one at every fourth.
            it.kept_state._capture_s = epoch * CAPTURE_SHARE
        assert [it.kept_state.every_epochs for it in sources] == [1, 2, 4]
        for epoch, it in enumerate(sources, start=1):
            it.kept_state._capture = unmeasured(it)  # type: ignore[method-assign]
            await it.apply(*commits[epoch:8])
        offers = {await it.offered() for it in sources}
        assert len(offers) == 1 and {offer.epoch for offer in offers} == {8}

    run(play())


def unmeasured(it: Peer) -> Any:
    return it.replica.capture


def test_who_is_not_asked_any_more_captures_nothing_and_gives_its_memory_back() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(4)
        offer = await it.offered()
        it.clock.now += WANTED_S
        await it.apply(*commits)
        assert it.replica.captures == 1
        assert it.kept_state.fetched("eve", offer.digest) is None

    run(play())


def test_a_snapshot_that_is_being_fetched_survives_the_next_one() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(8)
        first = await it.offered()
        await it.apply(commits[0])
        assert it.replica.captures == 2
        assert it.kept_state.fetched("eve", first.digest) is not None
        it.kept_state._capture_s = 3 * CAPTURE_SHARE  # from now on at every fourth
        await it.apply(*commits[1:3])
        assert it.kept_state.fetched("eve", first.digest) is not None
        it.clock.now += UNUSED_S
        await it.apply(commits[3])
        assert it.kept_state.fetched("eve", first.digest) is None
        assert (await it.offered()).epoch == 4

    run(play())


def test_two_snapshots_of_which_somebody_fetches_both_stay() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(6)
        it.kept_state._capture = unmeasured(it)  # type: ignore[method-assign]
        first = await it.offered()
        await it.apply(commits[0])
        second = await it.offered()
        assert second != first
        for signed in commits[1:]:
            assert it.kept_state.fetched("eve", first.digest) is not None
            assert it.kept_state.fetched("fay", second.digest) is not None
            await it.apply(signed)
        assert it.replica.captures == 2, "there is no room for a third"

    run(play())


def test_a_download_that_lasts_for_many_epochs_keeps_its_snapshot() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(14)
        it.kept_state._capture = unmeasured(it)  # type: ignore[method-assign]
        first = await it.offered()
        for signed in commits:
            assert it.kept_state.fetched("eve", first.digest) is not None
            await it.apply(signed)
        assert it.replica.captures <= 6, "the longer it lasts, the further apart are the next ones"
        assert (await it.offered()).epoch == 8, "the newest is for who comes next"

    run(play())


def test_common_epochs_are_far_enough_apart_for_the_downloads_seen() -> None:
    async def play() -> None:
        it, commits = Peer(), chain(2)
        await it.apply(*commits)
        offer = await it.offered()
        it.kept_state._capture_s = 0.0
        assert it.kept_state.every_epochs == 1
        it.kept_state.fetched("eve", offer.digest)
        it.clock.now += 10.0  # ten epochs
        it.kept_state.fetched("eve", offer.digest)
        assert it.kept_state.every_epochs == 16

    run(play())


def test_the_commits_since_a_snapshot_are_kept_up_to_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else who downloads for long could not go on from what it downloaded."""
    monkeypatch.setattr(peer.catch_up.kept_state, "KEPT_BYTES", 20)
    it, commits = Peer(), chain(20)

    async def play() -> None:
        offer = await it.offered()
        held = it.kept_state.fetched("eve", offer.digest)
        assert held is not None and len(held.snapshot) == 73
        it.kept_state._asked_at -= 2 * WANTED_S
        await it.apply(*commits[:7], seconds=0.1, result=b"x" * 10)
        assert len(list(it.kept_state.commits_after(offer.lineage) or ())) == 7
        await it.apply(commits[7], seconds=0.1, result=b"x" * 10)
        assert it.kept_state.commits_after(offer.lineage) is None

    run(play())


def test_a_replica_without_state_has_no_snapshot_to_give() -> None:
    replica = FakeReplica()

    def fail() -> Any:
        raise BadMessageError("no lineage")

    replica.capture = fail  # type: ignore[method-assign]
    with pytest.raises(BadMessageError, match="no lineage"):
        run(kept_state(replica).offer("", None))
