"""Which state has drifted: the members say whose canonical values they refuse, and more than half of them decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocols.reasons import Reason
from protocols.round.attempt import Attempt
from protocols.round.deadline import Deadline
from protocols.round.drift_votes import Drifted, DriftVerdict
from protocols.round.leader import Leader
from protocols.round.leader_actions import Announce, NoteFailure, SendAbort, SendPlan
from protocols.round.member import Accept, Apply, CatchUp, GiveUp, Member, Phase, Ready, Send, StopReducing
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import (
    Averages,
    Ballot,
    Candidate,
    Commit,
    Contribution,
    Hello,
    ReadyFor,
    Report,
    Shard,
    ShardResult,
    SignedCommit,
    Tip,
    Vote,
)

RUN = "ab" * 32
GENESIS = Tip.genesis(RUN, "00" * 32, Candidate("ann", "ann:1"), "fp32")


def contribution_of(peer: str) -> Contribution:
    return Contribution(peer, 1, 0, 8, GENESIS.lineage, 1.0)


def plan_of(members: str, leader: str, *, attempt: int = 1, finishes: Averages | None = None) -> Plan:
    """A plan in which each member reduces one shard."""
    shards = tuple(Shard(name, f"{name}:1", 1024 * at, 1024 * (at + 1)) for at, name in enumerate(members.split()))
    names = tuple(members.split())
    return Plan(RUN, Ballot(1, GENESIS.lineage, attempt, leader), names, names, shards, "fp32", 4.0, 1, finishes)


def averages_of(plan: Plan) -> Averages:
    shards = tuple(ShardResult(s.start, s.stop, "d" * 64, 1.0) for s in plan.shards)
    return Averages(tuple(contribution_of(peer) for peer in plan.contributors), shards)


def refusal(member: str, plan: Plan, *reducers: str) -> Drifted:
    return Drifted(plan.digest, reducers, Vote(member, b"k", b"s"))


def verdict_of(plan: Plan, *refusals: Drifted) -> DriftVerdict:
    return DriftVerdict(plan.members, refusals)


def off(members: str, refused: dict[str, str], *, leader: str = "ann") -> tuple[str, ...]:
    attempt = Attempt(plan_of(members, leader), 0.0, Deadline((), 0.0, 1.0, {}, {}, 60.0), "fp32")
    attempt.drifted = {member: refusal(member, attempt.plan, *reducers.split()) for member, reducers in refused.items()}
    plan, verdict = attempt.plan, attempt.verdict
    condemned = tuple(member for member in plan.members if verdict.condemns(member, member_plan_of(plan, member)))
    assert condemned == (attempt.off() if 2 * len(refused) >= len(plan.members) else ()), "whoever is told can see it, too"
    return attempt.off()


@pytest.mark.parametrize(
    ("members", "refused", "expected"),
    [
        pytest.param("ann bob cid", {"ann": "cid", "bob": "cid", "cid": "ann bob"}, ("cid",), id="one of three"),
        pytest.param("ann bob cid", {"bob": "ann", "cid": "ann", "ann": "bob cid"}, ("ann",), id="the leader itself"),
        pytest.param("ann bob", {"ann": "bob", "bob": "ann"}, ("bob",), id="one against one: the leader is right"),
        pytest.param("ann bob", {"bob": "ann"}, ("bob",), id="one against one, only the leader reduced"),
        pytest.param(
            "ann bob cid dag",
            {"ann": "bob cid dag", "bob": "ann cid dag", "cid": "ann bob", "dag": "ann bob"},
            ("ann", "bob"),
            id="two of four, the leader among them",
        ),
        pytest.param(
            "ann bob cid",
            {"ann": "bob cid", "bob": "ann cid", "cid": "ann bob"},
            ("bob", "cid"),
            id="nobody agrees: the leader stays",
        ),
        pytest.param(
            "ann bob cid dag eve",
            {"ann": "bob cid", "dag": "bob cid", "eve": "bob cid", "bob": "ann dag eve", "cid": "ann dag eve"},
            ("bob", "cid"),
            id="two with the same damage",
        ),
    ],
)
def test_the_outvoted_are_off(members: str, refused: dict[str, str], expected: tuple[str, ...]) -> None:
    assert off(members, refused) == expected


def test_who_took_the_values_that_most_refuse_is_off_as_their_reducer_is() -> None:
    plan = replace(plan_of("ann bob cid dag eve", "ann"), shards=(Shard("bob", "bob:1", 0, 1024),))
    attempt = Attempt(plan, 0.0, Deadline((), 0.0, 1.0, {}, {}, 60.0), "fp32")
    attempt.drifted = {member: refusal(member, plan, "bob") for member in ("ann", "dag", "eve")}
    assert attempt.off() == ("bob", "cid")


# -- the leader ------------------------------------------------------------------------------------------------------------------


def leader_of(members: str) -> Leader:
    leader = Leader(
        Candidate("ann", "ann:1"),
        run_digest=RUN,
        target_batch_size=8,
        elements=1024 * len(members.split()),
        codecs={"fp32": 4096 * len(members.split())},
        max_epochs=None,
    )
    leader.follow(GENESIS)
    leader.take_over(0.0)
    for name in members.split():
        leader.joined(name, Hello(1, False, f"{name}:1", f"{name}:2", name), 0.0)
    return leader


def report(*, samples: int = 8, caught_up: bool = True, **more: Any) -> Report:
    values = {"samples_per_second": 1.0, "step_s": 0.1, "promised_attempt": 0, "moved_bytes": 0, "phase": "training", **more}
    rates: dict[str, Any] = {"upload_bytes_s": 0.0, "download_bytes_s": 0.0, "ready_for": None, "planned_with": ()}
    return Report(standing=GENESIS.standing, samples=samples, caught_up=caught_up, **{**rates, **values})


def planned(leader: Leader, members: str) -> Plan:
    leader.target_batch_size = 8 * len(members.split())
    actions = [action for name in members.split() for action in leader.reported(name, report(), 0.0)]
    (plan,) = [action.plan for action in actions if isinstance(action, SendPlan)]
    for name in members.split():
        leader.answer(name, Accept(plan.digest, contribution_of(name)), 0.0)
    return plan


def test_a_minority_that_refuses_is_left_behind_by_the_commit() -> None:
    leader = leader_of("ann bob cid")
    plan = planned(leader, "ann bob cid")
    ready = Ready(averages_of(plan).result(plan.digest))
    assert leader.answer("cid", refusal("cid", plan, *("ann", "bob")), 0.0) == []
    assert leader.answer("ann", ready, 0.0) == []
    (announced,) = leader.answer("bob", ready, 0.0)  # at once: all others have answered
    assert isinstance(announced, Announce)


def test_a_reducer_that_most_refuse_gives_up_its_state_and_nothing_of_its_attempt_is_finished() -> None:
    leader = leader_of("ann bob cid")
    plan = planned(leader, "ann bob cid")
    averages = averages_of(plan)
    assert leader.answer("ann", refusal("ann", plan, *("cid",)), 0.0) == []
    assert leader.answer("cid", Ready(averages.result(plan.digest)), 0.0) == [], "not before everybody answered"
    actions = leader.answer("bob", refusal("bob", plan, *("cid",)), 0.0)
    assert actions[:3] == [
        NoteFailure(plan.ballot, Reason.DRIFT, "cid"),
        SendAbort(
            ("cid",),
            plan.digest,
            Reason.DRIFT,
            "cid",
            ("ann", "bob"),
            verdict_of(plan, refusal("ann", plan, "cid"), refusal("bob", plan, "cid")),
        ),
        SendAbort(("ann", "bob"), plan.digest, Reason.RESULTS_DIFFER),
    ]
    (again,) = [action.plan for action in actions if isinstance(action, SendPlan)]
    assert (again.members, again.finishes) == (("ann", "bob"), None)
    held = ReadyFor(plan.ballot, averages)
    leader.step_down()
    leader.take_over(1.0)
    for name in ("ann", "bob", "cid"):
        leader.joined(name, Hello(1, False, f"{name}:1", f"{name}:2", name), 1.0)
    actions = [a for n in ("ann", "cid") for a in leader.reported(n, report(ready_for=held, promised_attempt=2), 5.0)]
    assert [action.plan.finishes for action in actions if isinstance(action, SendPlan)] in ([None], [])


def test_averages_whose_canonical_values_are_refused_are_not_finished_for_ever() -> None:
    leader = leader_of("ann bob")
    leader.target_batch_size = 10**6
    first = plan_of("ann bob", "zoe")
    held = ReadyFor(first.ballot, averages_of(first))
    leader.reported("bob", report(promised_attempt=1), 0.0)
    actions = leader.reported("ann", report(promised_attempt=1, ready_for=held), 1.5)
    (plan,) = [action.plan for action in actions if isinstance(action, SendPlan)]
    assert plan.finishes == held.averages
    for name in ("ann", "bob"):
        leader.answer(name, Accept(plan.digest, None), 1.5)
    leader.answer("ann", refusal("ann", plan, *("ann",)), 1.5)
    actions = leader.answer("bob", refusal("bob", plan, *("ann",)), 1.5)
    (drifted,) = [it for it in actions if isinstance(it, SendAbort) and it.reason is Reason.DRIFT]
    assert drifted.to == (), "who passed them on is not to blame"
    assert [action.plan.finishes for action in actions if isinstance(action, SendPlan)] == [None]


# -- a member ------------------------------------------------------------------------------------------------------------------


def reducing() -> tuple[Member, Plan]:
    member = Member("bob", 1)
    member.adopted(GENESIS)
    plan = plan_of("ann bob cid", "ann")
    member.on_plan(member_plan_of(plan, "bob"))
    member.frozen(contribution_of("bob"))
    assert member.phase is Phase.REDUCING
    return member, plan


def commit_of(plan: Plan) -> SignedCommit:
    averages = averages_of(plan)
    commit = Commit(
        plan.ballot,
        plan.digest,
        averages.contributions,
        plan.members,
        averages.shards,
        plan.codec,
        averages.samples,
        Candidate("ann", "ann:1"),
        (),
        "fp32",
    )
    return SignedCommit(commit, b"s", b"c")


def test_a_member_that_refuses_serves_on_and_gives_up_its_state_when_the_others_commit() -> None:
    member, plan = reducing()
    assert member.drifted(plan.digest, ("cid",)) == [Send("ann", Drifted(plan.digest, ("cid",)))], "its streams go on"
    actions = member.on_commit(commit_of(plan))
    assert CatchUp(Reason.DRIFT) in actions
    assert not any(isinstance(action, Apply) for action in actions)
    assert not any(isinstance(action, GiveUp) for action in actions), "its samples are in the commit"


def test_a_commit_that_came_first_is_refused_as_well() -> None:
    member, plan = reducing()
    assert member.on_commit(commit_of(plan)) == []
    assert CatchUp(Reason.DRIFT) in member.drifted(plan.digest, ("cid",))


def test_the_outvoted_are_told_and_catch_up_while_the_others_stay_frozen() -> None:
    member, plan = reducing()
    member.reduced(plan.digest, averages_of(plan))
    verdict = verdict_of(plan, refusal("ann", plan, "bob"), refusal("cid", plan, "bob"))
    actions = member.on_abort(plan.digest, Reason.DRIFT, ("ann",), verdict)
    assert actions[0] == StopReducing(plan.digest, Reason.DRIFT)
    assert actions[-1] == CatchUp(Reason.DRIFT, sound=("ann",))
    other, plan = reducing()
    other.drifted(plan.digest, ("cid",))
    assert other.on_abort(plan.digest, Reason.RESULTS_DIFFER) == [StopReducing(plan.digest, Reason.RESULTS_DIFFER)]
    assert other.phase is Phase.FROZEN
    again = plan_of("ann bob cid", "ann", attempt=2)
    other.on_plan(member_plan_of(again, other.me))
    other.reduced(again.digest, averages_of(again))
    assert any(isinstance(action, Apply) for action in other.on_commit(commit_of(again))), "what it refused before is forgotten"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (lambda plan: None, "nobody refused"),
        (lambda plan: verdict_of(plan, refusal("ann", plan, "bob")), "one of three refused"),
        (lambda plan: verdict_of(plan, refusal("ann", plan, "cid"), refusal("bob", plan, "cid")), "they refused another"),
        (
            lambda plan: verdict_of(plan, *(refusal(name, replace(plan, codec="fp16"), "bob") for name in ("ann", "cid"))),
            "of another plan",
        ),
        (lambda plan: DriftVerdict(("ann", "bob"), (refusal("ann", plan, "bob"),)), "of other members"),
    ],
)
def test_no_leader_makes_a_member_give_up_its_state_without_the_refusals_of_half(told: Any, why: str) -> None:
    member, plan = reducing()
    member.reduced(plan.digest, averages_of(plan))
    assert member.on_abort(plan.digest, Reason.DRIFT, ("ann",), told(plan)) == [
        StopReducing(plan.digest, Reason.RESULTS_DIFFER)
    ], why
    assert member.phase is Phase.FROZEN and member.tip == GENESIS


def test_a_verdict_needs_a_signature_under_each_refusal_and_one_refusal_a_member() -> None:
    plan = plan_of("ann bob cid", "ann")
    ann = refusal("ann", plan, "bob")
    for refusals in ((replace(ann, vote=None),), (ann, ann), (refusal("eve", plan, "bob"),)):
        with pytest.raises(ValueError):
            verdict_of(plan, *refusals)
