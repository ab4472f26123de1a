"""Overlap: epoch e+1 accumulates while e is averaged, at the parameters of the freeze."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.leader_actions import Announce, NoteFailure, SendPlan
from protocols.round.member import Accept, Apply, CatchUp, Freeze, GiveUp, Member, Phase, Reduce, Refuse, Resume, Send
from protocols.round.plans import Plan
from protocols.round.records import Averages, Ballot, Contribution, ReadyFor, SignedCommit, Tip
from tests.protocols.round.table import Table, of, result_of, the_plan
from tests.protocols.round.test_member import RESULTS, TIP, commit_of, given, mine, plan

BEFORE = "9" * 64
AT_TIP = replace(TIP, parent=BEFORE)


def member(tip: Tip = AT_TIP, *, overlap: bool = True) -> Member:
    it = Member("me", 1, overlap=overlap)
    it.adopted(tip)
    return it


def next_plan(tip: Tip, **change: Any) -> Plan:
    return plan(**{"ballot": Ballot(tip.epoch + 1, tip.lineage, 1, "lea"), "contributors": ("me",), **change})


def commit_on(it: Member, planned: Plan, *contributions: Contribution) -> SignedCommit:
    assert it.tip is not None
    total = it.tip.total_samples + sum(c.weight for c in contributions)
    return commit_of(planned, contributions=contributions, total_samples=total)


def give(it: Member, contribution: Contribution) -> Plan:
    assert it.tip is not None
    planned = next_plan(it.tip)
    assert it.on_plan(mine(planned)) == [Freeze()]
    assert it.frozen(contribution) == [Send("lea", Accept(planned.digest, contribution)), Reduce(mine(planned), contribution)]
    return planned


def commit(it: Member, planned: Plan, *named: Contribution) -> list[Any]:
    """Commit the plan with these contributions; returns the actions of applied()."""
    it.reduced(planned.digest, Averages(named, RESULTS))
    signed = commit_on(it, planned, *named)
    assert it.on_commit(signed) == [Apply(signed)]
    return it.applied()


def test_what_accumulates_behind_a_frozen_contribution_is_kept_when_that_one_is_committed() -> None:
    it = member()
    assert commit(it, give(it, given()), given()) == [Resume(keep=True)]


def test_what_was_drawn_before_the_last_commit_is_given_to_the_next() -> None:
    it = member()
    commit(it, give(it, given()), given())
    assert it.tip is not None
    stale = replace(given(first=8, end=20), base=TIP.lineage)
    assert stale.base != it.tip.lineage
    assert commit(it, give(it, stale), stale) == [Resume(keep=True)]


def test_a_contribution_that_its_epoch_missed_is_given_up_alone() -> None:
    it, other = member(), given("bob")
    planned = give(it, given())
    it.on_abort(planned.digest, Reason.STALLED)
    second = next_plan(AT_TIP, contributors=("bob",), ballot=replace(planned.ballot, attempt=2))
    it.on_plan(mine(second))
    assert commit(it, second, other) == [GiveUp(Reason.MISSED, given()), Resume(keep=True)]


def test_what_two_commits_have_left_behind_is_given_up() -> None:
    """The samples were drawn at the tip's parent and missed the epoch after it. Their base is too old for the next."""
    it, other = member(), given("bob")
    assert commit(it, give(it, given()), given()) == [Resume(keep=True)]
    without = next_plan(it.tip, contributors=("bob",)) if it.tip is not None else plan()
    it.on_plan(mine(without))
    bobs = replace(other, base=without.ballot.parent)
    assert commit(it, without, bobs) == [GiveUp(Reason.MISSED, None), Resume(keep=False)]


def test_without_overlap_nothing_is_kept() -> None:
    it = member(overlap=False)
    assert commit(it, give(it, given()), given()) == [Resume(keep=False)]
    it = member(overlap=False)
    without = next_plan(AT_TIP, contributors=("bob",))
    it.on_plan(mine(without))
    assert commit(it, without, given("bob")) == [GiveUp(Reason.MISSED, None), Resume(keep=False)]


@pytest.mark.parametrize("reason", [Reason.BEHIND, Reason.LOST_FORK])
def test_a_fork_discards_what_is_frozen_and_what_accumulates_behind_it(reason: Reason) -> None:
    it = member()
    give(it, given())
    logged = Reason.MISSED if reason is Reason.BEHIND else reason
    actions = it.catch_up(reason)
    assert [action for action in actions if isinstance(action, GiveUp)] == [GiveUp(logged, given()), GiveUp(logged, None)]
    assert actions[-1] == CatchUp(reason)
    assert it.adopted(TIP) == [Resume(keep=False)]


def test_a_frozen_contribution_serves_the_next_attempt_while_the_next_epoch_accumulates() -> None:
    it = member()
    planned = give(it, given())
    it.on_abort(planned.digest, Reason.STALLED)
    assert it.samples(accumulated=100) == given().weight, "what accumulates is for the next epoch"
    second = next_plan(AT_TIP, ballot=replace(planned.ballot, attempt=2))
    assert it.on_plan(mine(second))[-1] == Reduce(mine(second), given())
    commit(it, second, given())
    assert it.samples(accumulated=100) == 100


def test_with_nothing_to_give_a_member_goes_on_as_it_is() -> None:
    it = member()
    it.on_plan(mine(next_plan(AT_TIP)))
    assert it.frozen(None)[-1] == Resume(keep=True)
    assert it.phase is Phase.TRAINING


@pytest.mark.parametrize(
    ("base", "overlap", "applies"),
    [(BEFORE, True, True), (BEFORE, False, False), ("8" * 64, True, False), (TIP.lineage, False, True)],
)
def test_a_commit_of_another_base_is_not_applied(base: str, overlap: bool, applies: bool) -> None:
    it, planned = member(overlap=overlap), plan(contributors=("bob",))
    it.on_plan(mine(planned))
    bobs = replace(given("bob"), base=base)
    it.reduced(planned.digest, Averages((bobs,), RESULTS))
    actions = it.on_commit(commit_on(it, planned, bobs))
    assert isinstance(actions[-1], Apply if applies else CatchUp)


@pytest.mark.parametrize(("base", "accepts"), [(BEFORE, True), ("8" * 64, False)])
def test_a_plan_that_finishes_averages_of_another_base_is_refused(base: str, accepts: bool) -> None:
    it, finishes = member(), Averages((replace(given("bob"), base=base),), RESULTS)
    finishing = replace(plan(contributors=("bob",)), contributors=(), finishes=finishes)
    answer = it.on_plan(mine(finishing))[0].answer
    assert isinstance(answer, Accept if accepts else Refuse)
    assert accepts or answer.reason is Reason.OTHER_LINEAGE


# -- the leader ------------------------------------------------------------------------------------------------------------------


def table(*, overlap: bool = True, **change: Any) -> Table:
    tip = Tip(1, "a" * 64, 100, TIP.leader, TIP.codec, members=("bob", "cid", "lea"), parent=BEFORE)
    it = Table("bob", "cid", tip=tip, overlap=overlap, **change)
    it.reports(lea=0, bob=0, cid=0)
    return it


@pytest.mark.parametrize(
    ("base", "overlap", "problem"),
    [
        (BEFORE, True, False),
        ("a" * 64, True, False),
        ("8" * 64, True, True),
        (BEFORE, False, True),
        ("a" * 64, False, False),
    ],
)
def test_a_leader_takes_contributions_of_the_tip_and_with_overlap_of_its_parent(base: str, overlap: bool, problem: bool) -> None:
    it = table(overlap=overlap)
    planned = the_plan(it.reports(bob=12, cid=12))
    failed = of(NoteFailure, it.accept(planned, "bob", 12, base=base))
    assert [failure.reason for failure in failed] == ([Reason.OTHER_LINEAGE] if problem else [])


@pytest.mark.parametrize(("base", "sound"), [(BEFORE, True), ("8" * 64, False)])
def test_averages_of_another_base_are_not_finished(base: str, sound: bool) -> None:
    it = table()
    contribution = Contribution("dan", 1, 0, 12, base, 1.0)
    averages = Averages((contribution,), result_of(the_plan(table().reports(bob=12, cid=12)), contribution).shards)
    ready_for = ReadyFor(Ballot(2, "a" * 64, 1, "dan"), averages)
    planned = the_plan([*it.report("bob", 12, ready_for=ready_for, promised_attempt=1), *it.report("cid", 12)])
    assert (planned.finishes == averages) is sound


def committed(*, overlap: bool = True) -> tuple[Table, Tip]:
    """bob and cid gave 12 samples each. Only the leader has applied the commit."""
    it = table(overlap=overlap)
    planned = the_plan(it.reports(bob=12, cid=12))
    given_by = [Contribution(peer, 1, 0, 12, it.tip.lineage, 1.0) for peer in ("bob", "cid")]
    for peer, samples in (("lea", 0), ("bob", 12), ("cid", 12)):
        it.accept(planned, peer, samples)
    (announced,) = of(Announce, it.ready(result_of(planned, *given_by), "lea", "bob", "cid"))
    it.tip, before = Tip.after(announced.commit), it.tip
    it.leader.follow(it.tip, announced.commit)
    it.report("lea")
    return it, before


def test_a_batch_that_is_there_already_is_planned_as_soon_as_all_have_applied_the_commit() -> None:
    it, before = committed()
    assert not of(SendPlan, it.report("bob", 30)), "cid has not told what it drew: planned without it, that would be lost"
    planned = the_plan(it.report("cid", 5))
    assert planned.contributors == ("bob", "cid")
    assert planned.ballot.parent == it.tip.lineage != before.lineage


def test_one_that_does_not_come_to_apply_a_commit_is_not_waited_for_for_ever() -> None:
    it, before = committed()
    it.report("bob", 30)
    it.leader.reported("cid", replace(it.leader.followers["cid"].report or _none(), standing=before.standing), it.now)
    planned = the_plan(it.wait(DETECTION_S + 1))
    assert planned.contributors == ("bob",)


def test_without_overlap_nobody_is_waited_for() -> None:
    it, _ = committed(overlap=False)
    assert the_plan(it.report("bob", 30)).contributors == ("bob",)


def _none() -> Any:
    raise AssertionError("it has reported")
