from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocols.reasons import Reason
from protocols.round.member import (
    Accept,
    Apply,
    CatchUp,
    Failed,
    Freeze,
    GiveUp,
    Member,
    Phase,
    Ready,
    Reduce,
    Refuse,
    Resume,
    Send,
    StopReducing,
)
from protocols.round.plans import MemberPlan, Plan, member_plan_of
from protocols.round.records import (
    Averages,
    Ballot,
    Candidate,
    Commit,
    Contribution,
    ReadyFor,
    Shard,
    ShardResult,
    SignedCommit,
    Standing,
    Tip,
)

RUN = "ab" * 32
LEADER = Candidate("lea", "lea:1")
TIP = Tip(4, "a" * 64, 1000, LEADER, "fp32", members=("bob", "lea", "me"))
RESULTS = (ShardResult(0, 1024, "d" * 64, 4.0),)


def plan(*, attempt: int = 1, leader: str = "lea", contributors: tuple[str, ...] = ("bob", "me"), **change: Any) -> Plan:
    ballot = Ballot(TIP.epoch + 1, TIP.lineage, attempt, leader)
    members = tuple(sorted({"bob", "lea", "me", leader}))
    return replace(Plan(RUN, ballot, contributors, members, (Shard("lea", "lea:1", 0, 1024),), "fp32", 4.0, 7), **change)


def mine(planned: Plan) -> MemberPlan:
    return member_plan_of(planned, "me")


def given(peer: str = "me", *, first: int = 0, end: int = 8) -> Contribution:
    return Contribution(peer, 1, first, end, TIP.lineage, 2.5)


def averages(*contributions: Contribution, shards: tuple[ShardResult, ...] = RESULTS) -> Averages:
    return Averages(contributions or (given("bob"), given()), shards)


def commit_of(planned: Plan, *contributions: Contribution, **change: Any) -> SignedCommit:
    named = tuple(replace(c, base=planned.ballot.parent) for c in contributions or (given("bob"), given()))
    commit = Commit(
        ballot=planned.ballot,
        plan_digest=planned.digest,
        contributions=named,
        members=planned.members,
        shards=RESULTS,
        codec="fp32",
        next_codec="fp32",
        total_samples=TIP.total_samples + sum(c.weight for c in named),
        leader=Candidate(planned.ballot.leader, "x:1"),
        succession=(),
    )
    return SignedCommit(replace(commit, **change), b"", b"")


def member(*, frozen: Contribution | None = None) -> Member:
    """A member at TIP. With `frozen`, an attempt 1 was aborted before."""
    it = Member("me", 1)
    it.adopted(TIP)
    if frozen is not None:
        first = plan()
        it.on_plan(mine(first))
        it.frozen(frozen)
        it.on_abort(first.digest, Reason.STALLED)
    return it


def reducing(planned: Plan, contribution: Contribution | None = None) -> Member:
    it = member()
    it.on_plan(mine(planned))
    it.frozen(contribution or given())
    assert it.phase is Phase.REDUCING
    return it


def ready(planned: Plan) -> Member:
    it = reducing(planned)
    it.reduced(planned.digest, averages())
    assert it.phase is Phase.READY
    return it


def reason_of(actions: list[Any]) -> Reason:
    (refusal,) = [action.answer for action in actions if isinstance(action, Send)]
    assert isinstance(refusal, Refuse)
    return refusal.reason


def kinds(actions: list[Any]) -> list[type[Any]]:
    return [type(action) for action in actions]


def test_a_whole_epoch() -> None:
    it, planned = member(), plan()
    assert it.phase is Phase.TRAINING
    assert it.on_plan(mine(planned)) == [Freeze()]
    assert it.phase is Phase.FROZEN
    assert it.frozen(given()) == [Send("lea", Accept(planned.digest, given())), Reduce(mine(planned), given())]
    assert it.phase is Phase.REDUCING
    assert it.reduced(planned.digest, averages()) == [Send("lea", Ready(averages().result(planned.digest)))]
    assert it.phase is Phase.READY
    signed = commit_of(planned)
    assert it.on_commit(signed) == [Apply(signed)]
    assert it.phase is Phase.APPLYING
    assert it.tip == TIP, "nothing changes before the commit is applied"
    assert it.applied() == [Resume()]
    assert it.phase is Phase.TRAINING
    assert it.tip == Tip.after(signed.commit)


def test_a_newcomer_does_nothing_before_it_holds_state() -> None:
    it = Member("me", 1)
    assert it.phase is Phase.CATCHING_UP
    assert reason_of(it.on_plan(mine(plan()))) is Reason.NOT_CAUGHT_UP
    assert it.on_commit(commit_of(plan())) == []
    assert it.adopted(TIP) == [Resume()]


@pytest.mark.parametrize(
    ("planned", "reason"),
    [
        (plan(ballot=Ballot(5, "b" * 64, 1, "lea")), Reason.OTHER_LINEAGE),
        (plan(ballot=Ballot(6, TIP.lineage, 1, "lea")), Reason.OTHER_LINEAGE),
        (plan(ballot=Ballot(4, TIP.lineage, 1, "lea")), Reason.OTHER_LINEAGE),
    ],
)
def test_a_plan_that_is_not_for_this_peer_at_this_tip_is_refused(planned: Plan, reason: Reason) -> None:
    it = member()
    assert reason_of(it.on_plan(mine(planned))) is reason
    assert it.phase is Phase.TRAINING
    assert it.promised is None, "a refused plan binds nobody"


def test_a_reducers_part_that_is_somebody_elses_is_refused() -> None:
    """A member that does not reduce cannot tell: it knows only the digests of the lists."""
    mine_too = Shard("me", "me:1", 0, 1024)
    without = plan(members=("bob", "lea"), contributors=("bob",))
    nobodys = replace(mine(plan()), shards=(mine_too,))
    silent = replace(member_plan_of(plan(shards=(mine_too,)), "me"), sends=False)
    for part in (member_plan_of(without, "lea"), nobodys, silent):
        it = member()
        assert reason_of(it.on_plan(part)) is Reason.NOT_A_MEMBER
        assert it.promised is None


@pytest.mark.parametrize(
    ("change", "sound"),
    [
        ({}, True),
        ({"members": ("bob", "lea")}, False),
        ({"members": ("bob", "lea", "me", "new")}, False),
        ({"codec": "fp16"}, False),
        ({"ballot": Ballot(TIP.epoch + 1, TIP.lineage, 2, "lea")}, False),
    ],
)
def test_a_commit_that_says_otherwise_than_the_plan_is_not_applied_also_by_who_knows_digests_only(
    change: dict[str, Any], sound: bool
) -> None:
    for planned in (plan(), plan(shards=(Shard("me", "me:1", 0, 1024),))):
        it = ready(planned)
        assert bool(it.plan and it.plan.members) == (planned.shards[0].reducer == "me")
        signed = commit_of(planned, **change)
        assert (it.on_commit(signed) == [Apply(signed)]) == sound


def test_a_commit_of_other_contributors_than_planned_is_not_applied() -> None:
    planned = plan(contributors=("lea", "me"))
    it = ready(planned)
    assert CatchUp(Reason.RESULTS_DIFFER) in it.on_commit(commit_of(planned))


def test_a_new_leader_hears_of_the_members_that_this_one_knows() -> None:
    """A member that does not reduce knows only the leader and the reducers."""
    it = member()
    it.on_plan(mine(plan(leader="bob", shards=(Shard("lea", "lea:1", 0, 1024),))))
    assert it.planned_with("lea") == ("bob", "lea")
    it.on_plan(mine(plan(attempt=2, leader="bob", shards=(Shard("me", "me:1", 0, 1024),))))
    assert it.planned_with("lea") == ("bob", "lea", "me")
    assert it.planned_with("bob") == ()


@pytest.mark.parametrize(
    ("first", "second", "accepted"),
    [
        (plan(attempt=2), plan(attempt=1), False),
        (plan(attempt=2), plan(attempt=3), True),
        (plan(attempt=2, leader="lea"), plan(attempt=2, leader="zoe"), True),
        (plan(attempt=2, leader="lea"), plan(attempt=2, leader="abe"), False),
    ],
)
def test_the_higher_ballot_wins(first: Plan, second: Plan, accepted: bool) -> None:
    it = reducing(first)
    actions = it.on_plan(mine(second))
    if accepted:
        assert actions == [
            StopReducing(first.digest, Reason.SUPERSEDED),
            Send(second.ballot.leader, Accept(second.digest, given())),
            Reduce(mine(second), given()),
        ]
        assert it.plan == mine(second)
    else:
        assert actions == [Send(second.ballot.leader, Refuse(second.digest, Reason.PROMISED_HIGHER, 2))]
        assert it.plan == mine(first)
        assert it.phase is Phase.REDUCING


def test_a_late_commit_of_a_promised_away_ballot_is_ignored() -> None:
    old, new = plan(attempt=1), plan(attempt=2)
    it = ready(old)
    it.on_plan(mine(new))
    assert it.on_commit(commit_of(old)) == []
    assert it.plan == mine(new)
    assert it.phase is Phase.REDUCING
    it.reduced(new.digest, averages())
    assert kinds(it.on_commit(commit_of(new))) == [Apply]


def test_a_promise_survives_the_attempt_it_was_made_for() -> None:
    it = member()
    it.on_plan(mine(plan(attempt=3)))
    it.frozen(given())
    it.on_abort(plan(attempt=3).digest, Reason.STALLED)
    assert reason_of(it.on_plan(mine(plan(attempt=2)))) is Reason.PROMISED_HIGHER
    assert it.on_commit(commit_of(plan(attempt=2))) == []


def test_a_promise_survives_catching_up_to_the_same_tip() -> None:
    """A member that finds nobody further adopts its own tip again. The epoch is the same, so the promise still binds it."""
    it = reducing(plan(attempt=3))
    it.catch_up(Reason.BEHIND)
    it.adopted(TIP)
    assert reason_of(it.on_plan(mine(plan(attempt=2)))) is Reason.PROMISED_HIGHER
    assert it.on_commit(commit_of(plan(attempt=2))) == []
    assert kinds(it.on_plan(mine(plan(attempt=4)))) == [Freeze]


def test_promises_do_not_outlive_their_epoch() -> None:
    it = ready(plan(attempt=5))
    signed = commit_of(plan(attempt=5))
    it.on_commit(signed)
    it.applied()
    following = replace(plan(), ballot=Ballot(TIP.epoch + 2, signed.commit.digest, 1, "lea"))
    assert it.on_plan(mine(following)) == [Freeze()]


def test_while_it_replays_commits_the_leader_hears_how_far_it_is() -> None:
    it, second = member(), replace(TIP, epoch=TIP.epoch + 1, lineage="5" * 64, total_samples=TIP.total_samples + 8)
    it.on_plan(mine(plan()))
    assert not it.reached(second), "a commit of the round is applied by applied()"
    assert it.tip == TIP
    it.catch_up(Reason.BEHIND)
    assert it.reached(second)
    report = it.report(
        "lea", accumulated=0, samples_per_second=1.0, step_s=1.0, moved_bytes=0, upload_bytes_s=0.0, download_bytes_s=0.0
    )
    assert report is not None
    assert (report.standing, report.caught_up, report.promised_attempt) == (second.standing, False, 0)
    assert it.reached(TIP), "a step that failed leads back"
    assert it.promised is not None and it.promised.attempt == 1


def test_a_newcomer_is_not_heard_of_before_it_is_level() -> None:
    it = Member("me", 1)
    assert not it.reached(TIP)
    assert it.tip is None


def test_a_contribution_is_frozen_once_and_reused_by_every_attempt() -> None:
    it = member(frozen=given())
    for attempt in (2, 3, 4):
        planned = plan(attempt=attempt)
        actions = it.on_plan(mine(planned))
        assert actions == [Send("lea", Accept(planned.digest, given())), Reduce(mine(planned), given())], "no second Freeze"
        it.on_abort(planned.digest, Reason.STALLED)
        assert it.phase is Phase.FROZEN, "it draws nothing between attempts"


def test_a_plan_that_replaces_another_during_the_freeze_waits_for_the_same_freeze() -> None:
    it = member()
    assert it.on_plan(mine(plan(attempt=1))) == [Freeze()]
    assert it.on_plan(mine(plan(attempt=2))) == []
    assert it.frozen(given()) == [
        Send("lea", Accept(plan(attempt=2).digest, given())),
        Reduce(mine(plan(attempt=2)), given()),
    ]


def test_a_plan_aborted_during_the_freeze_leaves_the_contribution_frozen() -> None:
    it = member()
    it.on_plan(mine(plan()))
    assert it.on_abort(plan().digest, Reason.CONNECTION_LOST) == []
    assert it.frozen(given()) == []
    assert it.phase is Phase.FROZEN
    assert kinds(it.on_plan(mine(plan(attempt=2)))) == [Send, Reduce]


def test_who_is_planned_without_a_contribution_only_receives() -> None:
    it, planned = member(frozen=given()), plan(attempt=2, contributors=("bob",))
    assert it.on_plan(mine(planned)) == [Send("lea", Accept(planned.digest, None)), Reduce(mine(planned), None)]


def test_who_has_nothing_to_give_refuses_to_be_a_contributor() -> None:
    it, planned = member(), plan()
    it.on_plan(mine(planned))
    actions = it.frozen(None)
    assert actions == [Send("lea", Refuse(planned.digest, Reason.NOTHING_TO_GIVE, 1)), Resume()]
    assert it.phase is Phase.TRAINING, "were it the only contributor, nobody would ever have samples again"
    assert kinds(it.on_plan(mine(plan(attempt=2)))) == [Freeze], "what it draws from now on can be given"


def test_a_contribution_that_the_commit_does_not_name_is_given_up_as_missed() -> None:
    it = member(frozen=given())
    planned = plan(attempt=2, contributors=("bob",))
    it.on_plan(mine(planned))
    it.reduced(planned.digest, averages(given("bob")))
    it.on_commit(commit_of(planned, given("bob")))
    assert it.applied() == [GiveUp(Reason.MISSED, given()), Resume()]


def test_a_commit_that_overtakes_the_last_shard_waits_for_it() -> None:
    planned = plan()
    it, signed = reducing(planned), commit_of(plan())
    assert it.on_commit(signed) == []
    assert it.phase is Phase.REDUCING
    told = Ready(averages().result(planned.digest))
    assert it.reduced(planned.digest, averages()) == [Send("lea", told), Apply(signed)]


def test_a_commit_whose_results_never_came_is_caught_up() -> None:
    planned = plan()
    it = reducing(planned)
    it.on_commit(commit_of(planned))
    actions = it.reduce_failed(planned.digest, Reason.REDUCER_LOST, "me", "lea")
    assert kinds(actions)[-1] is CatchUp
    assert actions[-1] == CatchUp(Reason.MISSED_RESULTS)
    assert it.phase is Phase.CATCHING_UP


def test_samples_that_a_commit_names_are_not_reported_as_given_up() -> None:
    """The commit names this peer's samples. Only its copy of the averages is missing."""
    planned = plan()
    it = reducing(planned)
    it.on_commit(commit_of(planned))
    actions = it.reduce_failed(planned.digest, Reason.REDUCER_LOST, "me", "lea")
    assert [a for a in actions if isinstance(a, GiveUp) and a.contribution is not None] == []


def test_samples_of_a_commit_that_could_not_be_applied_are_not_reported_as_given_up() -> None:
    planned = plan()
    it = ready(planned)
    it.on_commit(commit_of(planned))
    actions = it.apply_failed()
    assert actions[-1] == CatchUp(Reason.APPLY_FAILED)
    assert it.phase is Phase.CATCHING_UP
    assert [a for a in actions if isinstance(a, GiveUp) and a.contribution is not None] == []


def test_a_commit_of_the_next_epoch_of_which_nothing_is_here_is_caught_up() -> None:
    it = member()
    actions = it.on_commit(commit_of(plan()))
    assert actions == [GiveUp(Reason.MISSED, None), CatchUp(Reason.MISSED_RESULTS)]


def test_a_commit_with_other_averages_than_are_here_is_never_applied() -> None:
    planned = plan()
    it = ready(planned)
    actions = it.on_commit(commit_of(planned, shards=(ShardResult(0, 1024, "e" * 64, 4.0),)))
    assert Apply not in kinds(actions)
    assert actions[-1] == CatchUp(Reason.RESULTS_DIFFER)


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda p: commit_of(p, given("bob"), given(end=9)), id="another weight"),
        pytest.param(lambda p: commit_of(p, given("bob")), id="a contributor less"),
        pytest.param(lambda p: commit_of(p, ballot=replace(p.ballot, epoch=9)), id="another epoch"),
        pytest.param(
            lambda p: commit_of(p, ballot=replace(p.ballot, attempt=9, leader="bob"), leader=Candidate("bob", "b:1")),
            id="another leader",
        ),
        pytest.param(lambda p: commit_of(p, members=("lea", "me", "zed")), id="other members"),
        pytest.param(lambda p: commit_of(p, codec="fp16"), id="another codec"),
        pytest.param(lambda p: commit_of(p, total_samples=10**9), id="a lineage weight out of thin air"),
    ],
)
def test_a_commit_that_says_other_than_what_was_planned_and_averaged_is_never_applied(
    forge: Callable[[Plan], SignedCommit],
) -> None:
    """Invariants 2 and 6. An admitted peer has signed all of these commits, and the averages' digests are right."""
    planned = plan()
    it = ready(planned)
    try:
        signed = forge(planned)
    except ValueError:
        return  # the record itself refuses the value, which is as good
    assert Apply not in kinds(it.on_commit(signed))
    assert it.phase is not Phase.APPLYING


def test_a_heavier_lineages_commit_sends_this_peer_to_catch_up() -> None:
    it = member(frozen=given())
    other = replace(plan(), ballot=Ballot(9, "f" * 64, 1, "lea"))
    actions = it.on_commit(commit_of(other, given("bob")))
    assert actions == [GiveUp(Reason.MISSED, given()), CatchUp(Reason.BEHIND)]


def test_in_a_round_it_is_behind_a_leader_that_has_gone_further_than_that_round() -> None:
    """The run's last commits may be lost to a peer in a round, and no other plan follows."""
    planned = plan()
    it, epoch = ready(planned), planned.ballot.epoch
    closed, further = (Standing(epoch + ahead, "f" * 64, 10**6) for ahead in (0, 1))
    assert not it.is_behind(closed, "lea"), "its commit comes on the same stream"
    assert it.is_behind(further, "lea")
    assert it.is_behind(closed, "bob")


def test_a_lighter_lineages_commit_is_ignored() -> None:
    it = member()
    other = replace(plan(), ballot=Ballot(2, "f" * 64, 1, "lea"))
    assert it.on_commit(commit_of(other, given("bob"), total_samples=50)) == []
    assert it.phase is Phase.TRAINING


def test_a_failed_exchange_is_told_to_the_leader_and_the_contribution_kept() -> None:
    planned = plan()
    it = reducing(planned)
    assert it.reduce_failed(planned.digest, Reason.REDUCER_LOST, "me", "lea") == [
        StopReducing(planned.digest, Reason.REDUCER_LOST),
        Send("lea", Failed(planned.digest, Reason.REDUCER_LOST, "me", "lea")),
    ]
    assert it.phase is Phase.FROZEN
    assert it.contribution == given()


def test_an_aborted_attempt_leaves_no_trace() -> None:
    planned = plan()
    it = ready(planned)
    assert it.on_abort(planned.digest, Reason.CONNECTION_LOST) == [StopReducing(planned.digest, Reason.CONNECTION_LOST)]
    assert it.tip == TIP
    assert it.contribution == given()
    assert it.reduced(planned.digest, averages()) == []
    assert it.reduce_failed(planned.digest, Reason.REDUCER_LOST, "me", "lea") == []


def test_news_of_an_attempt_that_is_over_changes_nothing() -> None:
    it = reducing(plan(attempt=2))
    old = plan(attempt=1)
    assert it.on_abort(old.digest, Reason.STALLED) == []
    assert it.reduced(old.digest, averages()) == []
    assert it.reduce_failed(old.digest, Reason.REDUCER_LOST, "me", "lea") == []
    assert it.phase is Phase.REDUCING


def test_while_a_commit_is_applied_nothing_else_happens() -> None:
    planned = plan()
    it = ready(planned)
    it.on_commit(commit_of(planned))
    assert it.on_abort(planned.digest, Reason.STALLED) == []
    assert it.catch_up(Reason.BEHIND) == []
    assert it.on_commit(commit_of(planned)) == []
    assert reason_of(it.on_plan(mine(plan(attempt=2)))) is Reason.NOT_CAUGHT_UP
    assert it.phase is Phase.APPLYING


def test_a_commit_heard_twice_is_applied_once() -> None:
    planned = plan()
    it, signed = ready(planned), commit_of(planned)
    it.on_commit(signed)
    it.applied()
    assert it.on_commit(signed) == []


def test_falling_behind_gives_up_what_was_gathered_and_says_why() -> None:
    planned = plan()
    it = reducing(planned)
    assert it.catch_up(Reason.LOST_FORK) == [
        StopReducing(planned.digest, Reason.LOST_FORK),
        GiveUp(Reason.LOST_FORK, given()),
        CatchUp(Reason.LOST_FORK),
    ]
    assert it.catch_up(Reason.BEHIND) == [], "once is enough"


def test_a_freeze_that_ends_after_the_epoch_closed_is_dropped() -> None:
    it = member()
    it.on_plan(mine(plan()))
    it.catch_up(Reason.BEHIND)
    assert it.frozen(given()) == []
    it.adopted(replace(TIP, epoch=5, lineage="b" * 64))
    assert it.contribution is None


def test_a_freeze_of_an_older_lineage_never_enters_a_newer_epoch() -> None:
    """The freeze of the old epoch answers while the member waits for that of the new one. Its samples have another base."""
    it = member()
    it.on_plan(mine(plan()))
    it.catch_up(Reason.BEHIND)
    newer = replace(TIP, epoch=5, lineage="b" * 64)
    it.adopted(newer)
    following = replace(plan(), ballot=Ballot(6, newer.lineage, 1, "lea"))
    assert it.on_plan(mine(following)) == [Freeze()]
    actions = it.frozen(given())  # its base is TIP, not `newer`
    assert not any(isinstance(a, Send) and isinstance(a.answer, Accept) and a.answer.contribution == given() for a in actions)


def finishing(planned: Plan, *contributions: Contribution, attempt: int = 2, leader: str = "bob") -> Plan:
    """The plan of `leader` that finishes the averages that somebody was ready for in `planned`."""
    ballot = replace(planned.ballot, attempt=attempt, leader=leader)
    return replace(planned, ballot=ballot, contributors=(), finishes=averages(*contributions))


def test_what_it_was_ready_for_is_kept_when_the_attempt_ends_and_forgotten_with_the_epoch() -> None:
    planned = plan()
    it = ready(planned)
    held = ReadyFor(planned.ballot, averages())
    it.on_abort(planned.digest, Reason.STALLED)
    assert it.ready_for == held
    it.on_plan(mine(plan(attempt=2)))
    assert it.ready_for == held, "until another attempt comes to averages"
    it.adopted(replace(TIP, lineage="b" * 64))
    assert it.ready_for is None


def test_a_plan_that_finishes_an_earlier_attempt_asks_for_no_contribution() -> None:
    planned = plan()
    it = ready(planned)
    it.on_abort(planned.digest, Reason.LEADER_LOST)
    second = finishing(planned)
    assert it.on_plan(mine(second)) == [Send("bob", Accept(second.digest, None)), Reduce(mine(second), None)]
    assert it.reduced(second.digest, averages()) == [Send("bob", Ready(averages().result(second.digest)))]
    signed = commit_of(second)
    assert it.on_commit(signed) == [Apply(signed)]
    assert it.applied() == [Resume()], "its own contribution is in the commit"


def test_whoever_is_not_in_the_averages_that_are_finished_gives_its_contribution_up() -> None:
    it = member(frozen=given())
    second = finishing(plan(), given("bob"))
    it.on_plan(mine(second))
    it.reduced(second.digest, averages(given("bob")))
    it.on_commit(commit_of(second, given("bob")))
    assert it.applied() == [GiveUp(Reason.MISSED, given()), Resume()]


@pytest.mark.parametrize("named", [given(end=9), given(first=1)], ids=["more samples", "fewer samples"])
def test_averages_that_name_another_contribution_than_it_gave_are_refused(named: Contribution) -> None:
    it = member(frozen=given())
    assert reason_of(it.on_plan(mine(finishing(plan(), given("bob"), named)))) is Reason.RESULTS_DIFFER


def test_averages_with_the_contribution_of_an_earlier_process_of_this_peer_are_accepted() -> None:
    it = Member("me", 2)
    it.adopted(TIP)
    assert kinds(it.on_plan(mine(finishing(plan())))) == [Send, Reduce]


def test_a_commit_of_the_averages_at_hand_is_applied_even_if_its_plan_never_came() -> None:
    planned = plan()
    it = ready(planned)
    it.on_abort(planned.digest, Reason.LEADER_LOST)
    signed = commit_of(finishing(planned))
    assert it.on_commit(signed) == [Apply(signed)]


def test_only_another_leader_than_the_plans_own_is_told_with_whom_it_was_planned() -> None:
    it = reducing(plan())
    assert it.planned_with("lea") == ()
    assert it.planned_with("bob") == ("lea",)
    it.adopted(replace(TIP, lineage="b" * 64))
    assert it.planned_with("bob") == ()


def test_whoever_gives_nothing_goes_on_drawing_and_gives_what_it_drew_to_the_next_attempt() -> None:
    """If it froze with nothing and all contributors died, no peer would have a sample for the next plan."""
    it = member()
    first = plan(contributors=("bob",))
    assert it.on_plan(mine(first)) == [Send("lea", Accept(first.digest, None)), Reduce(mine(first), None)]
    it.on_abort(first.digest, Reason.CONNECTION_LOST)
    assert it.phase is Phase.TRAINING
    second = plan(attempt=2, contributors=("me",))
    assert it.on_plan(mine(second)) == [Freeze()]
    assert it.frozen(given()) == [Send("lea", Accept(second.digest, given())), Reduce(mine(second), given())]


def test_a_freeze_that_ends_when_another_plan_asks_for_nothing_begins_no_second_exchange() -> None:
    it = member()
    it.on_plan(mine(plan()))
    second = plan(attempt=2, contributors=("bob",))
    assert kinds(it.on_plan(mine(second))) == [Send, Reduce]
    assert it.frozen(given()) == []
    assert it.contribution == given()
