"""Who wins a fork: votes first, by what the voters committed before it, and then the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from peer.simulation.transport import SimulatedSigner
from protocols.round.history import FEWEST_VOTERS, RECENT_EPOCHS, Fork, electorate
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Tip, vote_message

GENESIS = Tip.genesis("ab" * 32, "00" * 32, Candidate("aux", "aux:1"), "fp32")
FIVE = ("ann", "bob", "cid", "dan", "eve")


def after(
    tip: Tip, voters: Sequence[str], contributors: Sequence[str] = FIVE, *, name: str = "a", samples: int = 4
) -> SignedCommit:
    first = tip.epoch * 100
    commit = Commit(
        ballot=Ballot(tip.epoch + 1, tip.lineage, 1, contributors[0]),
        plan_digest=name * 64,
        contributions=tuple(Contribution(peer, 1, first, first + samples, tip.lineage, 1.0) for peer in contributors),
        members=tuple(sorted({*voters, *contributors})),
        shards=(ShardResult(0, 1024, "e" * 64, 1.0),),
        codec="fp32",
        next_codec="fp32",
        total_samples=tip.total_samples + samples * len(contributors),
        leader=Candidate(contributors[0], "x:1"),
        succession=(),
    )
    result = commit.averages.result(commit.plan_digest)
    return SimulatedSigner(contributors[0]).sign(
        commit, tuple(SimulatedSigner(peer).vote(vote_message(result)) for peer in voters)
    )


def chain(tip: Tip, *voters: Sequence[str], **options: Any) -> list[SignedCommit]:
    found = list[SignedCommit]()
    for each in voters:
        found.append(after(tip, each, **options))
        tip = Tip.after(found[-1].commit)
    return found


SHARED = chain(GENESIS, FIVE, FIVE)
TIP = Tip.after(SHARED[-1].commit)


def fork(mine: list[SignedCommit], theirs: list[SignedCommit]) -> Fork:
    record = [*SHARED, *mine]
    return Fork(record, Tip.after(record[-1].commit), [*SHARED[1:], *theirs], GENESIS)


def test_votes_weigh_by_samples_of_the_last_epochs_and_nobody_has_more_than_is_allowed() -> None:
    commits = [signed.commit for signed in SHARED]
    assert electorate(commits, "aux") == pytest.approx(dict.fromkeys(FIVE, 0.2))
    assert electorate([], "aux") == {"aux": 1.0}
    late = [after(TIP, FIVE, ("fay",), samples=1000).commit for _ in range(RECENT_EPOCHS)]
    assert electorate([*commits, *late], "aux") == {"fay": 1.0}, "who gave nothing lately has no vote"
    weights = electorate([*commits, late[0]], "aux")
    assert weights["fay"] == pytest.approx(1 / 3), "of six, two equal parts"


def test_a_side_that_most_voted_for_wins_over_a_heavier_one() -> None:
    mine, theirs = chain(TIP, FIVE[:3]), chain(TIP, ("eve",), ("eve",), contributors=("eve",), samples=10**6)
    assert fork(mine, theirs).mine_wins and not fork(mine, theirs).theirs_wins
    assert fork(theirs, mine).theirs_wins and not fork(theirs, mine).mine_wins


def test_votes_count_whichever_commit_of_a_side_they_were_given_for_and_once() -> None:
    alone_first = chain(TIP, ("ann",), ("ann", "bob"), ("bob", "cid"))
    other = chain(TIP, ("eve",), ("eve",), ("eve", "dan"), name="b")
    assert fork(alone_first, other).mine_wins
    assert not fork(chain(TIP, ("ann",), ("ann",), ("ann",)), other).mine_wins, "one voter is one voter"


def test_newcomers_have_no_votes_however_many_they_are() -> None:
    crowd = tuple(f"sybil {number:02}" for number in range(50))
    theirs = chain(TIP, ("eve", *crowd), contributors=("eve", *crowd))
    assert fork(chain(TIP, FIVE[:3]), theirs).mine_wins
    assert not fork(chain(TIP, FIVE[:2]), theirs).theirs_wins


def test_of_two_sides_with_a_majority_or_without_neither_wins_by_votes() -> None:
    for mine, theirs in ((FIVE[:3], FIVE[2:]), (FIVE[:1], FIVE[3:])):
        it = fork(chain(TIP, mine), chain(TIP, theirs, name="b"))
        assert it.is_known and not it.mine_wins and not it.theirs_wins


def test_where_voters_are_few_votes_do_not_count() -> None:
    few = FIVE[: FEWEST_VOTERS - 1]
    shared = chain(GENESIS, few, contributors=few)
    tip = Tip.after(shared[-1].commit)
    mine, theirs = after(tip, few, few), after(tip, ("eve",), ("eve",), name="b")
    it = Fork([*shared, mine], Tip.after(mine.commit), [*shared, theirs], GENESIS)
    assert it.is_known and not it.counts and not it.mine_wins


def test_a_chain_whose_weights_do_not_add_up_is_not_sound() -> None:
    (honest,) = chain(TIP, ("eve",))
    assert fork([], [honest]).is_sound
    heavier = after(TIP, ("eve",), samples=5).commit
    assert not fork([], [replace(honest, commit=replace(heavier, total_samples=10**9))]).is_sound


def test_of_a_chain_that_does_not_reach_back_nothing_is_known() -> None:
    far = Tip.after(after(TIP, FIVE, name="c").commit)
    it = fork(chain(TIP, FIVE), [])
    assert it.is_known and not it.theirs
    beyond = chain(far, FIVE, name="d")
    it = Fork([*SHARED], TIP, beyond, GENESIS)
    assert not it.is_known and not it.counts and it.mine == []
