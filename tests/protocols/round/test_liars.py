"""What a leader makes of members that lie about the round: each lie costs the others a bounded time."""

from __future__ import annotations

from typing import Any

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S, LONGEST_STEP_S, MAX_NAMINGS
from protocols.round.leader_actions import Ask, NoteFailure, SendPlan
from protocols.round.member import Failed
from protocols.round.records import Averages, Ballot, Contribution, ReadyFor, ShardResult
from protocols.round.strikes import FREE
from tests.protocols.round.table import ELEMENTS, TICK_S, Table, of, the_plan


def test_peers_that_a_follower_invents_are_waited_for_a_few_times_an_epoch() -> None:
    it, asked = Table("bob", "eve"), set[str]()
    it.report("lea", 0)
    for number in range(20):
        actions = it.report("eve", 1, planned_with=(f"nobody {number}",))
        asked |= {peer for action in of(Ask, actions) for peer in action.peers}
        it.wait(DETECTION_S + TICK_S)
    assert len(asked) == MAX_NAMINGS
    it.report("eve", 1, planned_with=("nobody more",))
    planned = the_plan(it.report("bob", 20))
    assert set(planned.members) >= {"bob", "lea"}


def test_a_member_that_says_that_two_others_failed_is_the_one_that_failed() -> None:
    it = Table("bob", "cid", "eve")
    planned = the_plan(it.reports(lea=5, cid=5, eve=5, bob=20))
    reducer = next(shard.reducer for shard in planned.shards if shard.reducer not in ("cid", "eve"))
    actions = it.leader.answer("eve", Failed(planned.digest, Reason.REDUCER_LOST, "cid", reducer), it.now)
    (failed,) = of(NoteFailure, actions)
    assert failed.peer == "eve"
    (again,) = of(SendPlan, actions)
    assert {"bob", "cid", reducer} <= set(again.plan.members), "the two that it named are as they were"


def test_a_claim_of_an_hour_for_a_micro_batch_is_waited_for_a_minute() -> None:
    it = Table("bob", "eve")
    it.report("eve", 1, step_s=3599.0)
    planned = the_plan(it.reports(lea=0, bob=20))
    assert "eve" in planned.members
    assert planned.patience_s <= 2 * (DETECTION_S + LONGEST_STEP_S)


def test_slow_computers_among_slow_ones_are_waited_for() -> None:
    it = Table("bob", "cid")
    for peer, step_s in (("lea", 100.0), ("cid", 300.0)):
        it.report(peer, 1, step_s=step_s)
    planned = the_plan(it.report("bob", 20, step_s=90.0))
    assert planned.patience_s >= 2 * 300.0


def test_who_says_to_move_bytes_without_end_does_not_keep_an_attempt_alive() -> None:
    it = Table("bob", "eve")
    planned = the_plan(it.reports(lea=5, eve=5, bob=20))
    for member in planned.members:
        it.accept(planned, member, 20 if member == "bob" else 5)
    actions, moved = list[object](), 0
    while not of(NoteFailure, actions) and it.now < 1000:
        moved += 1 << 20
        it.report("bob", 20)
        it.report("lea", 5)
        it.report("eve", 5, moved=moved)
        actions = it.wait(TICK_S)
    (failed,) = of(NoteFailure, actions)
    assert (failed.reason, failed.peer) == (Reason.STALLED, "eve")
    assert it.now - 100.0 < 3 * planned.patience_s


def test_averages_that_nobody_brings_cost_an_attempt_and_a_strike() -> None:
    it = Table("bob", "cid", "eve")
    ghosts = 0

    def invented() -> ReadyFor:
        """Others each time."""
        nonlocal ghosts
        ghosts += 1
        ghost = Contribution(f"ghost {ghosts}", 1, 0, 10**9, it.tip.lineage, 1.0)
        return ReadyFor(Ballot(1, it.tip.lineage, 1, "eve"), Averages((ghost,), (ShardResult(0, ELEMENTS, "d" * 64, 1.0),)))

    def again(*_: Any) -> list[Any]:
        actions = it.report("eve", 1, ready_for=invented(), promised_attempt=1)
        return [*actions, *it.reports(lea=5, cid=5, bob=20)]

    plans = [the_plan(again())]
    while plans[-1].finishes is not None:
        for member in plans[-1].members:
            it.accept(plans[-1], member)
        sent = list[SendPlan]()
        while not sent:
            sent = of(SendPlan, [*again(), *it.wait(TICK_S)])
            assert it.now < 1000
        plans += [each.plan for each in sent]
    assert [plan.ballot.attempt for plan in plans] == [2, 3]
    assert "bob" in plans[-1].contributors and "eve" not in plans[-1].members
    for _ in range(FREE):
        it.leader._strikes.strike("eve", it.now)
    assert it.leader._strikes.rests("eve", it.now) and not it.leader._strikes.rests("bob", it.now)
