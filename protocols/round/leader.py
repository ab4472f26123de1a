"""The leader's part in rounds, as a pure state machine: events and `now` in, actions out.

Rule 1: nothing here touches a socket, a clock, a thread or a tensor. `now` is seconds on any clock that does not jump back.

Every reachable peer holds a Lead; it sleeps until the driver finds, by the order of succession, that this peer leads (take_over).

    1. hear      ask every member of the last commit and of the plans reported here; wait for its report or detected silence
    2. gather    until the reported samples reach the target batch size; at once, if an attempt of this epoch has failed: what
                 somebody was ready for is finished, else whatever samples there are are planned
    3. attempt   send the plan, collect Accept (with the contribution) and Ready (with the result's digests)
    4. commit    when more than half of the members are ready; stragglers get a short grace so that they are not left behind
       or abort  when a member drops out, refuses, fails, or nothing moves for the attempt's patience; then again from 2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from protocols.reasons import Reason
from protocols.round.absences import Absences
from protocols.round.attempt import Attempt, Follower
from protocols.round.codec_choice import codec_after
from protocols.round.deadline import Deadline, doubled
from protocols.round.leader_actions import Announce, Ask, LeaderAction, NoteFailure, Reannounce, SendAbort, SendPlan, Yield
from protocols.round.member import Accept, Answer, Drifted, Ready, Refuse
from protocols.round.planner import Layout, Present, Round, finishing, fresh, planned_seconds, slowest_paces
from protocols.round.plans import Plan
from protocols.round.records import Averages, Ballot, Candidate, Commit, Contribution, Hello, ReadyFor, Report, Tip
from protocols.round.roll_call import RollCall
from protocols.round.stragglers import Stragglers

# A silent connection is taken for dead after this long; heartbeats come several times as often. With a driver's tick it is 2 s.
DETECTION_S = 1.75


class Leader:
    """Plans, watches and commits. Holds no state that a successor would need: all of it is reported again by the members."""

    def __init__(
        self,
        me: Candidate,
        *,
        run_digest: str,
        target_batch_size: int,
        elements: int,
        codecs: Mapping[str, int],
        max_epochs: int | None,
        overlap: bool = False,
    ) -> None:
        """`codecs`: those that a commit may name for the next plan, least lossy first, each with the bytes of a whole vector.
        `overlap`: members go on drawing while an epoch is averaged."""
        self.me = me
        self.run_digest = run_digest
        self.target_batch_size = target_batch_size
        self.elements = elements
        self.codecs = codecs
        self.max_epochs = max_epochs
        self.overlap = overlap
        self.active = False
        self.followers: dict[str, Follower] = {}
        self.tip: Tip | None = None
        self.attempt: Attempt | None = None
        self._parent = ""  # the lineage that this leader's tip built on, '' if it was caught up
        self._roll_call = RollCall(DETECTION_S)
        self._asked: set[str] = set()  # at this tip, because plans reported here name them
        self._highest_attempt = 0
        self._overrun = 1.0  # how much longer than planned the last commit took: links are not all that takes time
        self._committed = False
        self._stragglers = Stragglers(DETECTION_S, overlap=overlap)
        self._awake_at = 0.0
        self._failed_pairs: set[tuple[str, str]] = set()
        self._absences = Absences()
        self._disowned: set[Averages] = set()  # a contributor says that it never gave what they name
        self._counted: dict[tuple[str, int], int] = {}  # (peer, incarnation) -> end of its last committed range

    # -- leading or not ------------------------------------------------------------------------------------------------------

    def take_over(self, now: float) -> list[LeaderAction]:
        if self.active or self.tip is None:
            return []
        self.active = True
        self._awake_at = now
        self._stragglers.begin(now)
        return self._hear(set(self.tip.members) - self.followers.keys(), now)

    def step_down(self) -> list[LeaderAction]:
        actions = self._fail(Reason.LEADER_LOST, self.me.peer)
        self.active = self._committed = False
        self.followers.clear()
        self._roll_call.forget()
        self._absences.forget()
        return actions

    def follow(self, tip: Tip, commit: Commit | None = None) -> list[LeaderAction]:
        """This peer's own state is at `tip` now (through `commit`, unless it was caught up)."""
        actions = self._fail(Reason.SUPERSEDED, "")
        if self.tip is None or tip.lineage != self.tip.lineage:
            # Else it is still the same epoch (catching up found nothing further), and no ballot of it may be used twice.
            self._highest_attempt = 0
            self._failed_pairs.clear()
            self._disowned.clear()
            self._absences.next_epoch(tip.members, self.followers)
            self._asked.clear()
            for follower in self.followers.values():
                follower.ready_for = None
                follower.has_commit = follower.has_commit and commit is not None and commit.ballot.leader == self.me.peer
            self._parent = commit.ballot.parent if commit is not None else ""
            self._stragglers.advanced(self._awake_at)
        self.tip = tip
        self._committed = False
        if commit is not None:
            for contribution in commit.contributions:
                self._counted[contribution.peer, contribution.incarnation] = contribution.end
        return actions

    # -- who is there --------------------------------------------------------------------------------------------------------

    def joined(self, peer: str, hello: Hello, now: float) -> list[LeaderAction]:
        follower = self.followers.get(peer)
        if follower is not None and hello.incarnation < follower.hello.incarnation:
            return []  # a newer process of this peer is seated
        actions = self._lose(peer, Reason.OTHER_INCARNATION, now) if follower is not None else []
        self.followers[peer] = Follower(hello, now)
        self._absences.seated(peer)
        return actions

    def reported(self, peer: str, report: Report, now: float) -> list[LeaderAction]:
        follower = self.followers.get(peer)
        if follower is None:
            return []
        attempt = self.attempt
        if attempt is not None and follower.report is not None:
            attempt.deadline.moved(peer, report.moved_bytes - follower.report.moved_bytes, now)
        follower.report, follower.heard_at = report, now
        self._roll_call.heard(peer)
        actions: list[LeaderAction] = []
        if self.tip is not None and report.standing.lineage == self.tip.lineage:
            self._highest_attempt = max(self._highest_attempt, report.promised_attempt)
            follower.ready_for = report.ready_for or follower.ready_for
            if self.active and (unasked := set(report.planned_with) - self.followers.keys() - self._asked):
                self._asked |= unasked
                actions += self._hear(unasked, now)
        elif self.active and report.standing.lineage == self._parent and not follower.has_commit:
            follower.has_commit = True
            actions.append(Reannounce((peer,)))
        return [*actions, *self._consider(now)]

    def heard(self, peer: str, now: float) -> None:
        if peer in self.followers:
            self.followers[peer].heard_at = now

    def left(self, peer: str, reason: Reason, now: float) -> list[LeaderAction]:
        """Its control stream ended, for whatever reason."""
        self._absences.dropped(peer, reason)  # before anything is planned without it
        actions = self._lose(peer, reason, now)
        if self.active and self.tip is not None and peer in self.tip.members and reason is not Reason.LEFT:
            # It may follow another leader by now: ask before anything is planned without it.
            actions += self._hear({peer}, now)
        return [*actions, *self._consider(now)]

    def answered(self, peer: str, follows: str, followers: int) -> list[LeaderAction]:
        """A member of the last commit that is not connected here says whom it follows, and how many follow it."""
        if not self.active or follows in ("", self.me.peer):
            return []  # it looks for a leader: its report is waited for until the hearing ends
        if follows != peer:
            return [Ask((follows,))]  # two leads, perhaps: that one must answer for itself
        if (followers, peer) <= (len(self.followers.keys() - {self.me.peer}), self.me.peer):
            return []  # two leads at once: the one with fewer followers yields
        return [*self.step_down(), Yield(follows)]

    def unreachable(self, peer: str, now: float) -> list[LeaderAction]:
        self._roll_call.heard(peer)
        return self._consider(now)

    # -- an attempt ----------------------------------------------------------------------------------------------------------

    def answer(self, peer: str, answer: Answer, now: float) -> list[LeaderAction]:
        attempt = self.attempt
        plan_digest = answer.result.plan_digest if isinstance(answer, Ready) else answer.plan_digest
        if (
            attempt is None
            or plan_digest != attempt.plan.digest
            or peer not in attempt.plan.members
            or peer not in self.followers
        ):
            return []  # of an attempt that is over
        attempt.deadline.answered(peer, now)
        if isinstance(answer, Accept):
            return self._accepted(attempt, peer, answer, now)
        if isinstance(answer, Ready):
            attempt.ready[peer] = answer.result
            return self._maybe_commit(now)
        if isinstance(answer, Drifted):
            attempt.drifted[peer] = answer.reducers
        if attempt.majority_at is not None or isinstance(answer, Drifted):
            return self._maybe_commit(now)  # the epoch is decided; whoever misses the results catches up
        if isinstance(answer, Refuse):
            self._highest_attempt = max(self._highest_attempt, answer.promised_attempt)
            if answer.reason is Reason.RESULTS_DIFFER and attempt.plan.finishes is not None:
                self._disowned.add(attempt.plan.finishes)
            if answer.reason is not Reason.PROMISED_HIGHER:
                self.followers[peer].report = None  # out until it reports afresh
            return [*self._fail(answer.reason, peer), *self._consider(now)]
        pair = (answer.member, answer.reducer)
        if pair[0] not in attempt.plan.members or pair[1] not in {shard.reducer for shard in attempt.plan.shards}:
            pair = (peer, peer)  # it speaks of somebody who is not there
        self._failed_pairs.add(pair)
        culprit = pair[0] if answer.reason in (Reason.BAD_CHUNK, Reason.CONTRIBUTOR_LOST) else pair[1]
        return [*self._fail(answer.reason, culprit), *self._consider(now)]

    def tick(self, now: float) -> list[LeaderAction]:
        if not self.active:
            return []
        actions = self._slept(now)
        if again := self._roll_call.ask_again(now):
            actions.append(Ask(again))
        for peer, follower in list(self.followers.items()):
            if peer != self.me.peer and now - follower.heard_at > DETECTION_S:
                actions += self.left(peer, Reason.SILENT, now)
        attempt = self.attempt
        if attempt is not None and attempt.majority_at is None and attempt.deadline.passed(now):
            late = attempt.late
            for peer in late:
                if peer in self.followers:
                    self.followers[peer].report = None
            idle = [] if late else attempt.idle  # they accepted, and gave nothing to anybody
            self._failed_pairs |= {(peer, shard.reducer) for peer in idle for shard in attempt.plan.shards}
            actions += self._fail(Reason.STALLED, (late or idle or [""])[0])
        actions += self._maybe_commit(now)
        return [*actions, *self._consider(now)]

    def _slept(self, now: float) -> list[LeaderAction]:
        """A process that was stopped for so long (ticks come far more often) was taken for dead. What it finds in its buffers
        when it wakes is of an attempt that others went on from: to commit that, or to plan with it, would begin a fork."""
        slept_s, self._awake_at = now - self._awake_at, now
        if not self.active or slept_s <= DETECTION_S:
            return []
        for follower in self.followers.values():
            follower.report, follower.heard_at = None, now
        return self._fail(Reason.SILENT, self.me.peer)

    @property
    def gathered_samples(self) -> int:
        """Samples reported towards the batch by peers at this leader's tip."""
        return sum(report.samples for _, report in self._at_tip())

    @property
    def vector_bytes(self) -> int:
        """Of a whole vector, as the next plan encodes it."""
        largest = max(self.codecs.values())
        return self.codecs.get(self.tip.codec, largest) if self.tip is not None else largest

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _at_tip(self) -> Iterable[tuple[str, Report]]:
        for peer, follower in self.followers.items():
            report = follower.report
            if report is not None and report.caught_up and self.tip is not None and report.standing.lineage == self.tip.lineage:
                yield peer, report

    def _hear(self, peers: set[str], now: float) -> list[LeaderAction]:
        asked = self._roll_call.ask(peers - {self.me.peer}, now)
        return [Ask(asked)] if asked else []

    def _lose(self, peer: str, reason: Reason, now: float) -> list[LeaderAction]:
        self.followers.pop(peer, None)
        attempt = self.attempt
        if attempt is None or peer not in attempt.plan.members:
            return []
        if attempt.majority_at is not None:
            return self._maybe_commit(now)
        return self._fail(reason, peer)

    def _consider(self, now: float) -> list[LeaderAction]:
        """Plan, if it is time."""
        if slept := self._slept(now):
            return slept
        tip = self.tip
        if not self.active or tip is None or self.attempt is not None or self._committed:
            return []
        if self.max_epochs is not None and tip.epoch >= self.max_epochs:
            return []
        if not self._roll_call.is_over(now):
            return []
        samples = self.gathered_samples
        # Once an attempt was made, this leader's or another's, its contributors are frozen: waiting would bring few samples.
        if self._highest_attempt == 0:
            reports = [follower.report for follower in self.followers.values() if follower.report is not None]
            if samples < self.target_batch_size or self._stragglers.awaited(tip, self._parent, reports, now):
                return []
        present = self._present(tip)
        layout = self._layout(tip, present)
        if layout is None:
            return []
        plan = self._plan(tip, layout)
        plan = replace(plan, planned_s=planned_seconds(plan, present, self.vector_bytes))
        attempt = self._highest_attempt = plan.ballot.attempt
        slowest = slowest_paces(plan, present, self.vector_bytes, plan.planned_s * self._overrun * doubled(attempt))
        deadline = Deadline(plan.members, now, plan.patience_s, slowest)
        self.attempt = Attempt(plan, now, deadline, codec_after(plan, present, self.codecs, self.target_batch_size))
        return [SendPlan(plan.members, plan, self._absences.from_plan(plan, layout.too_slow, tip, self.followers))]

    def _layout(self, tip: Tip, present: dict[str, Present]) -> Layout | None:
        me, failed = self.me.peer, self._failed_pairs
        if me not in present:
            return None
        due = Round(tip.epoch + 1, self.elements, self.vector_bytes, self.target_batch_size)
        return finishing(present, me, failed) or fresh(present, me, due, failed)

    def _plan(self, tip: Tip, layout: Layout) -> Plan:
        attempt = self._highest_attempt + 1
        slowest_s = max(report.step_s for peer, report in self._at_tip() if peer in layout.members)
        return Plan(
            run_digest=self.run_digest,
            ballot=Ballot(tip.epoch + 1, tip.lineage, attempt, self.me.peer),
            contributors=layout.contributors,
            members=layout.members,
            shards=layout.shards,
            codec=tip.codec,
            incarnation=self.followers[self.me.peer].hello.incarnation,
            patience_s=2 * (DETECTION_S + slowest_s) * doubled(attempt),
            finishes=layout.finishes,
        )

    def _present(self, tip: Tip) -> dict[str, Present]:
        followers = {peer: self.followers[peer] for peer, _ in self._at_tip()}
        return {
            peer: Present(
                follower.hello.bulk_address,
                report.samples,
                report.upload_bytes_s,
                report.download_bytes_s,
                self._sound(follower.ready_for, tip),
                report.samples_per_second,
                follower.hello.memory_bytes,
            )
            for peer, follower in followers.items()
            if (report := follower.report) is not None
        }

    def _sound(self, ready: ReadyFor | None, tip: Tip) -> ReadyFor | None:
        """What a member reports that it was ready for, if it can be committed at this tip."""
        if ready is None or ready.ballot.parent != tip.lineage or ready.averages.elements != self.elements:
            return None
        contributions = ready.averages.contributions
        uncounted = all(c.first >= self._counted.get((c.peer, c.incarnation), 0) for c in contributions)
        uncounted = uncounted and tip.may_average(contributions, overlap=self.overlap)
        theirs = all(self._may_be_of(c) for c in contributions)
        return ready if uncounted and theirs and ready.averages not in self._disowned else None

    def _may_be_of(self, contribution: Contribution) -> bool:
        """Nobody who is here is said to have given more than it reported."""
        follower = self.followers.get(contribution.peer)
        if follower is None or follower.hello.incarnation != contribution.incarnation or follower.report is None:
            return True  # it is gone, or that process of it
        return contribution.weight <= follower.report.samples

    def _accepted(self, attempt: Attempt, peer: str, answer: Accept, now: float) -> list[LeaderAction]:
        contribution, follower = answer.contribution, self.followers[peer]
        if peer in attempt.plan.contributors and attempt.plan.finishes is None:
            problem = self._problem_with(contribution, peer, follower, attempt)
            if problem is not None:
                follower.report = None
                return [*self._fail(problem, peer), *self._consider(now)]
        attempt.accepted[peer] = contribution
        return self._maybe_commit(now)

    def _problem_with(self, contribution: Contribution | None, peer: str, follower: Follower, attempt: Attempt) -> Reason | None:
        if (
            contribution is None
            or contribution.peer != peer
            or follower.report is None
            or contribution.weight > follower.report.samples
        ):
            return Reason.BAD_CHUNK
        if contribution.incarnation != follower.hello.incarnation:
            return Reason.OTHER_INCARNATION
        if self.tip is None or not self.tip.may_average([contribution], overlap=self.overlap):
            return Reason.OTHER_LINEAGE
        if contribution.first < self._counted.get((peer, contribution.incarnation), 0):
            return Reason.COUNTED
        return None

    def _fail(self, reason: Reason, peer: str) -> list[LeaderAction]:
        attempt = self.attempt
        if attempt is None:
            return []
        self.attempt = None
        self._absences.dropped(peer, reason)
        averages = attempt.averages
        for member in attempt.agreed:
            if averages is not None and member in self.followers:
                self.followers[member].ready_for = ReadyFor(attempt.plan.ballot, averages)
        present = tuple(member for member in attempt.plan.members if member in self.followers)
        return [NoteFailure(attempt.plan.ballot, reason, peer), SendAbort(present, attempt.plan.digest, reason)]

    def _drift_apart(self, attempt: Attempt) -> list[LeaderAction]:
        """Too many were never ready: nobody can have committed this, and nobody is to finish it."""
        off = attempt.off()
        for peer in off:
            self.followers[peer].report = None
        if (averages := attempt.plan.finishes or attempt.averages) is not None:
            self._disowned.add(averages)
        note, abort = self._fail(Reason.DRIFT, off[0] if off else "")
        assert isinstance(abort, SendAbort)
        others = SendAbort(tuple(p for p in abort.to if p not in off), abort.plan_digest, Reason.RESULTS_DIFFER)
        return [note, SendAbort(off, abort.plan_digest, Reason.DRIFT), others]

    def _maybe_commit(self, now: float) -> list[LeaderAction]:
        if slept := self._slept(now):
            return slept
        attempt, tip = self.attempt, self.tip
        if attempt is not None and attempt.is_refused:
            return [*self._drift_apart(attempt), *self._consider(now)]
        if attempt is not None and attempt.is_split:
            return [*self._fail(Reason.RESULTS_DIFFER, ""), *self._consider(now)]
        if attempt is None or tip is None or not attempt.has_majority:
            return []
        if attempt.majority_at is None:
            attempt.majority_at = now
        answered = attempt.ready.keys() | attempt.drifted.keys()
        waiting = [p for p in attempt.plan.members if p not in answered and p in self.followers]
        if waiting and attempt.in_grace(now):
            return []
        averages = attempt.averages
        if averages is None:
            return [*self._fail(Reason.RESULTS_DIFFER, ""), *self._consider(now)]
        commit = Commit(
            ballot=attempt.plan.ballot,
            plan_digest=attempt.plan.digest,
            contributions=averages.contributions,
            members=attempt.plan.members,
            shards=averages.shards,
            codec=attempt.plan.codec,
            total_samples=tip.total_samples + averages.samples,
            leader=self.me,
            succession=tip.succession_of(self.me, self._reachable()),
            next_codec=attempt.next_codec,
        )
        if attempt.plan.planned_s:
            self._overrun = max(1.0, (attempt.majority_at - attempt.started_at) / attempt.plan.planned_s)
        self.attempt = None
        self._committed = True
        for follower in self.followers.values():
            follower.has_commit = True
        absent = self._absences.from_commit(commit, tip, self.followers)
        return [Announce(commit, now - attempt.started_at, attempt.plan.ballot.attempt, absent)]

    def _reachable(self) -> list[Candidate]:
        here = [Candidate(peer, self.followers[peer].hello.address) for peer, _ in sorted(self._at_tip())]
        return [candidate for candidate in here if candidate.address]
