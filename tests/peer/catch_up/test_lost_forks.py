from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from peer.catch_up.lost_forks import LostForks, forks_in, lost_commits
from peer.simulation.transport import SimulatedSigner
from protocols.messages import ObserveRequest
from protocols.observations import Committed, Swarm
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Tip
from protocols.snapshot.commits import chain_to
from protocols.transport.interface import Stream
from tests.peer.virtual import Answers, Net

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
        found.append(SimulatedSigner(name).sign(commit))
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
    assert chain_to(TIP.lineage, [*COMMON, *OURS, *THEIRS]) == [*COMMON, *THEIRS]
    assert chain_to(TIP.lineage, [*COMMON, *THEIRS[:2], *THEIRS[3:]]) == THEIRS[3:]
    assert chain_to(OURS[0].commit.digest, THEIRS) == []


def test_lost_commits_of_two_lineages_are_two_forks() -> None:
    other = chain("dee", range(5, 7), OURS[0].commit.digest)
    assert forks_in([*OURS, *other]) in ([OURS, other], [[OURS[0], *other], OURS[1:]])
    assert forks_in(OURS) == [OURS]
    assert forks_in([]) == []


def record_of(*commits: SignedCommit) -> Answers:
    """A peer that has these commits on record, and stands at the last."""

    async def observe(stream: Stream, request: ObserveRequest) -> AsyncIterator[Any]:
        yield STANDING
        for signed in commits:
            if signed.commit.ballot.epoch > request.after_epoch:
                yield Committed(signed)
        while True:
            await asyncio.sleep(0.5)
            yield STANDING

    return Answers(ObserveRequest=observe)


STANDING = Swarm(None, 0, "training", (), None)


class Others:
    """Everybody who can be asked: one is away."""

    def reachable(self) -> list[Candidate]:
        return [Candidate("away", "away:1"), Candidate("cid", "cid:1")]


class Bob:
    """A peer that moves to other lineages."""

    def __init__(self, net: Net, own: list[SignedCommit], cid: Answers) -> None:
        self.node, self.cid = net.node("bob"), cid
        net.node("cid", cid)
        self.commits = deque(own)
        others: Any = Others()
        self.forks = LostForks(self.node.environment(), self.commits, others, self.node.told)


@pytest.mark.parametrize("replayed", [0, 2])
def test_a_peer_that_lost_a_fork_says_what_was_given_up_and_keeps_the_winners_record(net: Net, replayed: int) -> None:
    bob = Bob(net, [*COMMON, *OURS, *THEIRS[len(THEIRS) - replayed :]], record_of(*COMMON, *THEIRS))
    bob.node.play(bob.forks.settle(TIP))
    assert list(bob.commits) == [*COMMON, *THEIRS]
    (fork, lost), (given_up, mine) = bob.node.events
    assert (fork, lost["epoch"], lost["commits"], lost["samples"]) == ("fork_lost", 4, 3, 24)
    assert (lost["lineage"], lost["to"]) == (OURS[-1].commit.digest, TIP.lineage)
    assert (given_up, mine["reason"], mine["samples"]) == ("given_up", "lost-fork", 12)


def test_a_fork_that_was_told_of_is_not_told_of_at_the_next_move(net: Net) -> None:
    bob = Bob(net, [*COMMON, *OURS], record_of(*COMMON, *THEIRS))
    bob.node.play(bob.forks.settle(TIP))
    bob.forks.moving()
    bob.node.play(bob.forks.settle(TIP))
    assert len(bob.node.told_of("fork_lost")) == len(bob.node.told_of("given_up")) == 1


def test_a_peer_that_replayed_all_that_it_missed_asks_nobody(net: Net) -> None:
    bob = Bob(net, [*COMMON, *THEIRS], record_of())
    bob.node.play(bob.forks.settle(TIP))
    assert (list(bob.commits), bob.node.events, bob.cid.asked) == ([*COMMON, *THEIRS], [], [])


def test_a_peer_that_was_only_behind_gave_up_nothing(net: Net) -> None:
    bob = Bob(net, COMMON, record_of(*COMMON, *THEIRS))
    bob.node.play(bob.forks.settle(TIP))
    assert (list(bob.commits), bob.node.events) == ([*COMMON, *THEIRS], [])


def test_a_commit_that_is_not_its_leaders_is_no_record_of_anything(net: Net) -> None:
    forged = [replace(signed, signature=b"forged") for signed in THEIRS]
    bob = Bob(net, [*COMMON, *OURS], record_of(*COMMON, *forged))
    bob.node.play(bob.forks.settle(TIP))
    assert bob.node.told_of("fork_lost") == [], "nobody told how the two lineages are related"


def test_a_peer_that_moves_again_while_others_are_asked_says_nothing_of_the_lineage_between(net: Net) -> None:
    """It lost a fork, then found its way back: what it says after the second move is of both."""
    bob = Bob(net, [*COMMON, *OURS], record_of(*COMMON, *THEIRS))
    bob.forks.moving()
    first = bob.node.start(bob.forks.settle(TIP))
    net.world.run_until(3.0)
    assert not first.done(), "it waits for whoever is away"
    bob.forks.moving()
    net.world.run_until(60.0, first.done)
    assert bob.node.events == []

    back = Tip.after(OURS[-1].commit)
    bob.cid.answers = record_of(*COMMON, *OURS).answers
    bob.node.play(bob.forks.settle(back))
    assert bob.node.events == [], "its own commits are on its lineage again"
    assert list(bob.commits) == [*COMMON, *OURS]


def test_a_peer_that_moves_twice_and_loses_both_forks_tells_all_of_it_once(net: Net) -> None:
    bob = Bob(net, [*COMMON, *OURS], record_of(*COMMON, *THEIRS))
    bob.forks.moving()
    first = bob.node.start(bob.forks.settle(Tip.after(THEIRS[1].commit)))
    net.world.run_until(3.0)
    bob.forks.moving()
    bob.node.play(bob.forks.settle(TIP))
    net.world.run_until(net.world.now + 60.0, first.done)
    (lost,) = bob.node.told_of("fork_lost")
    assert (lost["commits"], lost["lineage"], lost["to"]) == (3, OURS[-1].commit.digest, TIP.lineage)
    assert [fields["samples"] for fields in bob.node.told_of("given_up")] == [12]
    assert list(bob.commits) == [*COMMON, *THEIRS]


def test_a_commit_that_was_applied_twice_on_the_way_is_lost_once(net: Net) -> None:
    """A device that fails may cost the state between the two: then a snapshot brings it back to before the commit."""
    bob = Bob(net, [*COMMON, *OURS], record_of(*COMMON, *THEIRS))
    bob.forks.moving()
    first = bob.node.start(bob.forks.settle(Tip.after(THEIRS[0].commit)))
    net.world.run_until(3.0)
    bob.commits.extend(OURS)
    bob.forks.moving()
    bob.node.play(bob.forks.settle(TIP))
    net.world.run_until(net.world.now + 60.0, first.done)
    (lost,) = bob.node.told_of("fork_lost")
    assert (lost["commits"], lost["samples"]) == (3, 24)
