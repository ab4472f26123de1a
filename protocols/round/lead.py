"""The lead's part in rounds, as a pure state machine: events and `now` in, actions out.

Rule 1: nothing here touches a socket, a clock, a thread or a tensor. `now` is seconds on any clock that does not jump back.

Every reachable peer holds a Lead; it sleeps until the driver finds, by the order of succession, that this peer leads (take_over).

    1. hear      ask every member of the last commit, and wait for its report or for detected silence
    2. gather    until the reported samples reach the target batch size (at once, if an attempt of this epoch has failed)
    3. attempt   send the plan, collect Accept (with the contribution) and Ready (with the result's digests)
    4. commit    when more than half of the members are ready; stragglers get a short grace so that they are not left behind
       or abort  when a member drops out, refuses, fails, or nothing moves for the attempt's patience; then again from 2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocols.reasons import Reason
from protocols.round.member import Accept, Failed, Ready, Refuse
from protocols.round.planner import equal_shards
from protocols.round.records import (
    Ballot,
    Candidate,
    Commit,
    Contribution,
    Hello,
    Plan,
    Report,
    Result,
    Tip,
    contributions_digest,
)

# A silent connection is taken for dead after this long; heartbeats come several times as often.
DETECTION_S = 2.0
# Members that did not come are asked again this often until then: they may have begun to follow, or to be, another lead.
ASK_EVERY_S = 0.5
# An attempt in which no byte moves for max(this, 3 micro-batches of the slowest), doubled with each attempt, is given up.
BASE_PATIENCE_S = 4.0
# After more than half are ready, the others get this share of the attempt's duration so far (and at least this long) to be
# ready too.
GRACE_SHARE, GRACE_S = 0.5, 0.25


@dataclass(frozen=True)
class Ask:
    """Ask these members of the last commit where they stand and whom they follow; answer answered() or unreachable() for each."""

    peers: tuple[str, ...]


@dataclass(frozen=True)
class SendPlan:
    to: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True)
class SendAbort:
    to: tuple[str, ...]
    plan_digest: str
    reason: Reason


@dataclass(frozen=True)
class Announce:
    """Sign this commit and send it to everybody connected, this peer's own member included."""

    commit: Commit
    seconds: float
    attempts: int


@dataclass(frozen=True)
class NoteFailure:
    """For the log: this attempt ended without a commit; `peer` is who dropped out or was found at fault ('' if nobody was)."""

    ballot: Ballot
    reason: Reason
    peer: str


@dataclass(frozen=True)
class Yield:
    """Another lead works already: follow it."""

    to: str


LeadAction = Ask | SendPlan | SendAbort | Announce | NoteFailure | Yield


@dataclass
class Seat:
    """A peer connected to the lead."""

    hello: Hello
    heard_at: float
    report: Report | None = None


@dataclass
class _Attempt:
    plan: Plan
    started_at: float
    moved_at: float
    accepted: dict[str, Contribution | None] = field(default_factory=dict)
    ready: dict[str, Result] = field(default_factory=dict)
    majority_at: float | None = None


class Lead:
    """Plans, watches and commits. Holds no state that a successor would need: all of it is reported again by the members."""

    def __init__(
        self, me: Candidate, *, run_digest: str, target_batch_size: int, elements: int, codec: str, max_epochs: int | None
    ):
        self.me = me
        self.run_digest = run_digest
        self.target_batch_size = target_batch_size
        self.elements = elements
        self.codec = codec
        self.max_epochs = max_epochs
        self.active = False
        self.seats: dict[str, Seat] = {}
        self.tip: Tip | None = None
        self.attempt: _Attempt | None = None
        self._unheard: set[str] = set()
        self._hear_until = self._ask_again_at = 0.0
        self._highest_attempt = 0
        self._committed = False
        self._failed_pairs: set[tuple[str, str]] = set()
        self._counted: dict[tuple[str, int], int] = {}  # (peer, incarnation) -> end of its last committed range

    # -- leading or not ------------------------------------------------------------------------------------------------------

    def take_over(self, now: float) -> list[LeadAction]:
        if self.active or self.tip is None:
            return []
        self.active = True
        return self._hear(set(self.tip.members) - self.seats.keys(), now)

    def step_down(self) -> list[LeadAction]:
        actions = self._fail(Reason.LEAD_LOST, self.me.peer)
        self.active = False
        self.seats.clear()
        self._unheard.clear()
        return actions

    def follow(self, tip: Tip, commit: Commit | None = None) -> list[LeadAction]:
        """This peer's own state is at `tip` now (through `commit`, unless it was caught up)."""
        actions = self._fail(Reason.SUPERSEDED, "")
        if self.tip is None or tip.lineage != self.tip.lineage:
            # Else it is still the same epoch (catching up found nothing further), and no ballot of it may be used twice.
            self._highest_attempt = 0
            self._failed_pairs.clear()
        self.tip = tip
        self._committed = False
        if commit is not None:
            for contribution in commit.contributions:
                self._counted[contribution.peer, contribution.incarnation] = contribution.end
        return actions

    # -- who is there --------------------------------------------------------------------------------------------------------

    def joined(self, peer: str, hello: Hello, now: float) -> list[LeadAction]:
        seat = self.seats.get(peer)
        if seat is not None and hello.incarnation < seat.hello.incarnation:
            return []  # a newer process of this peer is seated
        actions = self._lose(peer, Reason.OTHER_INCARNATION, now) if seat is not None else []
        self.seats[peer] = Seat(hello, now)
        return actions

    def reported(self, peer: str, report: Report, now: float) -> list[LeadAction]:
        seat = self.seats.get(peer)
        if seat is None:
            return []
        attempt = self.attempt
        if (
            attempt is not None
            and peer in attempt.plan.members
            and (seat.report is None or report.moved_bytes > seat.report.moved_bytes)
        ):
            attempt.moved_at = now
        seat.report, seat.heard_at = report, now
        if self.tip is not None and report.standing.lineage == self.tip.lineage:
            self._highest_attempt = max(self._highest_attempt, report.promised_attempt)
        self._unheard.discard(peer)
        return self._consider(now)

    def heard(self, peer: str, now: float) -> None:
        if peer in self.seats:
            self.seats[peer].heard_at = now

    def left(self, peer: str, reason: Reason, now: float) -> list[LeadAction]:
        """Its control stream ended, for whatever reason."""
        actions = self._lose(peer, reason, now)
        if self.active and self.tip is not None and peer in self.tip.members and reason is not Reason.LEFT:
            # It may follow another lead by now: ask before anything is planned without it.
            actions += self._hear({peer}, now)
        return [*actions, *self._consider(now)]

    def answered(self, peer: str, follows: str, followers: int) -> list[LeadAction]:
        """A member of the last commit that is not connected here says whom it follows, and how many follow it."""
        if not self.active or follows in ("", self.me.peer):
            return []  # it looks for a lead: its report is waited for until the hearing ends
        if follows != peer:
            return [Ask((follows,))]  # two leads, perhaps: that one must answer for itself
        if (followers, peer) <= (len(self.seats.keys() - {self.me.peer}), self.me.peer):
            return []  # two leads at once: the one with fewer followers yields
        return [*self.step_down(), Yield(follows)]

    def unreachable(self, peer: str, now: float) -> list[LeadAction]:
        self._unheard.discard(peer)
        return self._consider(now)

    # -- an attempt ----------------------------------------------------------------------------------------------------------

    def answer(self, peer: str, answer: Accept | Refuse | Ready | Failed, now: float) -> list[LeadAction]:
        attempt = self.attempt
        plan_digest = answer.result.plan_digest if isinstance(answer, Ready) else answer.plan_digest
        if attempt is None or plan_digest != attempt.plan.digest or peer not in attempt.plan.members or peer not in self.seats:
            return []  # of an attempt that is over
        attempt.moved_at = now
        if isinstance(answer, Accept):
            return self._accepted(attempt, peer, answer, now)
        if isinstance(answer, Ready):
            attempt.ready[peer] = answer.result
            return self._maybe_commit(now)
        if attempt.majority_at is not None:
            return self._maybe_commit(now)  # the epoch is decided; whoever misses the results catches up
        if isinstance(answer, Refuse):
            self._highest_attempt = max(self._highest_attempt, answer.promised_attempt)
            if answer.reason is not Reason.PROMISED_HIGHER:
                self.seats[peer].report = None  # out until it reports afresh
            return [*self._fail(answer.reason, peer), *self._consider(now)]
        self._failed_pairs.add((answer.member, answer.reducer))
        culprit = answer.member if answer.reason in (Reason.BAD_CHUNK, Reason.CONTRIBUTOR_LOST) else answer.reducer
        return [*self._fail(answer.reason, culprit), *self._consider(now)]

    def tick(self, now: float) -> list[LeadAction]:
        if not self.active:
            return []
        actions: list[LeadAction] = []
        if self._unheard and self._ask_again_at <= now < self._hear_until:
            self._ask_again_at = now + ASK_EVERY_S
            actions.append(Ask(tuple(sorted(self._unheard))))
        for peer, seat in list(self.seats.items()):
            if peer != self.me.peer and now - seat.heard_at > DETECTION_S:
                actions += self.left(peer, Reason.SILENT, now)
        attempt = self.attempt
        if attempt is not None and attempt.majority_at is None and now - attempt.moved_at > attempt.plan.patience_s:
            late = sorted(set(attempt.plan.members) - attempt.accepted.keys())
            for peer in late:
                if peer in self.seats:
                    self.seats[peer].report = None
            actions += self._fail(Reason.STALLED, late[0] if late else "")
        actions += self._maybe_commit(now)
        return [*actions, *self._consider(now)]

    @property
    def gathered_samples(self) -> int:
        """Samples reported towards the batch by peers at this lead's tip."""
        return sum(report.samples for _, report in self._at_tip())

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _at_tip(self) -> Iterable[tuple[str, Report]]:
        for peer, seat in self.seats.items():
            report = seat.report
            if report is not None and report.caught_up and self.tip is not None and report.standing.lineage == self.tip.lineage:
                yield peer, report

    def _hear(self, peers: set[str], now: float) -> list[LeadAction]:
        peers = peers - {self.me.peer}
        if not peers:
            return []
        self._unheard |= peers
        self._hear_until = now + DETECTION_S
        self._ask_again_at = now + ASK_EVERY_S
        return [Ask(tuple(sorted(peers)))]

    def _lose(self, peer: str, reason: Reason, now: float) -> list[LeadAction]:
        self.seats.pop(peer, None)
        attempt = self.attempt
        if attempt is None or peer not in attempt.plan.members:
            return []
        if attempt.majority_at is not None:
            return self._maybe_commit(now)
        return self._fail(reason, peer)

    def _consider(self, now: float) -> list[LeadAction]:
        """Plan, if it is time."""
        tip = self.tip
        if not self.active or tip is None or self.attempt is not None or self._committed:
            return []
        if self.max_epochs is not None and tip.epoch >= self.max_epochs:
            return []
        if self._unheard and now < self._hear_until:
            return []
        self._unheard.clear()
        samples = self.gathered_samples
        # Once an attempt was made, this lead's or another's, its members are frozen: waiting would bring no more samples.
        if samples == 0 or (samples < self.target_batch_size and self._highest_attempt == 0):
            return []
        plan = self._plan(tip)
        if plan is None:
            return []
        self._highest_attempt = plan.ballot.attempt
        self.attempt = _Attempt(plan, started_at=now, moved_at=now)
        return [SendPlan(plan.members, plan)]

    def _plan(self, tip: Tip) -> Plan | None:
        present = dict(self._at_tip())
        if self.me.peer not in present:
            return None
        left_out, not_reducing = self._around_failed_pairs(set(present))
        members = sorted(present.keys() - left_out)
        reducers = [
            Candidate(p, self.seats[p].hello.address) for p in members if self.seats[p].hello.reachable and p not in not_reducing
        ]
        if not reducers:  # every reducer failed for somebody: better without those members than without the epoch
            left_out = {member for member, reducer in self._failed_pairs if reducer == self.me.peer}
            members = sorted(present.keys() - left_out | {self.me.peer})
            reducers = [self.me]
        contributors = tuple(p for p in members if present[p].samples > 0)
        if not contributors or not reducers:
            return None
        attempt = self._highest_attempt + 1
        slowest = max(present[p].step_s for p in members)
        return Plan(
            run_digest=self.run_digest,
            ballot=Ballot(tip.epoch + 1, tip.lineage, attempt, self.me.peer),
            contributors=contributors,
            members=tuple(members),
            shards=equal_shards(self.elements, reducers),
            codec=self.codec,
            incarnation=self.seats[self.me.peer].hello.incarnation,
            patience_s=max(BASE_PATIENCE_S, 3 * slowest) * 2 ** min(attempt - 1, 6),
        )

    def _around_failed_pairs(self, present: set[str]) -> tuple[set[str], set[str]]:
        """(members to leave out, members not to reduce) such that no pair that failed in this epoch meets again.

        Whoever stands in most of the failed pairs goes first; at a tie a reducer, since it can still contribute.
        """
        pairs = {(member, reducer) for member, reducer in self._failed_pairs if member in present and reducer in present}
        left_out: set[str] = set()
        not_reducing: set[str] = set()
        while pairs:
            as_member = Counter(member for member, _ in pairs)
            as_reducer = Counter(reducer for _, reducer in pairs)
            member, member_count = min(as_member.items(), key=lambda item: (-item[1], item[0]))
            reducer, reducer_count = min(as_reducer.items(), key=lambda item: (-item[1], item[0]))
            if member_count > reducer_count and member != self.me.peer:
                left_out.add(member)
            else:
                not_reducing.add(reducer)
            pairs = {pair for pair in pairs if pair[0] not in left_out and pair[1] not in not_reducing}
        return left_out, not_reducing

    def _accepted(self, attempt: _Attempt, peer: str, answer: Accept, now: float) -> list[LeadAction]:
        contribution, seat = answer.contribution, self.seats[peer]
        if peer in attempt.plan.contributors:
            sound = (
                contribution is not None
                and contribution.peer == peer
                and contribution.incarnation == seat.hello.incarnation
                and contribution.base == attempt.plan.ballot.parent
                and seat.report is not None
                and contribution.weight <= seat.report.samples
                and contribution.first >= self._counted.get((peer, contribution.incarnation), 0)
            )
            if not sound:
                seat.report = None
                return [*self._fail(Reason.BAD_CHUNK, peer), *self._consider(now)]
        attempt.accepted[peer] = contribution
        return self._maybe_commit(now)

    def _fail(self, reason: Reason, peer: str) -> list[LeadAction]:
        attempt = self.attempt
        if attempt is None:
            return []
        self.attempt = None
        present = tuple(member for member in attempt.plan.members if member in self.seats)
        return [NoteFailure(attempt.plan.ballot, reason, peer), SendAbort(present, attempt.plan.digest, reason)]

    def _maybe_commit(self, now: float) -> list[LeadAction]:
        attempt, tip = self.attempt, self.tip
        if attempt is None or tip is None or 2 * len(attempt.ready) <= len(attempt.plan.members):
            return []
        if len(set(attempt.ready.values())) > 1:
            return [*self._fail(Reason.RESULTS_DIFFER, ""), *self._consider(now)]
        if attempt.majority_at is None:
            attempt.majority_at = now
        waiting = [p for p in attempt.plan.members if p not in attempt.ready and p in self.seats]
        grace = max(GRACE_S, GRACE_SHARE * (attempt.majority_at - attempt.started_at))
        if waiting and now - attempt.majority_at < grace:
            return []
        contributions = tuple(c for p in attempt.plan.contributors if (c := attempt.accepted.get(p)) is not None)
        result = next(iter(attempt.ready.values()))
        if (
            len(contributions) != len(attempt.plan.contributors)
            or contributions_digest(contributions) != result.contributions_digest
        ):
            return [*self._fail(Reason.RESULTS_DIFFER, ""), *self._consider(now)]
        commit = Commit(
            ballot=attempt.plan.ballot,
            plan_digest=attempt.plan.digest,
            contributions=contributions,
            members=attempt.plan.members,
            shards=result.shards,
            codec=self.codec,
            total_samples=tip.total_samples + sum(contribution.weight for contribution in contributions),
            lead=self.me,
            succession=self._succession(tip),
        )
        self.attempt = None
        self._committed = True
        return [Announce(commit, now - attempt.started_at, attempt.plan.ballot.attempt)]

    def _succession(self, tip: Tip) -> tuple[Candidate, ...]:
        """The old order first, then newcomers: nobody is displaced by joining late."""
        here = {
            peer: Candidate(peer, self.seats[peer].hello.address)
            for peer, _ in sorted(self._at_tip())
            if self.seats[peer].hello.reachable and peer != self.me.peer
        }
        old = [here[c.peer] for c in (tip.lead, *tip.succession) if c.peer in here]
        known = {candidate.peer for candidate in old}
        return (*old, *(candidate for peer, candidate in here.items() if peer not in known))
