from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest

import peer.catch_up.lost_forks
from peer.catch_up.lost_forks import LostForks, chain_to, lost_commits
from protocols.errors import UnreachableError
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Tip

GENESIS = "0" * 64


def chain(
    name: str, epochs: range, parent: str, *, total: int = 0, contributors: tuple[str, ...] = ("ann", "bob")
) -> list[SignedCommit]:
    """Commits of 4 samples a contributor; `name` leads them, so that two chains differ."""
    found = []
    for epoch in epochs:
        total += 4 * len(contributors)
        contributions = tuple(Contribution(peer, 1, 4 * epoch, 4 * epoch + 4, parent, 1.0) for peer in contributors)
        commit = Commit(
            ballot=Ballot(epoch, parent, 1, name),
            plan_digest="d" * 64,
            contributions=contributions,
            members=tuple(sorted({*contributors, name})),
            shards=(ShardResult(0, 1024, "e" * 64, 1.0),),
            codec="fp32",
            next_codec="fp32",
            total_samples=total,
            leader=Candidate(name, f"{name}:1"),
            succession=(),
        )
        found.append(SignedCommit(commit, b"", b""))
        parent = commit.digest
    return found


COMMON = chain("lea", range(1, 4), GENESIS)
OURS = chain("ann", range(4, 7), COMMON[-1].commit.digest, total=COMMON[-1].commit.total_samples)
THEIRS = chain("cid", range(4, 9), COMMON[-1].commit.digest, total=COMMON[-1].commit.total_samples, contributors=("cid", "dee"))
TIP = Tip.after(THEIRS[-1].commit)


def test_the_commits_after_the_fork_are_lost_and_those_before_it_are_not() -> None:
    assert lost_commits([*COMMON, *OURS], [*COMMON, *THEIRS], TIP) == OURS
    assert lost_commits([*COMMON, *OURS], THEIRS, TIP) == OURS
    assert lost_commits([*COMMON, *THEIRS[:2]], THEIRS, TIP) == []


def test_commits_beyond_a_heavier_but_shorter_lineage_are_lost_too() -> None:
    shorter = Tip.after(THEIRS[0].commit)
    assert lost_commits([*COMMON, *OURS], [THEIRS[0]], shorter) == OURS


def test_what_the_others_do_not_tell_counts_as_kept() -> None:
    assert lost_commits(COMMON, THEIRS[2:], TIP) == []


def test_a_chain_ends_at_its_tip_and_has_no_gap() -> None:
    assert chain_to(TIP, [*COMMON, *OURS, *THEIRS]) == [*COMMON, *THEIRS]
    assert chain_to(TIP, [*COMMON, *THEIRS[:2], *THEIRS[3:]]) == THEIRS[3:]
    assert chain_to(Tip.after(OURS[0].commit), THEIRS) == []


class Neighbours:
    def reachable(self) -> list[Candidate]:
        return [Candidate("away", "away:1"), Candidate("cid", "cid:1")]


def settled(
    own: list[SignedCommit], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[SignedCommit], list[tuple[str, dict[str, Any]]]]:
    async def fetch(channels: Any, peer: Candidate, after: int, lineage: str) -> list[SignedCommit]:
        if peer.peer == "away":
            raise UnreachableError("gone")
        return [signed for signed in (*COMMON, *THEIRS) if signed.commit.ballot.epoch > after]

    monkeypatch.setattr(peer.catch_up.lost_forks, "fetch_records", fetch)
    commits = deque(own)
    told: list[tuple[str, dict[str, Any]]] = []
    forks = LostForks("bob", commits, None, Neighbours(), lambda event, **fields: told.append((event, fields)))  # type: ignore[arg-type]
    asyncio.run(forks.settle(TIP))
    return list(commits), told


@pytest.mark.parametrize("replayed", [0, 2])
def test_a_peer_that_lost_a_fork_says_what_was_given_up_and_keeps_the_winners_record(
    replayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, told = settled([*COMMON, *OURS, *THEIRS[len(THEIRS) - replayed :]], monkeypatch)
    assert commits == [*COMMON, *THEIRS]
    (fork, lost), (given_up, mine) = told
    assert (fork, lost["epoch"], lost["commits"], lost["samples"]) == ("fork_lost", 4, 3, 24)
    assert (lost["lineage"], lost["to"]) == (OURS[-1].commit.digest, TIP.lineage)
    assert (given_up, mine["reason"], mine["samples"]) == ("given_up", "lost-fork", 12)


def test_a_peer_that_replayed_all_that_it_missed_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    commits, told = settled([*COMMON, *THEIRS], monkeypatch)
    assert (commits, told) == ([*COMMON, *THEIRS], [])


def test_a_peer_that_was_only_behind_gave_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    commits, told = settled(COMMON, monkeypatch)
    assert (commits, told) == ([*COMMON, *THEIRS], [])
