"""The simulator can fail: a protocol with one rule broken passes without faults, and the invariant that it breaks catches it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import pytest

from protocols.codecs import Codec
from protocols.reasons import Reason
from protocols.reduction import ShardReduction
from protocols.residual import Residual, Sums
from protocols.round.absences import Absences
from protocols.round.lead import Lead
from protocols.round.member import GiveUp, Member, Resume
from protocols.round.plans import Part, PlanIdentity
from protocols.round.records import Ballot, Contribution, SignedCommit, Standing, Tip
from protocols.simulation.bulk import Exchanges, Reducing
from protocols.simulation.messages import Abort
from protocols.simulation.process import SimulatedPeer
from protocols.simulation.replica import ELEMENTS, Frozen, Replica, stepped
from protocols.simulation.scenario import simulate
from protocols.simulation.trainer import Trainer

MOST_SEEDS = 400
Patch = pytest.MonkeyPatch


def ballots_without_the_lead(patch: Patch) -> None:
    def digest(plan: PlanIdentity) -> str:
        fields = asdict(PlanIdentity(**plan.values))
        del fields["ballot"]["lead"]
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
    run = Exchanges.run

    def find(exchanges: Exchanges, plan_digest: str, shard: int) -> Reducing | None:
        return next((found for (_, index), found in reversed(exchanges.reducing.items()) if index == shard), None)

    def takes_what_waits(exchanges: Exchanges, plan: Part, *rest: Any) -> None:
        waiting = exchanges._early
        for index in range(len(plan.shards)):
            early = [serve for key in list(waiting) if key[1] == index for serve in waiting.pop(key)]
            waiting[plan.digest, index] = early
        run(exchanges, plan, *rest)

    def open_(reduction: ShardReduction, peer: str, contribution: Contribution | None) -> None:
        if contribution is not None and peer in reduction._received:
            reduction._contributions[peer] = contribution

    def feed(reduction: ShardReduction, peer: str, data: bytes) -> None:
        if len(data) == reduction.expects(peer):
            elements = reduction._next_elements(peer)
            reduction._received[peer] += elements
            reduction._pending[peer].append(reduction.codec.decode(data, elements))
        while reduction.contributions is not None and all(reduction._pending.values()):
            reduction._average_next()

    patch.setattr(Exchanges, "find", find)
    patch.setattr(Exchanges, "run", takes_what_waits)
    patch.setattr(ShardReduction, "open", open_)
    patch.setattr(ShardReduction, "feed", feed)


def a_commit_without_ready(patch: Patch) -> None:
    """A drop-out after the first Ready commits instead of ending the attempt."""
    lose = Lead._lose

    def mutant(lead: Lead, peer: str, reason: Reason, now: float) -> list[Any]:
        attempt = lead.attempt
        if attempt is not None and peer in attempt.plan.members and attempt.ready:
            first = next(iter(attempt.ready.values()))
            attempt.ready = dict.fromkeys(attempt.plan.members, first)
            attempt.majority_at = now
        return lose(lead, peer, reason, now)

    patch.setattr(Lead, "_lose", mutant)


def a_new_lead_that_does_not_ask(patch: Patch) -> None:
    def take_over(lead: Lead, now: float) -> list[Any]:
        lead.active = lead.tip is not None
        return []

    patch.setattr(Lead, "take_over", take_over)


def a_contribution_frozen_twice(patch: Patch) -> None:
    """Every attempt freezes afresh what was drawn meanwhile."""
    on_plan = Member.on_plan

    def mutant(member: Member, plan: Part) -> list[Any]:
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
    stop = Exchanges.stop

    def mutant(exchanges: Exchanges, plan_digest: str) -> None:
        residual = exchanges._process.replica.residual
        residual._kept = residual._pending if residual._pending is not None else residual._kept
        stop(exchanges, plan_digest)

    patch.setattr(Exchanges, "stop", mutant)


def a_residual_added_twice_after_an_attempt(patch: Patch) -> None:
    """The next attempt adds it to the same contribution once more, and owes so much more."""
    stop = Exchanges.stop

    def mutant(exchanges: Exchanges, plan_digest: str) -> None:
        residual = exchanges._process.replica.residual
        if residual._pending is not None and residual._kept is not None:
            residual._pending = residual._pending + residual._kept
        stop(exchanges, plan_digest)

    patch.setattr(Exchanges, "stop", mutant)


def a_residual_dropped_at_an_abort(patch: Patch) -> None:
    stop = Exchanges.stop

    def mutant(exchanges: Exchanges, plan_digest: str) -> None:
        exchanges._process.replica.residual.forget()
        stop(exchanges, plan_digest)

    patch.setattr(Exchanges, "stop", mutant)


def a_residual_that_any_commit_settles(patch: Patch) -> None:
    """Also one that does not name the contribution."""

    def settle(residual: Residual, contributions: Iterable[Contribution]) -> None:
        if residual._given is not None:
            residual._kept = residual._pending
        residual._given = residual._pending = None

    patch.setattr(Residual, "settle", settle)


def a_residual_taken_along_to_another_lineage(patch: Patch) -> None:
    patch.setattr(Residual, "forget", lambda residual: None)


def a_residual_that_a_codec_without_feedback_leaves_behind(patch: Patch) -> None:
    """After a change of codec it is dropped instead of given."""
    encode = Residual.encode

    def mutant(residual: Residual, codec: Codec, sums: Sums, out: memoryview) -> bool:
        if not codec.error_feedback:
            residual._kept = None
        return encode(residual, codec, sums, out)

    patch.setattr(Residual, "encode", mutant)


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
    on_abort = SimulatedPeer.from_lead

    def mutant(process: SimulatedPeer, lead: str, message: Any) -> None:
        on_abort(process, lead, message)
        if isinstance(message, Abort) and process.replica.state is not None:
            process.replica.state = process.replica.state * 0.5

    patch.setattr(SimulatedPeer, "from_lead", mutant)


MUTANTS: dict[Callable[[Patch], None], str] = {
    ballots_without_the_lead: "3 ballots",
    a_late_commit_applied_after_a_promise: "3 promises",
    a_commit_without_ready: "3 ready",
    untagged_chunks: "2 mean",
    a_new_lead_that_does_not_ask: "3 asks",
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
    for seed in range(MOST_SEEDS):
        outcome = simulate(seed)
        if outcome.violated == invariant:
            print(f"caught by seed {seed}: {outcome.what}; before it {others}")
            return
        if outcome.violated:
            others.append((seed, outcome.violated))
    pytest.fail(f"{MOST_SEEDS} seeds do not catch it; others: {others[:10]}")
