"""A peer that catches up never delays a round, whatever it does meanwhile."""

from __future__ import annotations

import pytest

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.leader_actions import Announce, NoteFailure, SendAbort
from protocols.round.records import Standing
from tests.protocols.round.table import Table, of, the_plan, three, threes_result


def join_and_catch_up(table: Table, peer: str) -> None:
    assert table.join(peer) == []
    behind = Standing(0, "e" * 64, 0)
    assert table.report(peer, 0, caught_up=False, standing=behind, phase="catching up") == []


@pytest.mark.parametrize("then", ["stays", "leaves", "falls silent", "starts again"])
def test_a_round_under_way_neither_waits_for_a_newcomer_nor_ends_with_it(then: str) -> None:
    table, plan = three()
    join_and_catch_up(table, "dot")
    if then == "leaves":
        assert table.leader.left("dot", Reason.CONNECTION_LOST, table.now) == []
    elif then == "falls silent":
        assert of(SendAbort, table.wait(DETECTION_S + 0.25, silent=("dot",))) == []
    elif then == "starts again":
        assert table.join("dot", incarnation=2) == []
    assert table.leader.attempt is not None and table.leader.attempt.plan == plan
    (announced,) = of(Announce, table.ready(threes_result(table, plan), "bob", "cid", "lea"))
    assert announced.commit.members == plan.members


def test_a_peer_that_catches_up_is_in_no_plan_and_its_samples_are_waited_for_by_nobody() -> None:
    table = Table("bob", "cid")
    join_and_catch_up(table, "dot")
    plan = the_plan(table.reports(lea=0, bob=12, cid=8))
    assert "dot" not in plan.members and "dot" not in {shard.reducer for shard in plan.shards}


def test_a_member_that_begins_to_catch_up_between_rounds_is_left_out_of_the_next() -> None:
    table = Table("bob", "cid", "dot")
    table.reports(dot=5)
    table.report("dot", 0, caught_up=False)
    plan = the_plan(table.reports(lea=0, bob=12, cid=8))
    assert "dot" not in plan.members
    assert of(NoteFailure, table.leader.left("dot", Reason.CONNECTION_LOST, table.now)) == []
