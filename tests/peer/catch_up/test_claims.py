"""What a peer makes of others' claims: it fetches their commits and counts votes, also where it has no lineage of its own yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from peer.catch_up.claims import LIVE_S, Claims
from protocols.observations import Committed, Swarm
from protocols.reasons import Reason
from protocols.round.records import Candidate, SignedCommit, Standing, Tip
from protocols.transport.interface import refusal
from tests.peer.virtual import Answers, Net, Node
from tests.protocols.round.test_history import FIVE, GENESIS, SHARED, TIP, after, chain

FAR = chain(TIP, FIVE, FIVE, FIVE)
ALONE = chain(TIP, ("eve",), ("eve",), ("eve",), contributors=("eve",), samples=10**6)
Commits = Sequence[SignedCommit]


@pytest.fixture
def net() -> Net:
    return Net(seed=1)


class Surroundings:
    """`me` looks at what `ann` and `eve` show."""

    def __init__(
        self, net: Net, *, tip: Tip | None, record: Commits = (), said: Tip | None = None, **shown: Commits | None
    ) -> None:
        self.stand: dict[str, Standing] = {}
        self.nodes: dict[str, Node] = {}
        for name, commits in shown.items():
            self.nodes[name] = net.node(name, Answers(ObserveRequest=self._shows(commits)))
            if commits:
                self.stand[name] = Tip.after(commits[-1].commit).standing
        self.node = net.node("me", reachable=False)
        self.claims = Claims(
            self.node.environment(),
            GENESIS,
            self,  # type: ignore[arg-type]
            lambda: tip,
            lambda: record,
            lambda: said.standing if said is not None else None,
        )

    def _shows(self, commits: Commits | None) -> Any:
        async def answer(stream: Any, request: Any) -> AsyncIterator[Any]:
            if commits is None:
                raise refusal(Reason.BUSY, "not now")
            view = Swarm(None, 0, "training", (), None)
            yield view
            for signed in commits:
                if signed.commit.ballot.epoch > request.after_epoch:
                    yield Committed(signed)
            yield view

        return answer

    def candidate(self, peer: str) -> Candidate | None:
        return self.nodes[peer].candidate if peer in self.nodes else None

    def reachable(self) -> list[Candidate]:
        return [node.candidate for node in self.nodes.values()]

    def followers(self) -> list[tuple[str, Standing]]:
        return []

    def wins(self, peer: str, theirs: Standing, *, follows: str = "", stand: dict[str, Standing] | None = None) -> bool:
        return self.node.play(self.claims.wins(peer, theirs, follows, stand if stand is not None else {}))


HERE = dict.fromkeys(FIVE, TIP.standing)


def test_a_longer_lineage_that_most_voted_for_is_followed_at_once(net: Net) -> None:
    it = Surroundings(net, tip=TIP, record=SHARED, ann=[*SHARED, *FAR])
    it.claims.advanced(SHARED[-1], it.node.loop.time())
    assert it.wins("ann", it.stand["ann"], stand=HERE)


def test_one_that_nobody_else_voted_for_waits_until_a_majority_has_left_or_nobody_commits(net: Net) -> None:
    it = Surroundings(net, tip=TIP, record=SHARED, eve=[*SHARED, *ALONE])
    it.claims.advanced(SHARED[-1], it.node.loop.time())
    assert not it.wins("eve", it.stand["eve"], stand=HERE)
    assert not it.wins("eve", it.stand["eve"], stand={}), "nobody says that it has left"
    assert it.wins("eve", it.stand["eve"], stand=dict.fromkeys(HERE, it.stand["eve"])), "all others are there"
    assert it.wins("eve", it.stand["eve"], follows="eve", stand=HERE), "it is the leader here"
    net.world.at(LIVE_S + 1, None, lambda: None)
    net.world.run_until(LIVE_S + 1, lambda: False)
    assert it.wins("eve", it.stand["eve"], stand=HERE), "here nobody has committed for a minute"


def test_a_fork_without_votes_loses_however_heavy_and_one_with_votes_wins_however_light(net: Net) -> None:
    mine = [*SHARED, *FAR]
    it = Surroundings(net, tip=Tip.after(FAR[-1].commit), record=mine, eve=[*SHARED, *ALONE])
    it.claims.advanced(FAR[-1], it.node.loop.time())
    assert not it.wins("eve", it.stand["eve"])
    mine = [*SHARED, *ALONE]
    it = Surroundings(net, tip=Tip.after(ALONE[-1].commit), record=mine, ann=[*SHARED, *FAR])
    assert it.wins("ann", it.stand["ann"])


def test_a_fork_whose_voters_have_gone_is_left_for_a_heavier_one(net: Net) -> None:
    it = Surroundings(net, tip=Tip.after(FAR[-1].commit), record=[*SHARED, *FAR], eve=[*SHARED, *ALONE])
    it.claims.advanced(FAR[-1], it.node.loop.time())
    net.world.at(LIVE_S + 1, None, lambda: None)
    net.world.run_until(LIVE_S + 1, lambda: False)
    assert it.wins("eve", it.stand["eve"])


def test_a_lineage_that_is_not_shown_is_no_reason_to_leave_a_majority(net: Net) -> None:
    it = Surroundings(net, tip=TIP, record=SHARED, eve=None)
    claim = Standing(1000, "f" * 64, 1 << 50)
    assert not it.wins("eve", claim, stand=HERE)
    assert it.wins("eve", claim, stand={})


def test_a_newcomer_goes_where_the_coordinator_says_that_the_run_stands_and_on_by_votes(net: Net) -> None:
    it = Surroundings(net, tip=None, said=TIP, ann=[*SHARED, *FAR], eve=[*SHARED, *ALONE], bob=chain(GENESIS, FIVE, name="b"))
    assert it.wins("ann", TIP.standing) and it.wins("ann", it.stand["ann"])
    assert not it.wins("eve", it.stand["eve"])
    assert not it.wins("bob", it.stand["bob"]), "the coordinator's lineage is not on it"
    nothing_said = Surroundings(net, tip=None, cid=[*SHARED, *ALONE])
    assert nothing_said.wins("cid", nothing_said.stand["cid"])


def test_who_came_by_a_snapshot_learns_who_votes(net: Net) -> None:
    it = Surroundings(net, tip=TIP, record=(), ann=SHARED)
    it.node.play(it.claims.recall(TIP))
    later = after(TIP, ("eve",), ("eve",))
    fork = Surroundings(net, tip=TIP, record=(), dan=[*SHARED, later])
    fork.claims._earlier = it.claims._earlier
    fork.claims.advanced(SHARED[-1], fork.node.loop.time())
    assert not fork.wins("dan", Tip.after(later.commit).standing, stand=HERE)
