"""A leader with peers connected and a clock in hand, for the tests of what a leader does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from protocols.round.leader import Leader
from protocols.round.leader_actions import SendPlan
from protocols.round.member import Accept, Ready
from protocols.round.plans import Plan
from protocols.round.records import Candidate, Contribution, Hello, Report, Result, ShardResult, Tip, contributions_digest

RUN = "ab" * 32
ELEMENTS = 8 * 1024
TICK_S = 0.25


def address(peer: str) -> str:
    return f"{peer}:1"


def genesis(leader: str = "lea") -> Tip:
    return Tip.genesis(RUN, "00" * 32, Candidate(leader, address(leader)), "fp32")


class Table:
    """A leader with peers connected and a clock in hand. Collects the actions of the last event."""

    def __init__(
        self,
        *peers: str,
        target: int = 20,
        tip: Tip | None = None,
        max_epochs: int | None = None,
        me: str = "lea",
        codecs: Mapping[str, int] | None = None,
        overlap: bool = False,
    ) -> None:
        self.now = 100.0
        self.tip = tip or genesis()
        self.leader = Leader(
            Candidate(me, address(me)),
            run_digest=RUN,
            target_batch_size=target,
            elements=ELEMENTS,
            codecs=codecs or {"fp32": 4 * ELEMENTS},
            max_epochs=max_epochs,
            overlap=overlap,
        )
        self.me = me
        self.leader.follow(self.tip)
        self.opening = self.leader.take_over(self.now)
        self.moved: dict[str, int] = {}
        for peer in (me, *peers):
            self.join(peer)

    def join(self, peer: str, *, incarnation: int = 1, client_mode: bool = False) -> list[Any]:
        at = "" if client_mode else address(peer)
        hello = Hello(incarnation, False, at, at, peer)
        return self.leader.joined(peer, hello, self.now)

    def report(self, peer: str, samples: int = 0, *, moved: int | None = None, **change: Any) -> list[Any]:
        if moved is not None:
            self.moved[peer] = moved
        report = Report(self.tip.standing, samples, 5.0, 0.2, 0, self.moved.get(peer, 0), True, "training")
        return self.leader.reported(peer, replace(report, **change), self.now)

    def reports(self, **samples: int) -> list[Any]:
        actions = []
        for peer, count in samples.items():
            actions += self.report(peer, count)
        return actions

    def accept(self, plan: Plan, peer: str, samples: int = 0, /, **change: Any) -> list[Any]:
        contribution = Contribution(peer, 1, 0, samples, self.tip.lineage, 1.0) if samples else None
        if contribution is not None:
            contribution = replace(contribution, **change)
        return self.leader.answer(peer, Accept(plan.digest, contribution), self.now)

    def ready(self, result: Result, *peers: str) -> list[Any]:
        actions = []
        for peer in peers:
            actions += self.leader.answer(peer, Ready(result), self.now)
        return actions

    def wait(self, seconds: float, silent: tuple[str, ...] = ()) -> list[Any]:
        """Time passes, everybody else heard all the while."""
        actions: list[Any] = []
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + TICK_S)
            for peer in self.leader.followers.keys() - set(silent):
                self.leader.heard(peer, self.now)
            actions += self.leader.tick(self.now)
        return actions


def result_of(plan: Plan, *contributions: Contribution) -> Result:
    shards = tuple(ShardResult(shard.start, shard.stop, "d" * 64, 1.0) for shard in plan.shards)
    return Result(plan.digest, contributions_digest(contributions), shards)


def of(kind: type[Any], actions: list[Any]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def the_plan(actions: list[Any]) -> Plan:
    (sent,) = of(SendPlan, actions)
    assert sent.to == sent.plan.members
    plan: Plan = sent.plan
    return plan


def three(**change: Any) -> tuple[Table, Plan]:
    """bob and cid contribute 12 each, the leader only reduces; everybody has accepted."""
    table = Table("bob", "cid", **change)
    plan = the_plan(table.reports(lea=0, bob=12, cid=12))
    for peer, samples in (("lea", 0), ("bob", 12), ("cid", 12)):
        assert table.accept(plan, peer, samples) == []
    return table, plan


def threes_result(table: Table, plan: Plan) -> Result:
    return result_of(plan, *(Contribution(peer, 1, 0, 12, table.tip.lineage, 1.0) for peer in ("bob", "cid")))
