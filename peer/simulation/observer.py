"""Checks DESIGN.md's invariants from a log of its own: what processes sent, received, wrote, applied and restored.

It never reads what the state machines believe. Of a process it reads who it is, and its training state. A check is named by the
number of its invariant and a word. The first violation ends the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from peer.catch_up.claims import LIVE_S
from peer.settings import RunSettings
from peer.simulation.feedback import Feedback
from peer.simulation.lineages import Lineages, Sample, range_of
from peer.simulation.problem import Device, Problem, State
from peer.simulation.world import World
from protocols.gradients.codecs import Codec
from protocols.reasons import Reason
from protocols.round.history import FEWEST_VOTERS, electorate, has_majority, share_of
from protocols.round.leader_actions import NoteFailure
from protocols.round.member import Accept, Answer, Failed, Ready
from protocols.round.plans import Plan
from protocols.round.records import Commit, Contribution, Report, SignedCommit, Tip

# What a peer tells of a reducer that failed is with its leader after so long.
TELLS_S = 2.0


class Source(Protocol):
    """A process, as far as the observer looks at it."""

    name: str
    incarnation: int
    device: Device

    @property
    def state(self) -> State: ...


@dataclass
class _Seen:
    """What was seen of one process since it started."""

    lineage: str = ""  # where its state stands; '' before the first, and after a step that failed
    heaviest: tuple[int, str] | None = None  # (weight, lineage) that it was at last
    version: int = 0  # of the training state's memory, when it was looked at last
    state: State | None = None  # as the last commit or snapshot left it
    drifted: bool = False  # by a fault, or by a snapshot of such a process
    catches_up: Reason | None = None  # the last reason that it gave for leaving the round, until it is back
    unreached: dict[str, float] = field(default_factory=dict)  # reducer -> when it failed last for this process
    promised: dict[str, tuple[int, str]] = field(default_factory=dict)  # parent -> rank of the highest plan accepted
    late: Commit | None = None  # the message that it acts on now, if that is a commit of a ballot below its promise
    pending: Contribution | None = None
    plan: Plan | None = None  # as a leader: the attempt that has not ended yet
    present: dict[str, Report] = field(default_factory=dict)  # as a leader: the last report of each who is connected
    unasked: set[str] = field(default_factory=set)  # as a new leader: members of the last commit neither asked nor heard of


class Observer:
    def __init__(
        self,
        world: World,
        settings: RunSettings,
        problem: Problem,
        reached_at: Callable[[str, str], float],
        liars: Collection[str] = (),
    ) -> None:
        """`reached_at(source, target)`: when the newest bulk connection between these machines stood.

        `liars`: peers of which nobody can expect anything. All else is checked among the others.
        """
        self.world = world
        self._violated = world.violated
        self._problem = problem
        self._max_epochs = settings.max_epochs
        self.feedback = Feedback(world, problem, settings, liars)
        self.lineages = Lineages(world, settings.genesis.lineage, self.feedback, problem, overlap=settings.overlap)
        self.members: dict[str, tuple[str, ...]] = {}  # lineage -> members of the commit that led there
        self.commits: dict[str, Commit] = {}  # all that a leader announced
        self.retries = 0
        self.forks_told = self.donors_failed = 0
        self._reached_at = reached_at
        self._liars = frozenset(liars)
        self.honestly_reached: dict[str, float] = {}  # lineage -> when an honest process first came to it
        self.moves = 0  # how often anybody started, ended, or came to stand elsewhere
        self._seen: dict[Source, _Seen] = {}
        self._tainted: set[str] = set()  # lineages of which snapshots of a drifted state may be about
        self._votes: dict[str, set[str]] = {}  # lineage -> who voted for its last commit
        self._ready: dict[str, set[str]] = {}  # plan digest -> who said that it is ready
        self._plans: dict[str, Plan] = {}
        self._planned_at: dict[str, float] = {}  # plan digest -> when
        self._ranks: dict[tuple[str, tuple[int, str]], str] = {}  # (parent, rank) -> the leader that planned under it
        self._given: dict[Sample, list[tuple[Contribution, str]]] = {}  # every contribution frozen, with its bytes' digest

    # -- of processes ----------------------------------------------------------------------------------------------------------

    def started(self, process: Source, *, on_disk: bool) -> None:
        self._seen[process] = _Seen(version=process.device.version, state=process.state)
        self.moves += 1
        self._note(process, f"starts as {process.incarnation}" + (" with a snapshot on disk" if on_disk else ""))

    def ended(self, process: Source, reason: str) -> None:
        self._note(process, f"ends: {reason}")
        self.moves += 1

    def after_event(self, process: Source) -> None:
        """Whole commits only: what an event wrote, a commit or a snapshot of the same event explains."""
        seen = self._seen[process]
        if process.device.version != seen.version:  # perhaps by local steps, which write to the model's parameters too
            seen.version = process.device.version
            if seen.state is None or not process.state.equals(seen.state):
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
        pending, epoch = seen.pending, self.lineages.known[seen.lineage].epoch
        # Named by a commit that was fetched in vain, and standing further on now, it cannot tell whether that one is an ancestor.
        if pending is None or any(pending in c.contributions and c.ballot.epoch < epoch for c in self.commits.values()):
            seen.pending = None
        else:
            self._violated("7 contributions", f"{process.name}'s {range_of(pending)} vanished without a reason")

    def followed(self, leader: Source, peer: str) -> None:
        self.world.trace(f"{leader.name} is followed by {peer}")
        self._seen[leader].present.pop(peer, None)

    def left(self, leader: Source, peer: str, reason: Reason) -> None:
        if reason is Reason.SILENT:
            return  # so the leader believes: it must give a reason for planning without that peer
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
        for peer in plan.members:
            report = seen.present.get(peer)
            if report is not None and (unreached := {shard.reducer for shard in plan.shards} & set(report.unreached)):
                self._violated("5 reach", f"{leader.name} plans {peer} with {','.join(sorted(unreached))}, which it cannot reach")
        self._planned_at[plan.digest] = self.world.now
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
            in_common = contribution.first < earlier.end and earlier.first < contribution.end
            if in_common and (earlier, digest) != (contribution, sha256):
                self._violated("2 frozen once", f"{process.name} freezes {range_of(earlier)} and then {range_of(contribution)}")
        given.append((contribution, sha256))
        is_honest = process.name not in self._liars
        sound = is_honest and not self._seen[process].drifted and contribution.base not in self._tainted
        self.feedback.froze(contribution, encoded, codec, sound=sound)

    def gave_up(self, process: Source, reason: Reason, contribution: Contribution | None, samples: int) -> None:
        """`samples`: those drawn and not frozen, when there is no contribution yet."""
        given_up = contribution.weight if contribution is not None else samples
        self._note(process, f"gives up {given_up} samples: {reason.value}")
        if contribution is not None and contribution == self._seen[process].pending:
            self._seen[process].pending = None

    def answered(self, process: Source, answer: Answer) -> None:
        self._note(process, f"answers {_answer(answer)}")
        if isinstance(answer, Accept):
            seen, offered = self._seen[process], answer.contribution
            if offered is not None:
                if seen.pending is not None and seen.pending != offered:
                    self._violated("7 contributions", f"{process.name}'s {range_of(seen.pending)} vanished without a reason")
                seen.pending = offered
            plan = self._plans.get(answer.plan_digest)
            if plan is not None:
                rank, promised = plan.ballot.rank, seen.promised
                if rank <= promised.get(plan.ballot.parent, (0, "")) and rank != promised[plan.ballot.parent]:
                    self._violated("3 promises", f"{process.name} accepts {_short(plan)} after {promised[plan.ballot.parent]}")
                promised[plan.ballot.parent] = rank
        elif isinstance(answer, Ready):
            self._ready.setdefault(answer.result.plan_digest, set()).add(process.name)
        elif isinstance(answer, Failed) and answer.reason is Reason.REDUCER_LOST and answer.member == process.name:
            self._did_not_reach(process, answer.reducer, answer.plan_digest)

    def _did_not_reach(self, process: Source, reducer: str, plan_digest: str) -> None:
        """A reducer may cost a second attempt only after this peer has reached it again, or was planned before it could tell."""
        failed_at, planned_at = self._seen[process].unreached, self._planned_at.get(plan_digest, 0.0)
        before, reached_at = failed_at.get(reducer), self._reached_at(process.name, reducer)
        if reached_at > planned_at:
            return  # it was reached, and refused or broke off
        if before is not None and planned_at > before + TELLS_S and reached_at <= before:
            self._violated("5 reach", f"{reducer} costs {process.name} two attempts, and was not dialled between them")
        failed_at[reducer] = self.world.now

    def announced(self, leader: Source, commit: Commit) -> None:
        seen, ballot = self._seen[leader], commit.ballot
        self._note(leader, f"commits {ballot.epoch}.{ballot.attempt} as {commit.digest[:8]}, {commit.samples} samples")
        if self._max_epochs is not None and ballot.epoch > self._max_epochs:
            self._violated("5 end", f"{leader.name} commits an epoch after the run's last")
        ready = self._ready.get(commit.plan_digest, set()) | self._liars  # who lies may be ready for anything, in its words
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

    def applied(self, process: Source, signed: SignedCommit, averaged: bytes, *, by_round: bool) -> None:
        commit, seen = signed.commit, self._seen[process]
        self._note(process, f"applies {commit.digest[:8]}" + ("" if by_round else " (replayed)"))
        if commit.ballot.parent != seen.lineage:
            self._violated("1 order", f"{process.name} at {seen.lineage[:8]} applies a commit on {commit.ballot.parent[:8]}")
        if by_round and commit.ballot.rank < seen.promised.get(commit.ballot.parent, (0, "")):
            self._violated("3 promises", f"{process.name} applies {_rank(commit)} after {seen.promised[commit.ballot.parent]}")
        if not by_round and seen.catches_up is None:
            self._violated("7 peers", f"{process.name} applies {commit.digest[:8]} outside the round, and gave no reason")
        held = process.state if self._problem.stepped is None or self._drift_decides(commit) else None
        self.lineages.applied(process.name, commit, averaged, held)
        self.feedback.applied(process.name, process.incarnation, commit)
        self._votes[commit.digest] = {vote.peer for vote in signed.votes}
        self.members[commit.digest] = commit.members
        self._stands_at(process, seen, commit.digest)

    def apply_failed(self, process: Source, *, lost: bool) -> None:
        """`lost`: midway, so that the state belongs to no lineage."""
        self._note(process, "fails to apply")
        if lost:
            self._stands_nowhere(process)

    def forgot(self, process: Source) -> None:
        """It gave its state up, because that is off the others'."""
        self._note(process, "forgets its state")
        self._stands_nowhere(process)

    def reinstated(self, process: Source, tip: Tip) -> None:
        """It took back the state that it gave up last."""
        self._note(process, f"takes {tip.lineage[:8]} back")
        self._stands_at(process, self._seen[process], tip.lineage)

    def _stands_nowhere(self, process: Source) -> None:
        """The lineage that it takes next is no move to a lighter one."""
        seen = self._seen[process]
        seen.version, seen.state = process.device.version, process.state
        seen.lineage, seen.heaviest = "", None
        self.moves += 1

    def drifted(self, process: Source) -> None:
        """A fault changed its state."""
        seen = self._seen[process]
        seen.version, seen.state, seen.drifted = process.device.version, process.state, True
        self._tainted.add(seen.lineage)
        self._note(process, "drifts")

    def is_drifted(self, process: Source) -> bool:
        return self._seen[process].drifted

    def fork_lost(self, process: Source, fields: dict[str, Any]) -> None:
        """It says which commits it gave up with a lineage that it left."""
        seen = self._seen[process]
        here = seen.lineage or fields["to"]  # it may have gone on since it came there
        self._note(process, f"lost a fork of {fields['commits']} commits, {fields['samples']} samples")
        lost, digest = [], fields["lineage"]
        while digest in self.commits and not self.lineages.is_ancestor(digest, here):
            lost.append(digest)
            digest = self.commits[digest].ballot.parent
        told = lost[: fields["commits"]]  # on record it has those that it applied, and perhaps some before a snapshot
        samples = sum(self.commits[digest].samples for digest in told)
        if len(told) != fields["commits"] or samples != fields["samples"]:
            what = f"{process.name} lost {len(lost)} commits, the last {len(told)} with {samples} samples, and says otherwise"
            self._violated("7 forks", what)
        self.forks_told += 1

    def distrusted(self, process: Source, donor: str, problem: str) -> None:
        self._note(process, f"is not served by {donor}: {problem}")
        self.donors_failed += 1

    def downloaded(self, process: Source, chunks: dict[str, int]) -> None:
        self._note(process, f"has a snapshot, {', '.join(f'{count} chunks of {donor}' for donor, count in chunks.items())}")

    def restored(self, process: Source, tip: Tip) -> None:
        self._note(process, f"restores {tip.lineage[:8]}")
        seen = self._seen[process]
        if tip.lineage not in self.lineages.known:
            self._violated("3 whole", f"{process.name} restores a lineage that nobody ever applied")
        self.feedback.restored(process.name, process.incarnation)
        self._stands_at(process, seen, tip.lineage)

    def _stands_at(self, process: Source, seen: _Seen, digest: str) -> None:
        lineage = self.lineages.known[digest]
        seen.state = process.state
        is_right = seen.state.equals(lineage.state)
        if not is_right and not (seen.drifted or digest in self._tainted or self._anybody_drifted()):
            self._violated("1 state", f"{process.name}'s state at {digest[:8]} is not that of this lineage")
        seen.version, seen.drifted = process.device.version, not is_right
        if seen.drifted:
            self._tainted.add(digest)
        if seen.heaviest is not None and digest != seen.heaviest[1]:
            weight, tip = seen.heaviest
            lighter = (lineage.weight, tip) < (weight, digest)  # at equal weights the smaller digest wins
            # It may have come to an old snapshot first, on its way to a lineage with more votes.
            aims = [other for other in self.lineages.known if self.lineages.is_ancestor(digest, other)] if lighter else []
            if lighter and not any(self._has_more_votes(aim, tip) for aim in aims):
                self._violated("4 heavier", f"{process.name} moves from weight {weight} to {lineage.weight}")
        if digest != seen.lineage:
            seen.unasked.clear()  # the question was about the lineage that was left
        if seen.pending is not None and lineage.holds(seen.pending):
            seen.pending = None
        seen.lineage, seen.heaviest = digest, (lineage.weight, digest)
        if process.name not in self._liars:
            self._check_votes(process, digest)
            self.honestly_reached.setdefault(digest, self.world.now)
        self.moves += 1

    def _check_votes(self, process: Source, digest: str) -> None:
        """Nobody follows liars to a lineage for which they alone voted, while the others commit and are not too few."""
        ways = list(self.lineages.back_from(digest))
        theirs = [at for at in ways if self._votes.get(at, set()) - self._liars]
        if not self._liars or ways[0] in theirs or ways[0] not in self._votes:
            return
        shared = ways[ways.index(theirs[0]) :] if theirs else []
        votes = electorate([self.commits[at] for at in reversed(shared) if at in self.commits], "")
        carried = (at for at, voters in self._votes.items() if has_majority(share_of(voters - self._liars, votes)))
        newest = max((self.lineages.times[at] for at in carried), default=-LIVE_S)
        if len(votes) >= FEWEST_VOTERS and self.world.now - newest < LIVE_S:
            self._violated("8 history", f"{process.name} stands at {digest[:8]}, for which liars alone voted")

    def _has_more_votes(self, new: str, old: str) -> bool:
        """Whether a majority voted for commits of lineage `new`, and none for those of `old`, since the two went apart."""
        ways = [list(self.lineages.back_from(digest)) for digest in (new, old)]
        shared = [digest for digest in ways[0] if digest in set(ways[1])]
        votes = electorate([self.commits[digest] for digest in reversed(shared) if digest in self.commits], "")
        sides = [{voter for digest in way if digest not in shared for voter in self._votes.get(digest, ())} for way in ways]
        carried, other = (has_majority(share_of(side, votes)) for side in sides)
        return len(votes) >= FEWEST_VOTERS and carried and not other

    def _drift_decides(self, commit: Commit) -> bool:
        """Most members of this commit have drifted, so what they hold becomes its state.

        The protocol cannot tell: a peer whose memory is damaged and that is cut off from all others commits alone.
        """
        drifted = {process.name for process, seen in self._seen.items() if seen.drifted} & set(commit.members)
        if 2 * len(drifted) == len(commit.members):
            return commit.leader.peer in drifted
        return 2 * len(drifted) > len(commit.members)

    def _anybody_drifted(self) -> bool:
        return any(seen.drifted for seen in self._seen.values())

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


def _short(plan: Plan) -> str:
    return f"{plan.ballot.epoch}.{plan.ballot.attempt} on {plan.ballot.parent[:8]} of {plan.ballot.leader}"


def _rank(commit: Commit) -> str:
    return f"{commit.digest[:8]} of {commit.ballot.rank}"


def _answer(answer: Answer) -> str:
    digest = answer.result.plan_digest if isinstance(answer, Ready) else answer.plan_digest
    reason = getattr(answer, "reason", None)
    return f"{type(answer).__name__.lower()} {digest[:8]}" + (f": {reason.value}" if isinstance(reason, Reason) else "")
