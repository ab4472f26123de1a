"""Checks DESIGN.md's invariants from a log of its own: what processes sent, received, wrote, applied and restored, never what
machines believe. Of a process itself it reads who it is, and nothing else.

A check is named by the number of its invariant and a word. The first violation ends the seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from peer.simulation.feedback import Feedback
from peer.simulation.lineages import Lineages, Sample, range_of
from peer.simulation.messages import Vector
from peer.simulation.world import World
from protocols.gradients.codecs import Codec
from protocols.reasons import Reason
from protocols.round.leader_actions import NoteFailure
from protocols.round.member import Accept, Answer, Ready
from protocols.round.plans import Plan
from protocols.round.records import Commit, Contribution, Report, SignedCommit, Tip


class Source(Protocol):
    """A process, as far as the observer looks at it."""

    @property
    def name(self) -> str: ...
    @property
    def incarnation(self) -> int: ...


@dataclass
class _Seen:
    """What was seen of one process since it started."""

    lineage: str = ""  # where its state stands; '' before the first, and after a step that failed
    heaviest: tuple[int, str] | None = None  # (weight, lineage) that it was at last
    written: list[Vector | None] = field(default_factory=list)  # states that no commit and no snapshot explains yet
    catches_up: Reason | None = None  # the last reason that it gave for leaving the round, until it is back
    promised: dict[str, tuple[int, str]] = field(default_factory=dict)  # parent -> rank of the highest plan accepted
    late: Commit | None = None  # the message that it acts on now, if that is a commit of a ballot below its promise
    pending: Contribution | None = None
    plan: Plan | None = None  # as a leader: the attempt that has not ended yet
    present: dict[str, Report] = field(default_factory=dict)  # as a leader: the last report of each who is connected
    unasked: set[str] = field(default_factory=set)  # as a new leader: members of the last commit neither asked nor heard of


class Observer:
    def __init__(self, world: World, genesis: str, *, overlap: bool = False) -> None:
        self.world = world
        self.feedback = Feedback(world)
        self.lineages = Lineages(world, genesis, self.feedback, overlap=overlap)
        self.members: dict[str, tuple[str, ...]] = {}  # lineage -> members of the commit that led there
        self.commits: dict[str, Commit] = {}  # all that a leader announced
        self.retries = 0
        self.moves = 0  # how often anybody started, ended, or came to stand elsewhere
        self._seen: dict[Source, _Seen] = {}
        self._ready: dict[str, set[str]] = {}  # plan digest -> who said that it is ready
        self._plans: dict[str, Plan] = {}
        self._ranks: dict[tuple[str, tuple[int, str]], str] = {}  # (parent, rank) -> the leader that planned under it
        self._given: dict[Sample, list[tuple[Contribution, str]]] = {}  # every contribution frozen, with its bytes' digest

    # -- of processes ----------------------------------------------------------------------------------------------------------

    def started(self, process: Source, from_disk: Tip | None) -> None:
        self._seen[process] = _Seen()
        self.moves += 1
        self._note(process, f"starts as {process.incarnation}" + (f" with {from_disk.lineage[:8]} on disk" if from_disk else ""))

    def ended(self, process: Source, reason: str) -> None:
        self._note(process, f"ends: {reason}")
        self.moves += 1

    def after_event(self, process: Source) -> None:
        """Whole commits only: what an event wrote, a commit or a snapshot of the same event explains."""
        seen = self._seen.get(process)
        if seen is None:
            return
        if seen.written:
            self._violated("3 whole", f"{process.name}'s state changed outside any commit and any snapshot")
        seen.late = None

    def catching_up(self, process: Source, reason: Reason) -> None:
        self._note(process, f"catches up: {reason.value}")
        seen = self._seen[process]
        seen.catches_up = reason
        if seen.late is not None:
            self._violated("3 promises", f"{process.name} leaves its plan for {_rank(seen.late)}, which it promised to ignore")

    def resumed(self, process: Source) -> None:
        """It draws samples again, so whatever it had frozen is settled."""
        seen = self._seen[process]
        seen.catches_up = None
        pending, epoch = seen.pending, self.lineages[seen.lineage].epoch
        # Named by a commit that was fetched in vain, and standing further on now, it cannot tell whether that one is an ancestor.
        if pending is None or any(pending in c.contributions and c.ballot.epoch < epoch for c in self.commits.values()):
            seen.pending = None
        else:
            self._violated("7 contributions", f"{process.name}'s {range_of(pending)} vanished without a reason")

    def seated(self, leader: Source, peer: str) -> None:
        self.world.trace(f"{leader.name} seats {peer}")
        self._seen[leader].present.pop(peer, None)

    def left(self, leader: Source, peer: str, reason: Reason) -> None:
        self._note(leader, f"loses {peer}: {reason.value}")
        self._seen[leader].present.pop(peer, None)

    def leader_lost(self, process: Source, leader: str, reason: Reason) -> None:
        self._note(process, f"lost its leader {leader}: {reason.value}")

    # -- of rounds -------------------------------------------------------------------------------------------------------------

    def leading(self, process: Source) -> None:
        self._note(process, "leads")
        seen = self._seen[process]
        seen.unasked = set(self.members.get(seen.lineage, ())) - {process.name}
        seen.present.clear()

    def asked(self, leader: Source, peer: str) -> None:
        self._seen[leader].unasked.discard(peer)

    def reported(self, leader: Source, peer: str, report: Report) -> None:
        self._seen[leader].unasked.discard(peer)
        self._seen[leader].present[peer] = report

    def planned(self, leader: Source, plan: Plan, absent: dict[str, Reason]) -> None:
        seen, ballot = self._seen[leader], plan.ballot
        what = "to finish averages of" if plan.finishes is not None else "giving"
        what += f" {','.join(plan.averaged_peers)}"
        without = "".join(f", without {peer}: {reason.value}" for peer, reason in absent.items())
        self._note(leader, f"plans {_short(plan)} among {','.join(plan.members)}, {what}{without}")
        if ballot.attempt > 1:
            self.retries += 1
        earlier = self._plans.setdefault(plan.digest, plan)
        if earlier.ballot.leader != leader.name or earlier is not plan:
            self._violated("3 ballots", f"two attempts have one identity, of {earlier.ballot.leader} and of {leader.name}")
        other = self._ranks.setdefault((ballot.parent, ballot.rank), leader.name)
        if other != leader.name:
            self._violated("3 ballots", f"{other} and {leader.name} plan {_short(plan)} under one rank")
        if seen.plan is not None:
            self._violated("7 attempts", f"{leader.name} plans again, and {_short(seen.plan)} ended without a reason")
        if seen.unasked and ballot.parent == seen.lineage:
            self._violated("3 asks", f"{leader.name} leads and plans, and never asked {','.join(sorted(seen.unasked))}")
        at_tip = {peer for peer, report in seen.present.items() if report.caught_up and report.standing.lineage == ballot.parent}
        missing = (at_tip | set(self.members.get(ballot.parent, ()))) - set(plan.members) - absent.keys()
        if missing:
            self._violated("7 peers", f"{leader.name} plans {_short(plan)} without {','.join(sorted(missing))}, and no reason")
        seen.plan = plan

    def attempt_failed(self, leader: Source, failure: NoteFailure) -> None:
        ballot = failure.ballot
        self._note(leader, f"fails {ballot.epoch}.{ballot.attempt}: {failure.reason.value} {failure.peer}")
        self._seen[leader].plan = None

    def froze(self, process: Source, contribution: Contribution, encoded: bytes, codec: Codec) -> None:
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
                self._violated("2 frozen once", f"{process.name} freezes {range_of(earlier)} and then {range_of(contribution)}")
        given.append((contribution, sha256))
        self.feedback.froze(contribution, encoded, codec)

    def gave_up(self, process: Source, reason: Reason, contribution: Contribution | None, samples: int) -> None:
        """`samples`: those drawn and not frozen, when there is no contribution yet."""
        given_up = contribution.weight if contribution is not None else samples
        self._note(process, f"gives up {given_up} samples: {reason.value}")
        if contribution is not None and contribution == self._seen[process].pending:
            self._seen[process].pending = None

    def answered(self, process: Source, answer: Answer) -> None:
        self._note(process, f"answers {_answer(answer)}")
        if isinstance(answer, Accept):
            if answer.contribution is not None:
                self._offers(process, answer.contribution)
            plan = self._plans.get(answer.plan_digest)
            if plan is not None:
                rank, promised = plan.ballot.rank, self._seen[process].promised
                if rank <= promised.get(plan.ballot.parent, (0, "")) and rank != promised[plan.ballot.parent]:
                    self._violated("3 promises", f"{process.name} accepts {_short(plan)} after {promised[plan.ballot.parent]}")
                promised[plan.ballot.parent] = rank
        elif isinstance(answer, Ready):
            self._ready.setdefault(answer.result.plan_digest, set()).add(process.name)

    def _offers(self, process: Source, contribution: Contribution) -> None:
        seen = self._seen[process]
        if seen.pending is not None and seen.pending != contribution:
            self._violated("7 contributions", f"{process.name}'s {range_of(seen.pending)} vanished without a reason")
        seen.pending = contribution

    def announced(self, leader: Source, commit: Commit) -> None:
        seen = self._seen[leader]
        self._note(
            leader, f"commits {commit.ballot.epoch}.{commit.ballot.attempt} as {commit.digest[:8]}, {commit.samples} samples"
        )
        ready = self._ready.get(commit.plan_digest, set())
        if 2 * len(ready & set(commit.members)) <= len(commit.members):
            self._violated("3 ready", f"{leader.name} commits with {len(ready)} of {len(commit.members)} members ready")
        if seen.plan is not None and seen.plan.digest == commit.plan_digest:
            seen.plan = None
        self.commits[commit.digest] = commit

    def reannounced(self, leader: Source, to: tuple[str, ...]) -> None:
        self._note(leader, f"announces the commit that it found to {','.join(to)}")

    def told(self, process: Source, message: object) -> None:
        """Its leader told it this; what it does before the next message, it does because of it."""
        seen = self._seen[process]
        seen.late = None
        if not isinstance(message, SignedCommit):
            return
        commit, parent = message.commit, message.commit.ballot.parent
        if seen.lineage == parent and commit.ballot.rank < seen.promised.get(parent, (0, "")):
            self._note(process, f"hears of {commit.digest[:8]} after promising {seen.promised[parent]}")
            seen.late = commit

    # -- of state --------------------------------------------------------------------------------------------------------------

    def wrote(self, process: Source, state: Vector | None) -> None:
        """The training state's memory: each time that it is written, and with what (None: nothing that is of any use)."""
        self._seen[process].written.append(state)

    def applied(self, process: Source, signed: SignedCommit, averaged: bytes, *, by_round: bool) -> None:
        commit, seen = signed.commit, self._seen[process]
        self._note(process, f"applies {commit.digest[:8]}" + ("" if by_round else " (replayed)"))
        if commit.ballot.parent != seen.lineage:
            self._violated("1 order", f"{process.name} at {seen.lineage[:8]} applies a commit on {commit.ballot.parent[:8]}")
        if by_round and commit.ballot.rank < seen.promised.get(commit.ballot.parent, (0, "")):
            self._violated("3 promises", f"{process.name} applies {_rank(commit)} after {seen.promised[commit.ballot.parent]}")
        if not by_round and seen.catches_up is None:
            self._violated("7 peers", f"{process.name} applies {commit.digest[:8]} outside the round, and gave no reason")
        self.lineages.applied(process.name, commit, averaged)
        self.feedback.applied(process.name, process.incarnation, commit)
        self.members[commit.digest] = commit.members
        self._stands_at(process, seen, commit.digest)

    def apply_failed(self, process: Source) -> None:
        self._note(process, "fails to apply")
        seen = self._seen[process]
        if seen.written and seen.written[-1] is None:  # midway: whatever it takes next is no move to a lighter lineage
            seen.written.clear()
            seen.lineage, seen.heaviest = "", None
            self.moves += 1

    def downloaded(self, process: Source, chunks: dict[str, int]) -> None:
        self._note(process, f"has a snapshot, {', '.join(f'{count} chunks of {donor}' for donor, count in chunks.items())}")

    def restored(self, process: Source, tip: Tip) -> None:
        self._note(process, f"restores {tip.lineage[:8]}")
        seen = self._seen[process]
        if tip.lineage not in self.lineages:
            self._violated("3 whole", f"{process.name} restores a lineage that nobody ever applied")
        self.feedback.restored(process.name, process.incarnation)
        self._stands_at(process, seen, tip.lineage)

    def _stands_at(self, process: Source, seen: _Seen, digest: str) -> None:
        lineage = self.lineages[digest]
        state = seen.written[-1] if seen.written else None
        if state is None or not np.array_equal(state, lineage.state):
            self._violated("1 state", f"{process.name}'s state at {digest[:8]} is not that of this lineage")
        if len(seen.written) > 1:
            self._violated("3 whole", f"{process.name} wrote its state {len(seen.written)} times to come to {digest[:8]}")
        seen.written.clear()
        if seen.heaviest is not None and digest != seen.heaviest[1]:
            weight, tip = seen.heaviest
            if (lineage.weight, tip) < (weight, digest):  # at equal weights the smaller digest wins
                self._violated("4 heavier", f"{process.name} moves from weight {weight} to {lineage.weight}")
        if digest != seen.lineage:
            seen.unasked.clear()  # the question was about the lineage that was left
        if seen.pending is not None and lineage.holds(seen.pending):
            seen.pending = None
        seen.lineage, seen.heaviest = digest, (lineage.weight, digest)
        self.moves += 1

    # -- for the scenario ------------------------------------------------------------------------------------------------------

    @property
    def last_commit_at(self) -> float:
        """When the newest lineage was first applied; -1 before the first."""
        return next(reversed(self.lineages.times.values()), -1.0)

    def standing_of(self, process: Source) -> str:
        return self._seen[process].lineage

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def _note(self, process: Source, text: str) -> None:
        self.world.trace(f"{process.name} {text}", notable=True)

    def _violated(self, invariant: str, what: str) -> None:
        self.world.violated(invariant, what)


def _short(plan: Plan) -> str:
    return f"{plan.ballot.epoch}.{plan.ballot.attempt} on {plan.ballot.parent[:8]} of {plan.ballot.leader}"


def _rank(commit: Commit) -> str:
    return f"{commit.digest[:8]} of {commit.ballot.rank}"


def _answer(answer: Answer) -> str:
    digest = answer.result.plan_digest if isinstance(answer, Ready) else answer.plan_digest
    reason = getattr(answer, "reason", None)
    return f"{type(answer).__name__.lower()} {digest[:8]}" + (f": {reason.value}" if isinstance(reason, Reason) else "")
