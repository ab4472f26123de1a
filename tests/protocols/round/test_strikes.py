"""Members that cost attempts rest, for longer each time; honest members that fail now and then do not."""

from __future__ import annotations

from protocols.reasons import Reason
from protocols.round.leader_actions import NoteFailure, SendPlan
from protocols.round.member import Refuse
from protocols.round.strikes import FIRST_REST_S, FREE, LONGEST_REST_S, MAX_REMEMBERED, Strikes
from tests.protocols.round.table import Table, of, the_plan


def test_the_first_strikes_are_free_and_each_further_one_doubles_the_rest() -> None:
    strikes = Strikes()
    for _ in range(FREE):
        strikes.strike("bob", 0.0)
        assert not strikes.rests("bob", 0.0)
    for number in range(30):
        strikes.strike("bob", 100.0)
        rest_s = min(FIRST_REST_S * 2**number, LONGEST_REST_S)
        assert strikes.rests("bob", 100.0 + rest_s - 0.01) and not strikes.rests("bob", 100.0 + rest_s)
    assert not strikes.rests("ann", 100.0)


def test_each_commit_that_a_member_helps_to_takes_one_back() -> None:
    strikes = Strikes()
    for _ in range(100):
        strikes.strike("bob", 0.0)
        strikes.helped("bob")
    assert not strikes.rests("bob", 0.0)
    for _ in range(FREE + 1):
        strikes.strike("bob", 0.0)
    strikes.helped("bob")
    strikes.strike("bob", 50.0)
    assert strikes.rests("bob", 50.0)


def test_no_number_of_peers_takes_more_memory() -> None:
    strikes = Strikes()
    for number in range(2 * MAX_REMEMBERED):
        strikes.strike(f"peer {number}", 0.0)
    assert len(strikes._records) == MAX_REMEMBERED


def test_who_refuses_every_plan_is_soon_left_out_and_the_others_commit() -> None:
    it = Table("bob", "cid")
    actions = [*it.reports(lea=0, cid=5, bob=20)]
    for _ in range(FREE + 1):
        planned = the_plan(actions)
        assert "cid" in planned.members
        actions = it.leader.answer("cid", Refuse(planned.digest, Reason.PROMISED_HIGHER, 1 << 40), it.now)
        (failed,) = of(NoteFailure, actions)
        assert failed.peer == "cid"
    (planned,) = [action.plan for action in of(SendPlan, actions)]
    assert planned.members == ("bob", "lea")
    assert planned.ballot.attempt == FREE + 2, "a promise that nobody can have made is not believed"
