"""The simulator can fail: a protocol with one rule broken passes without faults, and the invariant that it breaks catches it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import pytest

from peer.simulation.bulk import RoundTraffic, ServedShard
from peer.simulation.messages import Abort
from peer.simulation.process import SimulatedPeer
from peer.simulation.replica import ELEMENTS, Frozen, Replica, stepped
from peer.simulation.scenario import simulate
from peer.simulation.trainer import Trainer
from protocols.gradients.codecs import Codec
from protocols.gradients.error_feedback import ErrorFeedback, Sums
from protocols.gradients.shard_average import ShardAverage
from protocols.reasons import Reason
from protocols.round.absences import Absences
from protocols.round.leader import Leader
from protocols.round.member import GiveUp, Member, Resume
from protocols.round.plans import MemberPlan, PlanIdentity
from protocols.round.records import Ballot, Contribution, SignedCommit, Standing, Tip

MAX_SEEDS = 400
Patch = pytest.MonkeyPatch


def ballots_without_the_leader(patch: Patch) -> None:
    def digest(plan: PlanIdentity) -> str:
        fields = asdict(PlanIdentity(**plan.values))
        del fields["ballot"]["leader"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    patch.setattr(PlanIdentity, "digest", property(digest))
    patch.setattr(Ballot, "rank", property(lambda ballot: (ballot.attempt, "")))


def a_late_commit_applied_after_a_promise(patch: Patch) -> None:
    """A commit of a lower ballot than the one accepted last is taken as if nothing had been promised."""
    on_commit = Member.on_commit

    def mutant(member: Member, signed: SignedCommit) -> list[Any]:
        member.promised = None
        return on_commit(member, signed)

    patch.setattr(Member, "on_commit", mutant)


def untagged_chunks(patch: Patch) -> None:
    """A reducer knows a chunk by its peer, shard and place alone, and takes the first that it gets for each."""
    run = RoundTraffic.run

    def find(round_traffic: RoundTraffic, plan_digest: str, shard: int) -> ServedShard | None:
        return next((found for (_, index), found in reversed(round_traffic.reducing.items()) if index == shard), None)

    def takes_what_waits(round_traffic: RoundTraffic, plan: MemberPlan, *rest: Any) -> None:
        waiting = round_traffic._early
        for index in range(len(plan.shards)):
            early = [serve for key in list(waiting) if key[1] == index for serve in waiting.pop(key)]
            waiting[plan.digest, index] = early
        run(round_traffic, plan, *rest)

    def open_(reduction: ShardAverage, peer: str, contribution: Contribution | None) -> None:
        if contribution is not None and peer in reduction._received:
            reduction._contributions[peer] = contribution

    def feed(reduction: ShardAverage, peer: str, data: bytes) -> None:
        if len(data) == reduction.expects(peer):
            elements = reduction._next_elements(peer)
            reduction._received[peer] += elements
            reduction._pending[peer].append(reduction.codec.decode(data, elements))
        while reduction.contributions is not None and all(reduction._pending.values()):
            reduction._average_next()

    patch.setattr(RoundTraffic, "find", find)
    patch.setattr(RoundTraffic, "run", takes_what_waits)
    patch.setattr(ShardAverage, "open", open_)
    patch.setattr(ShardAverage, "feed", feed)


def a_commit_without_ready(patch: Patch) -> None:
    """A drop-out after the first Ready commits instead of ending the attempt."""
    lose = Leader._lose

    def mutant(leader: Leader, peer: str, reason: Reason, now: float) -> list[Any]:
        attempt = leader.attempt
        if attempt is not None and peer in attempt.plan.members and attempt.ready:
            first = next(iter(attempt.ready.values()))
            attempt.ready = dict.fromkeys(attempt.plan.members, first)
            attempt.majority_at = now
        return lose(leader, peer, reason, now)

    patch.setattr(Leader, "_lose", mutant)


def a_new_leader_that_does_not_ask(patch: Patch) -> None:
    def take_over(leader: Leader, now: float) -> list[Any]:
        leader.active = leader.tip is not None
        return []

    patch.setattr(Leader, "take_over", take_over)


def a_contribution_frozen_twice(patch: Patch) -> None:
    """Every attempt freezes afresh what was drawn meanwhile."""
    on_plan = Member.on_plan

    def mutant(member: Member, plan: MemberPlan) -> list[Any]:
        member._frozen = False
        return on_plan(member, plan)

    patch.setattr(Member, "on_plan", mutant)
    patch.setattr(Trainer, "stop_drawing", lambda trainer: None)
    _freeze_and_go_on(patch)


def _freeze_and_go_on(patch: Patch) -> None:
    """What is frozen stays in the accumulator's sum and range."""
    freeze = Replica.freeze

    def mutant(replica: Replica) -> Frozen | None:
        first, total, base = replica.first, replica._sum, replica.base
        frozen = freeze(replica)
        replica.first, replica._sum, replica.base = first, total, base
        return frozen

    patch.setattr(Replica, "freeze", mutant)


def a_contribution_that_mixes_bases(patch: Patch) -> None:
    """With overlap, whoever applies a commit draws on at the new parameters, into the sum that it began at the old ones."""
    apply, draw = Replica.apply, Replica.draw
    newest: dict[Replica, str] = {}

    def advances(replica: Replica, signed: SignedCommit, averaged: bytes) -> Tip:
        tip = apply(replica, signed, averaged)
        newest[replica] = tip.lineage
        return tip

    def draws(replica: Replica, count: int) -> None:
        named, replica.base = replica.base, newest.get(replica, replica.base) if replica.samples else replica.base
        draw(replica, count)
        replica.base = named

    patch.setattr(Replica, "apply", advances)
    patch.setattr(Replica, "draw", draws)


def a_base_of_any_age(patch: Patch) -> None:
    """With overlap, what accumulates is kept through every commit, and whoever checks bases lets everything pass."""
    patch.setattr(Tip, "may_average", lambda tip, contributions, *, overlap: True)
    applied = Member.applied

    def mutant(member: Member) -> list[Any]:
        actions = applied(member)
        if not member.overlap:
            return actions
        return [Resume(keep=True) if isinstance(action, Resume) else action for action in actions]

    patch.setattr(Member, "applied", mutant)


def samples_that_enter_two_epochs(patch: Patch) -> None:
    """With overlap, e+1 accumulates on top of what e has frozen. (Without, it is restarted before anything more is drawn.)"""
    _freeze_and_go_on(patch)


def a_residual_that_an_attempt_settles(patch: Patch) -> None:
    """What the encoding of a contribution lost is due with the next one as soon as an attempt has ended, committed or not."""
    stop = RoundTraffic.stop

    def mutant(round_traffic: RoundTraffic, plan_digest: str) -> None:
        error_feedback = round_traffic._process.replica.error_feedback
        error_feedback._kept = error_feedback._pending if error_feedback._pending is not None else error_feedback._kept
        stop(round_traffic, plan_digest)

    patch.setattr(RoundTraffic, "stop", mutant)


def a_residual_added_twice_after_an_attempt(patch: Patch) -> None:
    """The next attempt adds it to the same contribution once more, and owes so much more."""
    stop = RoundTraffic.stop

    def mutant(round_traffic: RoundTraffic, plan_digest: str) -> None:
        error_feedback = round_traffic._process.replica.error_feedback
        if error_feedback._pending is not None and error_feedback._kept is not None:
            error_feedback._pending = error_feedback._pending + error_feedback._kept
        stop(round_traffic, plan_digest)

    patch.setattr(RoundTraffic, "stop", mutant)


def a_residual_dropped_at_an_abort(patch: Patch) -> None:
    stop = RoundTraffic.stop

    def mutant(round_traffic: RoundTraffic, plan_digest: str) -> None:
        round_traffic._process.replica.error_feedback.forget()
        stop(round_traffic, plan_digest)

    patch.setattr(RoundTraffic, "stop", mutant)


def a_residual_that_any_commit_settles(patch: Patch) -> None:
    """Also one that does not name the contribution."""

    def settle(error_feedback: ErrorFeedback, contributions: Iterable[Contribution]) -> None:
        if error_feedback._given is not None:
            error_feedback._kept = error_feedback._pending
        error_feedback._given = error_feedback._pending = None

    patch.setattr(ErrorFeedback, "settle", settle)


def a_residual_taken_along_to_another_lineage(patch: Patch) -> None:
    patch.setattr(ErrorFeedback, "forget", lambda error_feedback: None)


def a_residual_that_a_codec_without_feedback_leaves_behind(patch: Patch) -> None:
    """After a change of codec it is dropped instead of given."""
    encode = ErrorFeedback.encode

    def mutant(error_feedback: ErrorFeedback, codec: Codec, sums: Sums, out: memoryview) -> bool:
        if not codec.error_feedback:
            error_feedback._kept = None
        return encode(error_feedback, codec, sums, out)

    patch.setattr(ErrorFeedback, "encode", mutant)


def a_fork_rule_by_the_last_epoch_only(patch: Patch) -> None:
    def heavier_than(mine: Standing, other: Standing) -> bool:
        return mine.epoch > other.epoch or (mine.epoch == other.epoch and mine.lineage < other.lineage)

    patch.setattr(Standing, "heavier_than", heavier_than)


def a_member_that_steps_twice(patch: Patch) -> None:
    """A step that failed midway is tried again on the state that it left."""
    apply = Replica.apply

    def mutant(replica: Replica, signed: SignedCommit, averaged: bytes) -> Tip:
        if replica.fails_next_step and replica.state is not None:
            replica.fails_next_step = False
            size = replica.codec.encoded_bytes(ELEMENTS)
            replica.state = stepped(replica.state, averaged[:size], replica.codec)
        return apply(replica, signed, averaged)

    patch.setattr(Replica, "apply", mutant)


def an_absence_without_a_reason(patch: Patch) -> None:
    patch.setattr(Absences, "from_plan", lambda absences, plan, too_slow, tip, seats: ())


def a_contribution_that_vanishes(patch: Patch) -> None:
    """A member that falls behind forgets what it gave, and does not say so."""
    fall_behind = Member._fall_behind

    def mutant(member: Member, *args: Any) -> list[Any]:
        return [action for action in fall_behind(member, *args) if not isinstance(action, GiveUp)]

    patch.setattr(Member, "_fall_behind", mutant)


def a_state_that_changes_outside_a_commit(patch: Patch) -> None:
    """Whoever goes on after an attempt that failed has stepped by half already."""
    on_abort = SimulatedPeer.from_leader

    def mutant(process: SimulatedPeer, leader: str, message: Any) -> None:
        on_abort(process, leader, message)
        if isinstance(message, Abort) and process.replica.state is not None:
            process.replica.state = process.replica.state * 0.5

    patch.setattr(SimulatedPeer, "from_leader", mutant)


MUTANTS: dict[Callable[[Patch], None], str] = {
    ballots_without_the_leader: "3 ballots",
    a_late_commit_applied_after_a_promise: "3 promises",
    a_commit_without_ready: "3 ready",
    untagged_chunks: "2 mean",
    a_new_leader_that_does_not_ask: "3 asks",
    a_contribution_frozen_twice: "2 frozen once",
    a_contribution_that_mixes_bases: "2 given",
    a_base_of_any_age: "2 base",
    samples_that_enter_two_epochs: "2 frozen once",
    a_residual_that_an_attempt_settles: "2 given",
    a_residual_added_twice_after_an_attempt: "2 given",
    a_residual_dropped_at_an_abort: "2 given",
    a_residual_that_any_commit_settles: "2 given",
    a_residual_taken_along_to_another_lineage: "2 given",
    a_residual_that_a_codec_without_feedback_leaves_behind: "2 given",
    a_fork_rule_by_the_last_epoch_only: "4 heavier",
    a_member_that_steps_twice: "1 state",
    an_absence_without_a_reason: "7 peers",
    a_contribution_that_vanishes: "7 contributions",
    a_state_that_changes_outside_a_commit: "3 whole",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_passes_without_faults(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    outcome = simulate(0, faults=False)
    assert (outcome.violated, outcome.what) == ("", "")
    assert outcome.commits >= 8  # the unbroken protocol has 16


@pytest.mark.parametrize(("mutant", "invariant"), MUTANTS.items())
def test_a_mutant_is_caught_by_the_invariant_that_it_breaks(
    mutant: Callable[[Patch], None], invariant: str, monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    others = []
    for seed in range(MAX_SEEDS):
        outcome = simulate(seed)
        if outcome.violated == invariant:
            print(f"caught by seed {seed}: {outcome.what}; before it {others}")
            return
        if outcome.violated:
            others.append((seed, outcome.violated))
    pytest.fail(f"{MAX_SEEDS} seeds do not catch it; others: {others[:10]}")
