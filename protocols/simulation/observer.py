"""Checks DESIGN.md's invariants from a log of its own: what processes sent, applied and restored, never what machines believe.

A check is named by the number of its invariant and a word. The first violation ends the seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from protocols.codecs import Codec
from protocols.reasons import Reason
from protocols.round.lead import NoteFailure
from protocols.round.member import Accept, Answer, Ready
from protocols.round.records import Commit, Contribution, Plan, SignedCommit
from protocols.simulation.messages import Snapshot, Vector
from protocols.simulation.replica import ELEMENTS, genesis_state, layout, sample_gradient, stepped
from protocols.simulation.world import World

if TYPE_CHECKING:
    from protocols.simulation.process import SimulatedPeer

Sample = tuple[str, int]  # (peer, incarnation)
# Largest relative error of one encoding and the absolute one near zero, with a little room for the mean's own.
RELATIVE_ERROR = {"fp64": 1e-12, "fp32": 2.0**-22, "fp16": 2.0**-10.9}
ABSOLUTE_ERROR = {"fp64": 1e-12, "fp32": 1e-5, "fp16": 1e-4}


class ViolationError(Exception):
    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"invariant {invariant}: {what}")
        self.invariant = invariant
        self.what = what


@dataclass
class _Lineage:
    """What the observer knows of a lineage: the one state that it may have, and all samples that are in it."""

    digest: str
    epoch: int
    weight: int
    state: Vector
    samples: dict[Sample, tuple[tuple[int, int], ...]]
    parent: str = ""
    averaged_sha256: str = ""


@dataclass
class _Seen:
    """What was seen of one process since it started."""

    lineage: str = ""  # where its state stands; '' before the first, and after a step that failed
    heaviest: tuple[int, str] | None = None  # (weight, lineage) that it was at last
    state: Vector | None = None
    promised: dict[str, tuple[int, str]] = field(default_factory=dict)  # parent -> rank of the highest plan accepted
    pending: Contribution | None = None
    plan: Plan | None = None  # as a lead: the attempt that has not ended yet
    unasked: set[str] = field(default_factory=set)  # as a new lead: members of the last commit neither asked nor heard of


class Observer:
    def __init__(self, world: World, codec: Codec, genesis: str) -> None:
        self.world, self.codec = world, codec
        self.lineages = {genesis: _Lineage(genesis, 0, 0, genesis_state(), {})}
        self.members: dict[str, tuple[str, ...]] = {}  # lineage -> members of the commit that led there
        self.commits: dict[str, Commit] = {}
        self.commit_times: list[tuple[float, str]] = []  # when each lineage was first applied by anybody
        self.times: dict[str, float] = {}
        self.retries = 0
        self.given_up_samples = 0
        self._seen: dict[SimulatedPeer, _Seen] = {}
        self._ready: dict[str, set[str]] = {}  # plan digest -> who said that it is ready
        self._plans: dict[str, Plan] = {}
        self._ranks: dict[tuple[str, tuple[int, str]], str] = {}  # (parent, rank) -> the lead that planned under it
        self._given: dict[Sample, list[tuple[Contribution, str]]] = {}  # every contribution frozen, with its bytes' digest

    # -- of processes ----------------------------------------------------------------------------------------------------------

    def started(self, process: SimulatedPeer, disk: Snapshot | None) -> None:
        seen = self._seen[process] = _Seen()
        self._note(process, f"starts as {process.incarnation}" + (f" with {disk.tip.lineage[:8]} on disk" if disk else ""))
        if disk is not None:
            self._stands_at(process, seen, disk.tip.lineage)

    def ended(self, process: SimulatedPeer, reason: str) -> None:
        self._note(process, f"ends: {reason}")

    def after_event(self, process: Any) -> None:
        """Whole commits only: between two logged events nothing may have touched the state."""
        seen = self._seen.get(process)
        if seen is not None and process.replica.state is not seen.state:
            self._violated("3 whole", f"{process.name}'s state changed outside any commit and any snapshot")

    def catching_up(self, process: SimulatedPeer, reason: Reason) -> None:
        self._note(process, f"catches up: {reason.value}")

    def seated(self, lead: SimulatedPeer, peer: str) -> None:
        self.world.trace(f"{lead.name} seats {peer}")

    def left(self, lead: SimulatedPeer, peer: str, reason: Reason) -> None:
        self._note(lead, f"loses {peer}: {reason.value}")

    def lead_lost(self, process: SimulatedPeer, lead: str, reason: Reason) -> None:
        self._note(process, f"lost its lead {lead}: {reason.value}")

    # -- of rounds -------------------------------------------------------------------------------------------------------------

    def leading(self, process: SimulatedPeer) -> None:
        self._note(process, "leads")
        seen = self._seen[process]
        seen.unasked = set(self.members.get(seen.lineage, ())) - {process.name}

    def asked(self, lead: SimulatedPeer, peer: str) -> None:
        self._seen[lead].unasked.discard(peer)

    def reported(self, lead: SimulatedPeer, peer: str) -> None:
        self._seen[lead].unasked.discard(peer)

    def planned(self, lead: SimulatedPeer, plan: Plan) -> None:
        seen, ballot = self._seen[lead], plan.ballot
        what = "to finish averages of" if plan.finishes is not None else "giving"
        self._note(lead, f"plans {_short(plan)} among {','.join(plan.members)}, {what} {','.join(plan.averaged_peers)}")
        if ballot.attempt > 1:
            self.retries += 1
        earlier = self._plans.setdefault(plan.digest, plan)
        if earlier.ballot.lead != lead.name or earlier is not plan:
            self._violated("3 ballots", f"two attempts have one identity, of {earlier.ballot.lead} and of {lead.name}")
        other = self._ranks.setdefault((ballot.parent, ballot.rank), lead.name)
        if other != lead.name:
            self._violated("3 ballots", f"{other} and {lead.name} plan {_short(plan)} under one rank")
        if seen.plan is not None:
            self._violated("7 attempts", f"{lead.name} plans again, and {_short(seen.plan)} ended without a reason")
        if seen.unasked and ballot.parent == seen.lineage:
            self._violated("3 asks", f"{lead.name} leads and plans, and never asked {','.join(sorted(seen.unasked))}")
        seen.plan = plan

    def attempt_failed(self, lead: SimulatedPeer, failure: NoteFailure) -> None:
        ballot = failure.ballot
        self._note(lead, f"fails {ballot.epoch}.{ballot.attempt}: {failure.reason.value} {failure.peer}")
        self._seen[lead].plan = None

    def froze(self, process: SimulatedPeer, contribution: Contribution, encoded: bytes) -> None:
        """A contribution is fixed once per epoch: two of one process are the same or have no sample in common."""
        sha256 = hashlib.sha256(encoded).hexdigest()
        self._note(process, f"freezes [{contribution.first}, {contribution.end})")
        given = self._given.setdefault((process.name, process.incarnation), [])
        for earlier, digest in given:
            if (
                contribution.first < earlier.end
                and earlier.first < contribution.end
                and (earlier, digest) != (contribution, sha256)
            ):
                self._violated("2 frozen once", f"{process.name} freezes {_range(earlier)} and then {_range(contribution)}")
        given.append((contribution, sha256))

    def gave_up(self, process: SimulatedPeer, reason: Reason, contribution: Contribution | None) -> None:
        samples = contribution.weight if contribution is not None else process.samples
        self.given_up_samples += samples
        self._note(process, f"gives up {samples} samples: {reason.value}")
        if contribution is not None and contribution == self._seen[process].pending:
            self._seen[process].pending = None

    def answered(self, process: SimulatedPeer, answer: Answer) -> None:
        self._note(process, f"answers {_answer(answer)}")
        if isinstance(answer, Accept):
            if answer.contribution is not None:
                self._offers(process, answer.contribution)
            plan = self._plans.get(answer.plan_digest)
            if plan is not None:
                rank = (plan.ballot.attempt, plan.ballot.lead)
                promised = self._seen[process].promised
                if rank <= promised.get(plan.ballot.parent, (0, "")) and rank != promised[plan.ballot.parent]:
                    self._violated("3 promises", f"{process.name} accepts {_short(plan)} after {promised[plan.ballot.parent]}")
                promised[plan.ballot.parent] = rank
        elif isinstance(answer, Ready):
            self._ready.setdefault(answer.result.plan_digest, set()).add(process.name)

    def _offers(self, process: SimulatedPeer, contribution: Contribution) -> None:
        seen = self._seen[process]
        earlier = seen.pending
        if (
            earlier is not None
            and earlier != contribution
            and not any(earlier in commit.contributions for commit in self.commits.values())
        ):
            self._violated("7 contributions", f"{process.name}'s {_range(earlier)} vanished without a reason")
        seen.pending = contribution

    def announced(self, lead: SimulatedPeer, commit: Commit) -> None:
        seen = self._seen[lead]
        self._note(
            lead, f"commits {commit.ballot.epoch}.{commit.ballot.attempt} as {commit.digest[:8]}, {commit.samples} samples"
        )
        ready = self._ready.get(commit.plan_digest, set())
        if 2 * len(ready & set(commit.members)) <= len(commit.members):
            self._violated("3 ready", f"{lead.name} commits with {len(ready)} of {len(commit.members)} members ready")
        if seen.plan is not None and seen.plan.digest == commit.plan_digest:
            seen.plan = None
        self.commits[commit.digest] = commit

    def reannounced(self, lead: SimulatedPeer, to: tuple[str, ...]) -> None:
        self._note(lead, f"announces the commit that it found to {','.join(to)}")

    # -- of state --------------------------------------------------------------------------------------------------------------

    def applied(self, process: SimulatedPeer, signed: SignedCommit, averaged: bytes, *, by_round: bool) -> None:
        commit, seen = signed.commit, self._seen[process]
        self._note(process, f"applies {commit.digest[:8]}" + ("" if by_round else " (replayed)"))
        if commit.ballot.parent != seen.lineage:
            self._violated("1 order", f"{process.name} at {seen.lineage[:8]} applies a commit on {commit.ballot.parent[:8]}")
        rank = (commit.ballot.attempt, commit.ballot.lead)
        if by_round and rank < seen.promised.get(commit.ballot.parent, (0, "")):
            self._violated("3 promises", f"{process.name} applies {rank} after promising {seen.promised[commit.ballot.parent]}")
        lineage = self.lineages.get(commit.digest)
        if lineage is None:
            lineage = self._first_applied(commit, averaged)
        elif hashlib.sha256(averaged).hexdigest() != lineage.averaged_sha256:
            self._violated("1 bytes", f"{process.name} applies other bytes for {commit.digest[:8]} than others did")
        if seen.pending is not None and seen.pending in commit.contributions:
            seen.pending = None
        self._stands_at(process, seen, commit.digest)

    def apply_failed(self, process: SimulatedPeer) -> None:
        self._note(process, "fails to apply")
        if process.replica.state is None:  # the device failed midway: whatever it takes next is no move to a lighter lineage
            seen = self._seen[process]
            seen.lineage, seen.state, seen.heaviest = "", None, None

    def downloaded(self, process: SimulatedPeer, chunks: dict[str, int]) -> None:
        self._note(process, f"has a snapshot, {', '.join(f'{count} chunks of {donor}' for donor, count in chunks.items())}")

    def restored(self, process: SimulatedPeer, snapshot: Snapshot) -> None:
        self._note(process, f"restores {snapshot.tip.lineage[:8]}")
        if snapshot.tip.lineage not in self.lineages:
            self._violated("3 whole", f"{process.name} restores a lineage that nobody ever applied")
        self._stands_at(process, self._seen[process], snapshot.tip.lineage)

    def _stands_at(self, process: SimulatedPeer, seen: _Seen, digest: str) -> None:
        lineage = self.lineages[digest]
        state = process.replica.state
        if state is None or not np.array_equal(state, lineage.state):
            self._violated("1 state", f"{process.name}'s state at {digest[:8]} is not that of this lineage")
        if seen.heaviest is not None and digest != seen.heaviest[1]:
            weight, tip = seen.heaviest
            if (lineage.weight, tip) < (weight, digest):  # at equal weights the smaller digest wins
                self._violated("4 heavier", f"{process.name} moves from weight {weight} to {lineage.weight}")
        if digest != seen.lineage:
            seen.unasked.clear()  # the question was about the lineage that was left
        seen.lineage, seen.state, seen.heaviest = digest, state, (lineage.weight, digest)

    def _first_applied(self, commit: Commit, came_to: bytes) -> _Lineage:
        parent = self.lineages[commit.ballot.parent]
        samples = dict(parent.samples)
        for c in commit.contributions:
            ranges = samples.get((c.peer, c.incarnation), ())
            if any(c.first < end and first < c.end for first, end in ranges):
                self._violated("2 once", f"samples {_range(c)} of {c.peer} enter a second commit of one lineage")
            samples[c.peer, c.incarnation] = (*ranges, (c.first, c.end))
        averaged = self._checked_bytes(commit, came_to)
        self._check_mean(commit, averaged)
        weight = parent.weight + commit.samples
        if commit.total_samples != weight:
            self._violated("2 weight", f"{commit.digest[:8]} claims {commit.total_samples} samples, and has {weight}")
        state = stepped(parent.state, averaged, self.codec)
        lineage = _Lineage(commit.digest, parent.epoch + 1, weight, state, samples, parent.digest)
        lineage.averaged_sha256 = hashlib.sha256(came_to).hexdigest()
        self.lineages[commit.digest] = lineage
        self.members[commit.digest] = commit.members
        self.commits[commit.digest] = commit
        self.commit_times.append((self.world.now, commit.digest))
        self.times[commit.digest] = self.world.now
        return lineage

    def _checked_bytes(self, commit: Commit, came_to: bytes) -> bytes:
        """The averaged vector alone."""
        outcome = layout(commit.ballot.epoch, self.codec)
        for shard in commit.shards:
            averaged, canonical = outcome.parts(shard.start, shard.stop)
            if hashlib.sha256(came_to[averaged] + came_to[canonical]).hexdigest() != shard.sha256:
                self._violated("1 bytes", f"the bytes of {commit.digest[:8]} are not those that it names")
        return came_to[: outcome.averaged_bytes]

    def _check_mean(self, commit: Commit, averaged: bytes) -> None:
        exact, size_of_parts = np.zeros(ELEMENTS), np.zeros(ELEMENTS)
        for c in commit.contributions:
            total = np.zeros(ELEMENTS)
            for counter in range(c.first, c.end):
                total += sample_gradient(c.peer, c.incarnation, counter, c.base)
            exact += total
            size_of_parts += np.abs(total)
        exact /= commit.samples
        got = self.codec.decode(averaged).astype(np.float64)
        allowed = RELATIVE_ERROR[self.codec.name] * (size_of_parts / commit.samples + np.abs(exact))
        if len(got) != ELEMENTS or bool((np.abs(got - exact) > allowed + ABSOLUTE_ERROR[self.codec.name]).any()):
            self._violated("2 mean", f"{commit.digest[:8]} is not the mean of the contributions that it names")

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def standing_of(self, process: SimulatedPeer) -> str:
        return self._seen[process].lineage

    def _note(self, process: SimulatedPeer, text: str) -> None:
        self.world.trace(f"{process.name} {text}", notable=True)

    def _violated(self, invariant: str, what: str) -> None:
        self.world.trace(f"VIOLATION {invariant}: {what}", notable=True)
        raise ViolationError(invariant, what)


def _short(plan: Plan) -> str:
    return f"{plan.ballot.epoch}.{plan.ballot.attempt} on {plan.ballot.parent[:8]} of {plan.ballot.lead}"


def _range(contribution: Contribution) -> str:
    return f"[{contribution.first}, {contribution.end})"


def _answer(answer: Answer) -> str:
    digest = answer.result.plan_digest if isinstance(answer, Ready) else answer.plan_digest
    reason = getattr(answer, "reason", None)
    return f"{type(answer).__name__.lower()} {digest[:8]}" + (f": {reason.value}" if isinstance(reason, Reason) else "")
