from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from protocols.reasons import Reason
from protocols.round.attempt import GRACE_S
from protocols.round.leader import DETECTION_S, Leader
from protocols.round.leader_actions import Announce, Ask, NoteFailure, Reannounce, SendAbort, SendPlan, Yield
from protocols.round.member import Failed, Refuse
from protocols.round.records import (
    Candidate,
    Commit,
    Contribution,
    Hello,
    Report,
    Result,
    Tip,
)
from tests.protocols.round.table import (
    ELEMENTS,
    RUN,
    TICK_S,
    Table,
    address,
    genesis,
    of,
    result_of,
    the_plan,
    three,
    threes_result,
)

# -- gathering and planning ------------------------------------------------------------------------------------------------------


def test_it_plans_when_the_reported_samples_reach_the_batch_and_not_before() -> None:
    table = Table("bob", "cid")
    assert table.reports(lea=0, bob=12, cid=7) == []
    plan = the_plan(table.report("cid", 8))
    assert plan.contributors == ("bob", "cid")
    assert plan.members == ("bob", "cid", "lea")
    assert (plan.ballot.epoch, plan.ballot.parent, plan.ballot.attempt, plan.ballot.leader) == (1, table.tip.lineage, 1, "lea")
    assert plan.elements == ELEMENTS
    assert plan.run_digest == RUN


def test_one_attempt_at_a_time() -> None:
    table, _ = three()
    assert table.report("bob", 50) == []


def test_samples_of_another_lineage_or_of_peers_that_catch_up_do_not_count() -> None:
    table = Table("bob", "cid")
    table.report("lea", 1)
    assert table.report("bob", 30, caught_up=False) == []
    assert table.report("cid", 30, standing=replace(table.tip.standing, lineage="f" * 64)) == []
    assert table.leader.gathered_samples == 1


def test_a_client_mode_peer_contributes_but_reduces_nothing() -> None:
    table = Table("bob")
    table.join("cid", client_mode=True)
    plan = the_plan(table.reports(lea=0, bob=5, cid=20))
    assert "cid" in plan.contributors
    assert {shard.reducer for shard in plan.shards} == {"bob", "lea"}


def test_a_leader_that_sleeps_plans_nothing() -> None:
    leader = Leader(
        Candidate("lea", "l:1"), run_digest=RUN, target_batch_size=1, elements=9, codecs={"fp32": 36}, max_epochs=None
    )
    assert leader.take_over(0.0) == [], "without a tip nobody can lead"
    leader.follow(genesis())
    leader.joined("lea", Hello(1, False, "l:1", "l:2", ""), 0.0)
    assert leader.reported("lea", Report(genesis().standing, 5, 1.0, 0.1, 0, 0, True, "training"), 0.0) == []
    assert leader.tick(50.0) == []


@pytest.mark.parametrize(("max_epochs", "plans"), [(1, 0), (2, 1), (None, 1)])
def test_no_epoch_is_planned_beyond_the_last(max_epochs: int | None, plans: int) -> None:
    tip = Tip(1, "a" * 64, 100, Candidate("lea", address("lea")), "fp32")
    table = Table("bob", tip=tip, max_epochs=max_epochs)
    assert len(of(SendPlan, table.reports(lea=20, bob=20))) == plans
    assert len(of(SendPlan, table.wait(1.0))) == 0


def test_nobody_is_planned_before_the_members_of_the_last_commit_are_heard() -> None:
    tip = Tip(1, "a" * 64, 100, Candidate("lea", address("lea")), "fp32", members=("bob", "cid", "lea"))
    table = Table("bob", tip=tip)
    assert table.opening == [Ask(("bob", "cid"))]
    assert table.reports(lea=20, bob=20) == []
    assert len(of(SendPlan, table.leader.unreachable("cid", table.now))) == 1


def test_a_member_that_never_answers_is_waited_for_until_detection() -> None:
    tip = Tip(1, "a" * 64, 100, Candidate("lea", address("lea")), "fp32", members=("bob", "cid", "lea"))
    table = Table("bob", tip=tip)
    table.reports(lea=20, bob=20)
    assert of(SendPlan, table.wait(DETECTION_S - 0.1)) == []
    assert len(of(SendPlan, table.wait(0.2))) == 1


# -- committing ------------------------------------------------------------------------------------------------------------------


def test_everybody_ready_is_committed_at_once() -> None:
    table, plan = three()
    result = threes_result(table, plan)
    assert table.ready(result, "bob") == []
    actions = table.ready(result, "cid", "lea")
    (announced,) = of(Announce, actions)
    commit: Commit = announced.commit
    assert commit.ballot == plan.ballot
    assert commit.plan_digest == plan.digest
    assert [(c.peer, c.weight) for c in commit.contributions] == [("bob", 12), ("cid", 12)]
    assert commit.shards == result.shards
    assert commit.total_samples == table.tip.total_samples + 24
    assert commit.members == plan.members
    assert [candidate.peer for candidate in commit.succession] == ["bob", "cid"]


def test_more_than_half_ready_is_committed_after_a_grace_for_the_others() -> None:
    table, plan = three()
    result = threes_result(table, plan)
    assert table.ready(result, "bob") == []
    assert table.wait(1.0) == [], "one of three is no majority"
    assert table.ready(result, "lea") == []
    assert table.wait(GRACE_S / 2) == []
    (announced,) = of(Announce, table.wait(1.0))
    assert announced.commit.samples == 24


def test_half_is_no_majority() -> None:
    table = Table("bob", "cid", "dag")
    plan = the_plan(table.reports(lea=0, bob=5, cid=5, dag=5) + table.report("bob", 12))
    for peer, samples in (("lea", 0), ("bob", 12), ("cid", 5), ("dag", 5)):
        table.accept(plan, peer, samples)
    contributions = [Contribution(p, 1, 0, n, table.tip.lineage, 1.0) for p, n in (("bob", 12), ("cid", 5), ("dag", 5))]
    assert table.ready(result_of(plan, *contributions), "bob", "cid") == []
    assert of(Announce, table.wait(plan.patience_s - 0.5)) == []


def test_a_member_that_drops_out_after_the_majority_does_not_stop_the_commit() -> None:
    table, plan = three()
    table.ready(threes_result(table, plan), "bob", "lea")
    actions = table.leader.left("cid", Reason.CONNECTION_LOST, table.now)
    assert len(of(Announce, actions)) == 1
    assert of(NoteFailure, actions) == []


@pytest.mark.parametrize("how", ["failed", "refused"])
def test_a_straggler_that_fails_after_the_majority_does_not_stop_the_commit(how: str) -> None:
    """More than half are ready, so the epoch is decided. A member without the results catches up."""
    table, plan = three()
    table.ready(threes_result(table, plan), "bob", "lea")
    answer: Failed | Refuse = Failed(plan.digest, Reason.REDUCER_LOST, "cid", "bob")
    if how == "refused":
        answer = Refuse(plan.digest, Reason.OTHER_LINEAGE, 0)
    actions = table.leader.answer("cid", answer, table.now) + table.wait(5.0)
    assert of(NoteFailure, actions) == []
    assert len(of(Announce, actions)) == 1


def another(result: Result, digit: str) -> Result:
    return replace(result, shards=(replace(result.shards[0], digest=digit * 64), *result.shards[1:]))


def test_results_of_which_none_has_a_majority_are_never_committed() -> None:
    table, plan = three()
    result = threes_result(table, plan)
    actions = table.ready(result, "bob") + table.ready(another(result, "e"), "cid") + table.ready(another(result, "f"), "lea")
    assert of(Announce, actions) == []
    (failure,) = of(NoteFailure, actions)
    assert failure.reason is Reason.RESULTS_DIFFER


def test_one_member_that_says_otherwise_does_not_keep_the_majority_from_its_commit() -> None:
    table, plan = three()
    result = threes_result(table, plan)
    (announced,) = of(Announce, table.ready(another(result, "e"), "cid") + table.ready(result, "bob", "lea"))
    assert announced.commit.shards == result.shards


def test_an_attempt_in_which_a_contributor_moves_nothing_is_not_repeated_with_it() -> None:
    table, plan = three()
    failed: list[Any] = []
    planned: list[Any] = []
    moved = 0
    while not planned and table.now < 200:
        moved += 100
        actions = table.report("bob", 12, moved=moved) if moved < 1000 else []
        actions += table.wait(TICK_S)
        failed += of(NoteFailure, actions)
        planned += of(SendPlan, actions)
    assert failed == [NoteFailure(plan.ballot, Reason.STALLED, "cid")]
    assert "cid" not in planned[0].plan.members


def test_a_leader_that_stepped_down_after_its_commit_and_leads_again_plans_again() -> None:
    table, plan = three()
    table.ready(threes_result(table, plan), "bob", "cid", "lea")
    table.leader.step_down()  # its own Member accepted another leader's plan and dropped the commit
    table.now += 1.0
    table.leader.take_over(table.now)
    for peer in ("lea", "bob", "cid"):
        table.join(peer)
    actions = table.reports(lea=0, bob=12, cid=12)
    assert len(of(SendPlan, actions)) == 1


def test_a_leader_that_was_stopped_does_not_commit_when_a_member_is_found_gone() -> None:
    table, plan = three()
    table.ready(threes_result(table, plan), "bob", "lea")
    table.now += 600.0
    actions = table.leader.left("cid", Reason.CONNECTION_LOST, table.now)
    assert of(Announce, actions) == []


def test_a_failure_between_others_who_are_not_in_the_plan_is_the_senders_own() -> None:
    table, plan = three()
    actions = table.leader.answer("cid", Failed(plan.digest, Reason.REDUCER_LOST, "nobody", "lea"), table.now)
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.REDUCER_LOST, "cid")]


def test_results_that_average_other_contributions_than_were_accepted_are_never_committed() -> None:
    table, plan = three()
    partial = result_of(plan, Contribution("bob", 1, 0, 12, table.tip.lineage, 1.0))
    actions = table.ready(partial, "bob", "cid", "lea") + table.wait(5.0)
    assert of(Announce, actions) == []
    assert of(NoteFailure, actions)[0].reason is Reason.RESULTS_DIFFER


def test_nothing_is_committed_before_every_contributor_accepted() -> None:
    table = Table("bob", "cid")
    plan = the_plan(table.reports(lea=0, bob=12, cid=12))
    table.accept(plan, "bob", 12)
    table.accept(plan, "lea")
    result = threes_result(table, plan)
    assert of(Announce, table.ready(result, "bob", "lea", "cid")) == []


def test_nothing_more_is_planned_until_the_own_commit_is_applied() -> None:
    table, plan = three()
    (announced,) = of(Announce, table.ready(threes_result(table, plan), "bob", "cid", "lea"))
    assert table.reports(lea=50, bob=50, cid=50) == []
    table.tip = Tip.after(announced.commit)
    table.leader.follow(table.tip, announced.commit)
    following = the_plan(table.reports(lea=0, bob=12, cid=12))
    assert (following.ballot.epoch, following.ballot.parent, following.ballot.attempt) == (2, announced.commit.digest, 1)


# -- attempts that fail ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.CONNECTION_LOST, Reason.LEFT])
def test_a_member_that_drops_out_ends_the_attempt_and_the_rest_go_on_at_once(reason: Reason) -> None:
    table, plan = three()
    actions = table.leader.left("cid", reason, table.now)
    assert actions[:2] == [NoteFailure(plan.ballot, reason, "cid"), SendAbort(("bob", "lea"), plan.digest, reason, "cid")]
    again = the_plan(actions)
    assert again.contributors == ("bob",), "12 of 20 samples: a retry does not wait for a full batch"
    assert again.ballot.attempt == 2


def test_detected_silence_ends_the_attempt() -> None:
    table, plan = three()
    actions = table.wait(DETECTION_S + 0.25, silent=("cid",))
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.SILENT, "cid")]


def test_a_refusal_leaves_that_peer_out_until_it_reports_afresh() -> None:
    table, plan = three()
    actions = table.leader.answer("cid", Refuse(plan.digest, Reason.NOTHING_TO_GIVE, 0), table.now)
    again = the_plan(actions)
    assert again.members == ("bob", "lea")
    assert again.ballot.attempt == 2


def test_a_higher_promise_is_outbid() -> None:
    table, plan = three()
    again = the_plan(table.leader.answer("cid", Refuse(plan.digest, Reason.PROMISED_HIGHER, 6), table.now))
    assert again.ballot.attempt == 7
    assert again.members == plan.members


def test_a_reported_promise_is_outbid_from_the_start() -> None:
    table = Table("bob")
    table.report("lea", 0)
    plan = the_plan(table.report("bob", 20, promised_attempt=4))
    assert plan.ballot.attempt == 5


def test_a_stalled_attempt_doubles_the_patience_of_the_next() -> None:
    table, plan = three()
    patience = [plan.patience_s]
    for _ in range(3):
        assert of(SendPlan, table.wait(patience[-1] * 0.99)) == []
        actions = table.wait(patience[-1] * 0.02)
        assert of(NoteFailure, actions)[0].reason is Reason.STALLED
        plan = the_plan(actions)
        for peer, samples in (("lea", 0), ("bob", 12), ("cid", 12)):
            table.accept(plan, peer, samples)
        patience.append(plan.patience_s)
    assert patience == [patience[0] * 2**n for n in range(4)]


def test_an_attempt_does_not_stall_while_bytes_move() -> None:
    table, plan = three()
    for step in range(1, 8):
        assert table.wait(plan.patience_s * 0.9) == []
        table.report("bob", 12, moved=1000 * step)
    assert table.wait(plan.patience_s * 0.9) == []
    table.report("bob", 12)  # a report without progress is no progress
    assert of(NoteFailure, table.wait(plan.patience_s * 0.2))[0].reason is Reason.STALLED


def test_who_did_not_even_accept_is_left_out_after_a_stall() -> None:
    table = Table("bob", "cid")
    plan = the_plan(table.reports(lea=0, bob=12, cid=12))
    table.accept(plan, "lea")
    table.accept(plan, "bob", 12)
    actions = table.wait(plan.patience_s + 0.1)
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.STALLED, "cid")]
    assert the_plan(actions).members == ("bob", "lea")


@pytest.mark.parametrize("late_s", [0.0, 0.1, 0.24])
def test_a_silent_peer_is_found_within_two_seconds_and_a_slow_one_is_not_taken_for_silent(late_s: float) -> None:
    table, plan = three(target=24)
    began = table.now
    table.now += late_s  # the last byte may come anywhere within the driver's tick
    table.leader.heard("cid", table.now)
    failed: list[Any] = []
    while not failed and table.now < began + 60:
        table.now += TICK_S
        table.leader.heard("lea", table.now)
        table.leader.heard("bob", table.now)  # a life sign, but no progress
        failed = of(NoteFailure, table.leader.tick(table.now))
    assert failed == [NoteFailure(plan.ballot, Reason.SILENT, "cid")]
    assert table.now - began - late_s <= 2.0
    assert "bob" in table.leader.followers


@pytest.mark.parametrize("first", ["answer", "tick"])
def test_a_leader_that_was_stopped_does_not_commit_from_what_it_finds_when_it_wakes(first: str) -> None:
    table, plan = three()
    result = threes_result(table, plan)
    table.ready(result, "bob")
    table.now += 5.0
    actions = table.leader.tick(table.now) if first == "tick" else []
    actions += table.ready(result, "cid", "lea")
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.SILENT, "lea")]
    assert of(Announce, actions) == []


def test_slow_machines_get_more_patience() -> None:
    table = Table("bob")
    table.report("lea", 0)
    assert the_plan(table.report("bob", 20, step_s=10.0)).patience_s >= 20.0


def test_a_plan_whose_bytes_flow_at_half_the_measured_rates_is_not_given_up_and_one_that_trickles_is() -> None:
    def after(share: float) -> list[Any]:
        table = Table("bob", "cid")
        rates = {"upload_bytes_s": 1000.0, "download_bytes_s": 1000.0}
        for peer in ("lea", "bob"):
            table.report(peer, 0, **rates)
        plan = the_plan(table.report("cid", 20, **rates))
        contribution = Contribution("cid", 1, 0, 20, table.tip.lineage, 1.0)
        for peer in plan.members:
            table.accept(plan, peer, 20 if peer == "cid" else 0)
        assert plan.contributors == (contribution.peer,)
        # The longest transfer is 4/3 of 32 KiB at 1,000 bytes/s: cid sends two of three equal shards, and its own to two members.
        failed: list[Any] = []
        for step in range(1, 41):
            table.now += 1.0
            actions = table.report("cid", 20, moved=round(step * share * 1000), **rates)
            for peer in ("lea", "bob"):
                table.leader.heard(peer, table.now)
            failed += of(NoteFailure, actions + table.leader.tick(table.now))
        return failed

    assert after(1.2) == [], "more than half of what it moves both ways together"
    (failure,) = after(0.3)[:1]
    assert failure.reason is Reason.STALLED


def test_what_takes_longer_than_the_links_is_expected_to_take_so_long_again() -> None:
    """32 KiB at 1 MB/s take 0.03 s, but the round took 100 s for other reasons. So in the next epoch slow bytes are no stall."""
    table = Table("bob")
    rates = {"upload_bytes_s": 1e6, "download_bytes_s": 1e6}
    table.report("lea", 0, **rates)
    plan = the_plan(table.report("bob", 20, **rates))
    for peer, samples in (("lea", 0), ("bob", 20)):
        table.accept(plan, peer, samples)
    table.now = table.leader._awake_at = table.now + 100.0
    contribution = Contribution("bob", 1, 0, 20, table.tip.lineage, 1.0)
    for peer in ("lea", "bob"):
        table.leader.heard(peer, table.now)
        table.report(peer, 20 if peer == "bob" else 0, moved=1, **rates)
    (announced,) = of(Announce, table.ready(result_of(plan, contribution), "lea", "bob"))
    table.tip = Tip.after(announced.commit)
    table.leader.follow(table.tip, announced.commit)
    table.report("lea", 0, **rates)
    (sent,) = of(SendPlan, table.report("bob", 20, **rates))
    attempt = table.leader.attempt
    assert attempt is not None and attempt.plan == sent.plan
    paces = attempt.deadline._min_rates
    assert max(paces.values()) < 2 * 32 * 1024 / 100


def test_a_new_leader_asks_the_members_of_the_plans_that_are_reported_to_it() -> None:
    table = Table("bob", tip=replace(genesis(), members=("bob", "lea")))
    table.report("lea", 0)
    actions = table.report("bob", 20, promised_attempt=1, planned_with=("bob", "new", "old"))
    assert of(Ask, actions) == [Ask(("new", "old"))]
    assert of(SendPlan, actions) == []
    assert of(SendPlan, table.leader.unreachable("new", table.now)) == []
    assert len(of(SendPlan, table.leader.unreachable("old", table.now))) == 1


def test_a_commit_found_is_announced_once_more_to_members_that_have_not_applied_it() -> None:
    table, plan = three()
    (announced,) = of(Announce, table.ready(threes_result(table, plan), "bob", "cid", "lea"))
    heir = Table("cid", tip=table.tip, me="bob")
    heir.leader.follow(Tip.after(announced.commit), announced.commit)
    assert heir.report("cid", 12) == [Reannounce(("cid",))]
    assert heir.report("cid", 12) == [], "once"
    there = Tip.after(announced.commit).standing
    assert of(Reannounce, heir.report("bob", 0, standing=there)) == []


def test_answers_to_an_attempt_that_is_over_change_nothing() -> None:
    table, plan = three()
    table.leader.left("cid", Reason.CONNECTION_LOST, table.now)
    current = table.leader.attempt
    result = threes_result(table, plan)
    assert table.ready(result, "bob", "lea") == []
    assert table.leader.answer("bob", Failed(plan.digest, Reason.REDUCER_LOST, "bob", "lea"), table.now) == []
    assert table.leader.answer("bob", Refuse(plan.digest, Reason.NOT_A_MEMBER, 9), table.now) == []
    assert table.leader.attempt is current


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"end": 13}, Reason.BAD_CHUNK, id="more samples than reported"),
        pytest.param({"peer": "bob"}, Reason.BAD_CHUNK, id="somebody else's"),
        pytest.param({"incarnation": 2}, Reason.OTHER_INCARNATION, id="of another incarnation"),
        pytest.param({"base": "f" * 64}, Reason.OTHER_LINEAGE, id="of another lineage"),
    ],
)
def test_a_contribution_that_is_not_what_was_planned_ends_the_attempt(change: dict[str, Any], reason: Reason) -> None:
    table = Table("bob", "cid")
    plan = the_plan(table.reports(lea=0, bob=12, cid=12))
    actions = table.accept(plan, "cid", 12, **change)
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, reason, "cid")]
    assert the_plan(actions).contributors == ("bob",)


def test_a_contributor_that_accepts_without_a_contribution_ends_the_attempt() -> None:
    table = Table("bob", "cid")
    plan = the_plan(table.reports(lea=0, bob=12, cid=12))
    assert of(NoteFailure, table.accept(plan, "cid"))[0].peer == "cid"


def test_samples_that_were_committed_are_not_accepted_again() -> None:
    table, plan = three()
    (announced,) = of(Announce, table.ready(threes_result(table, plan), "bob", "cid", "lea"))
    table.tip = Tip.after(announced.commit)
    table.leader.follow(table.tip, announced.commit)
    plan = the_plan(table.reports(lea=0, bob=12, cid=12))
    actions = table.accept(plan, "cid", 12)  # [0, 12) once more
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.COUNTED, "cid")]
    plan = the_plan(actions)
    assert table.accept(plan, "bob", 24, first=12) == []


@pytest.mark.parametrize(("reason", "culprit"), [(Reason.REDUCER_LOST, "lea"), (Reason.CONTRIBUTOR_LOST, "bob")])
def test_a_pair_that_failed_does_not_meet_again_in_the_epoch(reason: Reason, culprit: str) -> None:
    table, plan = three()
    actions = table.leader.answer("bob", Failed(plan.digest, reason, "bob", "lea"), table.now)
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, reason, culprit)]
    for _ in range(3):
        plan = the_plan(actions)
        assert not ("bob" in plan.contributors and "lea" in {shard.reducer for shard in plan.shards})
        actions = table.wait(plan.patience_s + 1)
        for peer in ("lea", "bob", "cid"):
            actions += table.report(peer, 12)


def test_in_the_next_epoch_a_failed_pair_may_try_again() -> None:
    table, plan = three()
    table.leader.answer("bob", Failed(plan.digest, Reason.REDUCER_LOST, "bob", "lea"), table.now)
    table.tip = Tip(1, "c" * 64, 24, Candidate("lea", address("lea")), "fp32")
    table.leader.follow(table.tip)
    plan = the_plan(table.reports(lea=0, bob=12, cid=12))
    assert "bob" in plan.contributors
    assert "lea" in {shard.reducer for shard in plan.shards}


NAMES = ("bob", "cid", "dag", "lea")


@forall(
    pairs=st.lists(st.permutations(NAMES).map(lambda names: (names[0], names[1])), min_size=1, max_size=6, unique=True),
    client_mode=st.sets(st.sampled_from(("bob", "cid", "dag"))),
    samples=st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES}),
)
def test_whatever_pairs_failed_no_plan_of_the_epoch_repeats_one(
    pairs: list[tuple[str, str]], client_mode: set[str], samples: dict[str, int]
) -> None:
    table = Table(target=1)
    for name in NAMES[:-1]:
        table.join(name, client_mode=name in client_mode)
    actions = table.reports(**{**samples, "lea": 9})
    failed: set[tuple[str, str]] = set()
    for pair in pairs:
        plans = of(SendPlan, actions)
        if not plans:
            return  # there is nobody to plan with until new reports come
        for sent in plans:
            reducers = {shard.reducer for shard in sent.plan.shards}
            repeated = {(m, r) for m, r in failed if m in sent.plan.contributors and r in reducers}
            assert repeated == set()
        plan = plans[-1].plan
        member, reducer = pair
        if member not in plan.members or reducer not in {shard.reducer for shard in plan.shards}:
            continue
        failed.add(pair)
        actions = table.leader.answer(member, Failed(plan.digest, Reason.REDUCER_LOST, member, reducer), table.now)


def test_a_pair_never_meets_again_even_when_every_reducer_failed_for_somebody() -> None:
    """lea cannot reach bob, and cid (client mode) cannot reach lea. lea and bob can still average at lea."""
    table = Table("bob", target=1)
    table.join("cid", client_mode=True)
    for peer, samples in (("bob", 9), ("cid", 9)):
        table.report(peer, samples)
    plan = the_plan(table.report("lea", 9))
    plan = the_plan(table.leader.answer("cid", Failed(plan.digest, Reason.REDUCER_LOST, "cid", "lea"), table.now))
    assert {shard.reducer for shard in plan.shards} == {"bob"}
    plan = the_plan(table.leader.answer("lea", Failed(plan.digest, Reason.REDUCER_LOST, "lea", "bob"), table.now))
    assert not ("lea" in plan.contributors and "bob" in {shard.reducer for shard in plan.shards})
    assert not ("cid" in plan.contributors and "lea" in {shard.reducer for shard in plan.shards})


# -- who leads -------------------------------------------------------------------------------------------------------------------


def test_a_newer_process_of_a_peer_takes_its_place() -> None:
    table, plan = three()
    actions = table.join("cid", incarnation=5)
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.OTHER_INCARNATION, "cid")]
    assert table.leader.followers["cid"].hello.incarnation == 5


def test_an_older_process_of_a_peer_does_not_take_the_newer_ones_place() -> None:
    """The newest incarnation wins, even if an older one connects later."""
    table = Table("bob")
    table.join("cid", incarnation=5)
    table.report("cid", 3)
    table.join("cid", incarnation=4)
    assert table.leader.followers["cid"].hello.incarnation == 5
    assert table.leader.followers["cid"].report is not None


def test_the_succession_keeps_its_order_and_newcomers_come_last() -> None:
    tip = replace(genesis(), epoch=1, total_samples=5, succession=(Candidate("zoe", "z:1"), Candidate("mia", "m:1")))
    table = Table("abe", "mia", "zoe", tip=tip)
    plan = the_plan(table.reports(lea=0, abe=1, mia=1, zoe=20))
    contributions = []
    for peer, samples in (("abe", 1), ("lea", 0), ("mia", 1), ("zoe", 20)):
        table.accept(plan, peer, samples)
        if samples:
            contributions.append(Contribution(peer, 1, 0, samples, tip.lineage, 1.0))
    (announced,) = of(Announce, table.ready(result_of(plan, *contributions), *plan.members))
    assert announced.commit.leader.peer == "lea"
    assert [candidate.peer for candidate in announced.commit.succession] == ["zoe", "mia", "abe"]


def test_a_leader_that_steps_down_ends_its_attempt_with_a_reason() -> None:
    table, plan = three()
    actions = table.leader.step_down()
    assert of(NoteFailure, actions) == [NoteFailure(plan.ballot, Reason.LEADER_LOST, "lea")]
    assert of(SendAbort, actions)[0].to == ("bob", "cid", "lea")
    assert not table.leader.active
    assert table.report("bob", 90) == []


def test_an_attempt_that_another_commit_overtakes_ends_with_a_reason() -> None:
    """Invariant 7: every attempt that ends is logged, and every member stops reducing for it."""
    table, plan = three()
    elsewhere = Tip(1, "f" * 64, 50, Candidate("bob", address("bob")), "fp32")
    actions: list[Any] = table.leader.follow(elsewhere) or []
    assert [failure.ballot for failure in of(NoteFailure, actions)] == [plan.ballot]
    assert table.leader.attempt is None


def rivals(mine: int, theirs: int, me: str = "lea", other: str = "zoe") -> tuple[Table, list[str]]:
    """A leader with so many followers beside another with so many, of one commit; and the other's followers."""
    here, there = [f"l{n}" for n in range(mine)], [f"z{n}" for n in range(theirs)]
    tip = replace(genesis(), epoch=1, members=tuple(sorted((me, other, *here, *there))), lineage="a" * 64)
    return Table(*here, tip=tip, me=me), there


def meets(table: Table, other: str, theirs: list[str]) -> list[Any]:
    """The other leader answers, and then whoever is asked about it."""
    actions = table.leader.answered(other, other)
    asked = {peer for ask in of(Ask, actions) for peer in ask.peers}
    for peer in theirs:
        if peer in asked and table.leader.active:
            actions = table.leader.answered(peer, other)
    return actions


@pytest.mark.parametrize(
    ("me", "other", "mine", "theirs", "yields"),
    [
        ("lea", "zoe", 2, 1, False),
        ("lea", "zoe", 1, 2, True),
        ("lea", "zoe", 1, 1, True),
        ("zoe", "lea", 1, 1, False),
    ],
)
def test_of_two_leads_the_one_with_fewer_followers_yields(me: str, other: str, mine: int, theirs: int, yields: bool) -> None:
    table, followers = rivals(mine, theirs, me, other)
    actions = meets(table, other, followers)
    assert bool(of(Yield, actions)) is yields
    assert table.leader.active is not yields
    if yields:
        assert actions[-1] == Yield(other)


def test_exactly_one_of_two_leads_yields() -> None:
    for mine in range(3):
        for theirs in range(3):
            lea, followers_of_zoe = rivals(mine, theirs, "lea", "zoe")
            zoe, followers_of_lea = rivals(theirs, mine, "zoe", "lea")
            yielded = [of(Yield, meets(lea, "zoe", followers_of_zoe)), of(Yield, meets(zoe, "lea", followers_of_lea))]
            assert sum(map(bool, yielded)) == 1, (mine, theirs)


def test_who_says_that_it_leads_and_has_no_followers_makes_no_leader_yield() -> None:
    table, _ = rivals(1, 0)
    for _ in range(5):
        assert of(Yield, table.leader.answered("zoe", "zoe")) == []
    assert table.leader.active


def test_who_follows_another_leader_leads_this_one_there() -> None:
    table, (bob, *_) = rivals(0, 1)
    assert table.leader.answered(bob, "zoe") == [Ask(("zoe",))]
    assert table.leader.answered("zoe", "zoe")[-1] == Yield("zoe")


def test_a_leader_does_not_yield_to_one_that_is_dead() -> None:
    """A member may still believe in a leader that died a moment ago."""
    table, (bob, *_) = rivals(1, 2)
    assert of(Yield, table.leader.answered(bob, "zoe")) == []
    table.leader.unreachable("zoe", table.now)
    assert table.leader.active


def test_who_looks_for_a_leader_is_waited_for() -> None:
    tip = replace(genesis(), epoch=1, members=("bob", "lea"), lineage="a" * 64)
    table = Table(tip=tip)
    table.report("lea", 30)
    assert table.leader.answered("bob", "") == []
    assert table.leader.active
    assert table.wait(0.5) == [Ask(("bob",))], "its report is waited for, and it is asked again meanwhile"
    table.join("bob")
    assert "bob" in the_plan(table.report("bob", 5)).members


def test_no_ballot_of_an_epoch_is_used_twice_though_catching_up_found_nothing_further() -> None:
    table = Table("bob", "cid")
    table.report("lea", 8)
    table.report("bob", 8)
    (first,) = of(SendPlan, table.report("cid", 8))
    table.leader.follow(table.tip)  # the leader's own Member caught up, to the same tip
    (second,) = of(SendPlan, table.report("lea", 8))
    assert second.plan.ballot.attempt == first.plan.ballot.attempt + 1
