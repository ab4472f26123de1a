"""Invariant 7: the log has a reason for each peer outside of a plan, and for each contribution outside of a commit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.leader_actions import Announce, SendPlan
from protocols.round.member import CatchUp, Freeze, GiveUp, Resume
from protocols.round.member import Failed as MemberFailed
from protocols.round.records import Contribution, Hello, Tip
from tests.protocols.round.table import Table, of, result_of, the_plan, three
from tests.protocols.round.test_member import TIP, commit_of, given, kinds, mine, plan, ready, reason_of, reducing


def silence(table: Table, peer: str) -> None:
    """Let everybody else go on for longer than the detection time."""
    for _ in range(5):
        table.now += DETECTION_S / 4
        for other in table.leader.followers.keys() - {peer}:
            table.leader.heard(other, table.now)
        table.leader.tick(table.now)
    assert peer not in table.leader.followers


def test_a_peer_taken_for_dead_is_planned_again_once_it_has_come_again() -> None:
    table = Table("bob", target=20)
    table.reports(lea=0, bob=4)
    silence(table, "bob")
    assert table.report("bob", 20) == [], "it is no follower: its stream ends, and it opens another"
    table.join("bob")
    assert the_plan(table.reports(lea=0, bob=20)).contributors == ("bob",)


def test_a_plan_names_everybody_who_is_not_in_it_and_why() -> None:
    tip = replace(Table().tip, members=("abe", "bob", "lea", "moe"))
    table = Table("abe", "cid", "dan", "eve", "fay", tip=tip)
    table.leader.left("abe", Reason.CONNECTION_LOST, table.now)
    table.leader.left("eve", Reason.LEFT, table.now)
    table.report("fay", 5, standing=replace(tip.standing, lineage="f" * 64))
    table.report("dan", 5, caught_up=False)
    for peer in ("abe", "bob", "moe"):
        table.leader.unreachable(peer, table.now)
    (sent,) = of(SendPlan, table.reports(cid=20, lea=0))
    assert sent.plan.members == ("cid", "lea")
    assert dict(sent.absent) == {
        "abe": Reason.CONNECTION_LOST,
        "bob": Reason.SILENT,
        "dan": Reason.NOT_CAUGHT_UP,
        "eve": Reason.LEFT,
        "fay": Reason.OTHER_LINEAGE,
        "moe": Reason.SILENT,
    }


def test_the_one_for_whom_an_attempt_failed_is_named_in_the_next_plan() -> None:
    table, first = three()
    for reducer in ("bob", "lea"):
        actions = table.leader.answer("cid", MemberFailed(first.digest, Reason.REDUCER_LOST, "cid", reducer), table.now)
        for sent in of(SendPlan, actions):
            first = sent.plan
    assert dict(sent.absent) == {"cid": Reason.REDUCER_LOST}


def test_an_absence_is_told_in_the_next_plan_even_of_another_epoch_and_then_no_more() -> None:
    table = Table("bob", "cid")
    table.leader.left("cid", Reason.LEFT, table.now)
    told = []
    for epoch, digit in enumerate("bcd", 1):
        table.leader.follow(replace(table.tip, epoch=epoch, lineage=digit * 64, members=("bob", "lea")))
        assert table.leader.tip is not None
        table.tip = table.leader.tip
        (sent,) = of(SendPlan, table.reports(lea=0, bob=20))
        told.append(dict(sent.absent))
    assert told == [{"cid": Reason.LEFT}, {}, {}]


def test_a_member_led_back_to_a_lineage_that_it_left_keeps_the_promise_that_it_gave_there() -> None:
    it = ready(plan(attempt=6))
    it.on_commit(commit_of(plan(attempt=6)))
    it.apply_failed()  # and no other peer has that commit any more
    it.adopted(replace(TIP, epoch=TIP.epoch + 1, lineage="e" * 64))
    it.adopted(TIP)
    assert reason_of(it.on_plan(mine(plan(attempt=1)))) is Reason.PROMISED_HIGHER
    assert it.on_plan(mine(plan(attempt=7))) == [Freeze()]


@pytest.mark.parametrize(
    ("epoch", "lineage", "reason"),
    [
        (0, "", None),  # the tip of that commit
        (0, "e" * 64, Reason.LOST_FORK),  # another commit of the same epoch won
        (-1, "a" * 64, Reason.MISSED_RESULTS),  # no peer has that commit any more
        (1, "e" * 64, None),  # a later tip, which may build on that commit
    ],
)
def test_a_contribution_of_a_commit_that_is_lost_with_its_holders_is_given_up(
    epoch: int, lineage: str, reason: Reason | None
) -> None:
    planned = plan()
    it, signed = reducing(planned), commit_of(planned)
    it.on_commit(signed)
    assert kinds(it.catch_up(Reason.MISSED_RESULTS))[-1] is CatchUp
    after = Tip.after(signed.commit)
    actions = it.adopted(replace(after, epoch=after.epoch + epoch, lineage=lineage or after.lineage))
    assert actions == [*([GiveUp(reason, given())] if reason is not None else []), Resume()]


def test_a_commit_tells_of_everybody_who_gave_nothing_to_it_and_why() -> None:
    tip = replace(Table().tip, members=("abe", "away", "bob", "lea", "lost"))
    table = Table("abe", "bob", "cid", "lost", tip=tip)
    table.leader.joined("aux", Hello(1, True, "aux:1", "aux:2", "aux"), table.now)
    table.leader.left("lost", Reason.CONNECTION_LOST, table.now)
    for peer in ("away", "lost"):
        table.leader.unreachable(peer, table.now)
    table.report("aux", 0)
    table.report("cid", 5, caught_up=False)
    sent = the_plan(table.reports(bob=0, abe=20, lea=0))
    table.join("new")
    table.report("new", 3)
    contribution = Contribution("abe", 1, 0, 20, tip.lineage, 1.0)
    for peer in sent.members:
        table.accept(sent, peer, 20 if peer == "abe" else 0)
    actions = table.ready(result_of(sent, contribution), *sent.members)
    (announced,) = of(Announce, actions)
    assert dict(announced.absent) == {
        "aux": Reason.AUXILIARY,
        "away": Reason.SILENT,
        "bob": Reason.NOTHING_TO_GIVE,
        "cid": Reason.NOT_CAUGHT_UP,
        "lea": Reason.NOTHING_TO_GIVE,
        "lost": Reason.CONNECTION_LOST,
        "new": Reason.NOT_PLANNED,
    }


def test_whose_loss_ends_an_attempt_after_its_majority_is_named_by_the_plan_that_follows_at_once() -> None:
    """The member was ready, but its Accept was lost. So its averages cannot be committed, and are finished without it."""
    table = Table("bob", "cid", "new")
    plan = the_plan(table.reports(new=2, lea=6, bob=6, cid=6))
    for peer in ("lea", "bob", "cid"):
        table.accept(plan, peer, 6)
    given_ = [Contribution(peer, 1, 0, 2 if peer == "new" else 6, table.tip.lineage, 1.0) for peer in plan.members]
    assert of(SendPlan, table.ready(result_of(plan, *given_), "lea", "bob", "cid")) == []
    (sent,) = of(SendPlan, table.leader.left("new", Reason.CONNECTION_LOST, table.now))
    assert sent.absent == (("new", Reason.CONNECTION_LOST),)


def test_a_member_that_only_receives_because_of_its_link_is_named_with_this_reason_in_plan_and_commit() -> None:
    table = Table("bob", "cid", "far")
    table.leader.codecs = dict.fromkeys(table.leader.codecs, 10_000_000)
    quick, slow = ({"upload_bytes_s": rate, "download_bytes_s": 1e8} for rate in (1e8, 1e5))
    for peer in ("lea", "bob"):
        table.report(peer, 9, **quick)
    table.report("far", 1, **slow)
    (sent,) = of(SendPlan, table.report("cid", 9, **quick))
    assert sent.plan.contributors == ("bob", "cid", "lea")
    assert sent.plan.members == ("bob", "cid", "far", "lea")
    assert sent.absent == (("far", Reason.SLOW_LINK),)
    contributions = [Contribution(peer, 1, 0, 9, table.tip.lineage, 1.0) for peer in sent.plan.contributors]
    for peer in sent.plan.members:
        table.accept(sent.plan, peer, 0 if peer == "far" else 9)
    (announced,) = of(Announce, table.ready(result_of(sent.plan, *contributions), *sent.plan.members))
    assert announced.absent == (("far", Reason.SLOW_LINK),)
