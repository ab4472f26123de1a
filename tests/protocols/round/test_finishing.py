"""Finishing: if a member was ready when an attempt ended, the next attempt carries its averages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocols.reasons import Reason
from protocols.round.leader_actions import Announce, NoteFailure, SendPlan
from protocols.round.member import Failed, Refuse
from protocols.round.records import (
    Averages,
    Ballot,
    Contribution,
    ReadyFor,
    ShardResult,
)
from tests.protocols.round.table import (
    ELEMENTS,
    Table,
    genesis,
    of,
    result_of,
    the_plan,
    three,
)


def held_by(table: Table, *contributions: Contribution, attempt: int = 1, leader: str = "dag") -> ReadyFor:
    shards = (ShardResult(0, 4096, "d" * 64, 1.0), ShardResult(4096, ELEMENTS, "e" * 64, 1.0))
    return ReadyFor(Ballot(1, table.tip.lineage, attempt, leader), Averages(contributions, shards))


def gave(table: Table, peer: str, samples: int = 12) -> Contribution:
    return Contribution(peer, 1, 0, samples, table.tip.lineage, 1.0)


def test_what_a_member_was_ready_for_is_finished_with_the_samples_of_one_who_is_gone() -> None:
    table, plan = three()
    contributions = (gave(table, "bob"), gave(table, "cid"))
    table.ready(result_of(plan, *contributions), "bob")
    actions = table.leader.left("cid", Reason.CONNECTION_LOST, table.now)
    second = the_plan(actions)
    assert second.ballot.attempt == 2
    assert (second.members, second.contributors) == (("bob", "lea"), ())
    assert second.finishes == Averages(contributions, result_of(plan, *contributions).shards)
    assert {shard.reducer for shard in second.shards} == {"bob"}, "who holds the averages passes them on"
    for peer in second.members:
        assert table.accept(second, peer) == []
    (announced,) = of(Announce, table.ready(second.finishes.result(second.digest), "bob", "lea"))
    assert announced.commit.contributions == contributions
    assert announced.commit.samples == 24
    assert announced.commit.members == ("bob", "lea")


def test_a_new_leader_finishes_the_highest_attempt_that_somebody_was_ready_for() -> None:
    table = Table("bob", "cid", tip=replace(genesis(), members=("bob", "cid", "lea")))
    low = held_by(table, gave(table, "bob", 11), attempt=1)
    high = held_by(table, gave(table, "bob"), gave(table, "cid"), attempt=2)
    table.report("bob", 12, promised_attempt=2, ready_for=low)
    table.report("cid", 12, promised_attempt=2, ready_for=high)
    plan = the_plan(table.report("lea", 0))
    assert plan.ballot.attempt == 3
    assert plan.finishes == high.averages


def test_a_client_mode_holder_brings_the_averages_to_those_who_can_be_dialled() -> None:
    table = Table("bob")
    table.join("cid", client_mode=True)
    table.report("lea", 0)
    table.report("bob", 0)
    held = held_by(table, gave(table, "cid"))
    plan = the_plan(table.report("cid", 12, promised_attempt=1, ready_for=held))
    assert plan.finishes == held.averages
    assert plan.contributors == ("cid",)
    assert {shard.reducer for shard in plan.shards} == {"bob", "lea"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"parent": "f" * 64}, id="of another lineage"),
        pytest.param({"shards": (ShardResult(0, 4096, "d" * 64, 1.0),)}, id="of another model"),
    ],
)
def test_what_a_member_claims_to_hold_is_not_finished_when_it_cannot_be_committed(change: dict[str, Any]) -> None:
    table = Table("bob")
    parent = change.get("parent", table.tip.lineage)
    held = held_by(table, replace(gave(table, "bob"), base=parent))
    averages = replace(held.averages, shards=change.get("shards", held.averages.shards))
    table.report("lea", 0)
    ready_for = ReadyFor(replace(held.ballot, parent=parent), averages)
    assert of(SendPlan, table.report("bob", 12, promised_attempt=1, ready_for=ready_for)) == []
    assert the_plan(table.wait(2.0)).finishes is None


def test_averages_that_a_contributor_disowns_are_not_finished_again() -> None:
    table = Table("bob", "cid")
    table.report("bob", 12, promised_attempt=1)
    table.report("cid", 12, promised_attempt=1, ready_for=held_by(table, gave(table, "bob", 11)))
    plan = the_plan(table.report("lea", 0))
    assert plan.finishes is not None
    actions = table.leader.answer("bob", Refuse(plan.digest, Reason.RESULTS_DIFFER, 1), table.now)
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.RESULTS_DIFFER, "bob")]
    assert of(SendPlan, actions) == [], "others may draw samples yet, whatever one says that it promised"
    assert the_plan(table.wait(2.0)).finishes is None


def test_when_nobody_is_left_who_could_pass_the_averages_on_a_fresh_set_is_planned() -> None:
    table = Table("bob")
    table.report("lea", 5)
    plan = the_plan(table.report("bob", 12, promised_attempt=1, ready_for=held_by(table, gave(table, "bob"))))
    assert plan.finishes is not None
    actions = table.leader.answer("lea", Failed(plan.digest, Reason.REDUCER_LOST, "lea", "bob"), table.now)
    later = the_plan(actions)
    assert later.finishes is not None and later.contributors == ("bob",), "bob brings them to the leader"
    actions = table.leader.answer("bob", Failed(later.digest, Reason.REDUCER_LOST, "bob", "lea"), table.now)
    assert of(SendPlan, actions) == [], "others may draw samples yet, whatever one says that it promised"
    assert the_plan(table.wait(2.0)).finishes is None


def test_nobody_present_is_said_to_have_given_more_than_it_reported() -> None:
    table = Table("bob", "cid")
    table.report("bob", 12, promised_attempt=1)
    table.report("cid", 12, promised_attempt=1, ready_for=held_by(table, gave(table, "bob", 99)))
    assert the_plan(table.report("lea", 0)).finishes is None
