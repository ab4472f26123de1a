"""The leader of rounds, as a pure state machine: it takes events and `now`, and returns actions.

Rule 1: nothing here touches a socket, a clock, a thread or a tensor. `now` is in seconds, on any clock that never runs back.

Every reachable peer holds a Leader. It sleeps until the driver finds that this peer is next in the succession (take_over).

    1. hear      The leader asks all members of the last commit and of the plans reported to it. It waits until each has
                 reported or is silent.
    2. gather    It waits until the reported samples reach the target batch size. After a failed attempt of this epoch it
                 does not wait. It then finishes the attempt that somebody was ready for. If there is none, it plans with
                 the samples there are.
    3. attempt   It sends the plan. It collects Accept (with the contribution) and Ready (with the result's digests).
    4. commit    It commits when more than half of the members are ready. The others get a short grace, so that they do
                 not fall behind.
       or abort  It aborts when a member drops out, refuses or fails, or when nothing moves for the attempt's patience.
                 Then it goes back to 2.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from protocols.reasons import Reason
from protocols.round.absences import Absences
from protocols.round.attempt import Attempt, Follower
from protocols.round.codec_choice import codec_after
from protocols.round.deadline import Deadline, doubled
from protocols.round.drift_votes import Drifted
from protocols.round.leader_actions import Announce, Ask, LeaderAction, NoteFailure, Reannounce, SendAbort, SendPlan, Yield
from protocols.round.member import Accept, Answer, Ready, Refuse
from protocols.round.planner import (
    Layout,
    Present,
    Round,
    finishing,
    fresh,
    min_rates,
    planned_bytes,
    planned_fractions,
    planned_seconds,
)
from protocols.round.plans import Plan
from protocols.round.records import Averages, Ballot, Candidate, Commit, Contribution, Hello, ReadyFor, Report, Tip
from protocols.round.reducer_shares import ReducerShares
from protocols.round.roll_call import RollCall
from protocols.round.stragglers import Stragglers
from protocols.round.strikes import Strikes

# No peer can have promised an attempt so far above those that this leader heard of: whoever says so is not believed.
MAX_LEAP = 1024
# A member's bytes keep an attempt alive as long as they are at most so many times what it has to move, and some for framing.
MOST_BYTES, SPARE_BYTES = 2.0, 1 << 20
# An attempt ends after so many times its planned time, or so many seconds if that is unknown, whatever moves.
LONGEST, LONGEST_S = 4.0, 3600.0
# A plan waits for a micro-batch of so many seconds, or so many times the median if that is more.
LONGEST_STEP_S, SLOWEST_STEP = 30.0, 4.0
# What a member says that it holds is given up for the epoch after so many attempts to finish it: it may have been made up.
MAX_FINISHING = 2
# So often in an epoch the leader waits for peers that one follower names. Each time may take the detection time.
MAX_NAMINGS = 3
# A connection without a byte for this long counts as dead. Heartbeats come every 0.5 s. The driver's tick makes it 2 s at most.
DETECTION_S = 1.75


class Leader:
    """Plans attempts, watches them and commits. A successor needs none of its state: the members report it all again."""

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
        """`codecs` maps each codec that a commit may name for the next plan to the bytes of a whole vector in it, least lossy
        first. `elements` is the length of the vector. With `overlap`, members go on drawing while an epoch is averaged."""
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
        self._parent = ""  # the lineage that this leader's tip builds on; '' if the tip came from a donor
        self._roll_call = RollCall(DETECTION_S)
        self._asked: set[str] = set()  # peers asked at this tip because a reported plan names them
        self._named = Counter[str]()  # follower -> how often it named peers that were not asked yet, at this tip
        self._told: dict[str, str] = {}  # peer that follows another leader, or leads -> that leader, as it said itself
        self._highest_attempt = 0  # of any leader, as far as followers say
        self._attempts = 0  # of this leader at this epoch
        self._froze = False  # one of them, or one of another leader, froze this peer's contribution and others'
        self._grown_at = (0, 0.0)  # samples gathered at most at this epoch, and when that was reached
        self._planned_at = 0.0  # this leader's first attempt at the epoch; 0 before it
        self._overrun = 1.0  # real / planned duration of the last commit, at least 1: a round is more than its transfers
        self._committed = False
        self._stragglers = Stragglers(DETECTION_S, 0.0, overlap=overlap)
        self._awake_at = 0.0
        self._failed_pairs: set[tuple[str, str]] = set()
        self._absences = Absences()
        self._strikes = Strikes()
        self._shares = ReducerShares()
        self._disowned: set[Averages] = set()  # never to be finished: a contributor denies them, or states drifted apart
        self._in_vain = Counter[str]()  # holder -> how many attempts at this tip were to finish what it holds, and did not
        self._counted: dict[tuple[str, int], int] = {}  # (peer, incarnation) -> end of its last committed range

    # -- leading or not ------------------------------------------------------------------------------------------------------

    def take_over(self, now: float) -> list[LeaderAction]:
        """Begin to lead: ask every member of the last commit that is not connected here."""
        if self.active or self.tip is None:
            return []
        self.active = True
        self._awake_at = now
        self._stragglers = Stragglers(DETECTION_S, now, overlap=self.overlap)
        return self._hear(set(self.tip.members) - self.followers.keys(), now)

    def step_down(self) -> list[LeaderAction]:
        """Stop leading: abort the attempt under way and forget all followers."""
        actions = self._fail(Reason.LEADER_LOST, self.me.peer)
        self.active = self._committed = False
        self.followers.clear()
        self._told.clear()
        self._roll_call = RollCall(DETECTION_S)
        self._absences = Absences()
        return actions

    def follow(self, tip: Tip, commit: Commit | None = None) -> list[LeaderAction]:
        """Take note that this peer's own state is at `tip` now. `commit` led there; None if the state came from a donor."""
        actions = self._fail(Reason.SUPERSEDED, "")
        if self.tip is None or tip.lineage != self.tip.lineage:
            # At the same lineage it is still the same epoch, and no ballot of it may be used twice.
            self._highest_attempt = self._attempts = 0
            self._froze, self._grown_at = False, (0, 0.0)
            self._planned_at = 0.0
            self._failed_pairs.clear()
            self._disowned.clear()
            self._in_vain.clear()
            self._absences.next_epoch(tip.members, self.followers)
            self._asked.clear()
            self._told.clear()
            self._named.clear()
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

    # -- followers -----------------------------------------------------------------------------------------------------------

    def joined(self, peer: str, hello: Hello, now: float) -> list[LeaderAction]:
        """Add a follower that opened a control stream, unless a newer incarnation of it is connected."""
        follower = self.followers.get(peer)
        if follower is not None and hello.incarnation < follower.hello.incarnation:
            return []
        actions = self._lose(peer, Reason.OTHER_INCARNATION, now) if follower is not None else []
        self.followers[peer] = Follower(hello, now)
        self._told.pop(peer, None)
        self._absences.connected(peer)
        return actions

    def reported(self, peer: str, report: Report, now: float) -> list[LeaderAction]:
        """Take in a follower's progress; plan if it completes the batch."""
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
            self._promised(report.promised_attempt)
            follower.ready_for = report.ready_for or follower.ready_for
            unasked = set(report.planned_with) - self.followers.keys() - self._asked
            if self.active and unasked and self._named[peer] < MAX_NAMINGS:
                self._named[peer] += 1
                self._asked |= unasked
                actions += self._hear(unasked, now)
        elif self.active and report.standing.lineage == self._parent and not follower.has_commit:
            follower.has_commit = True
            actions.append(Reannounce((peer,)))
        return [*actions, *self._consider(now)]

    def introduced(self, peer: str, hello: Hello) -> None:
        """Take in that a follower can be reached elsewhere now, or nowhere."""
        follower = self.followers.get(peer)
        if follower is not None and follower.hello.incarnation == hello.incarnation:
            follower.hello = hello

    def heard(self, peer: str, now: float) -> None:
        """Take note of a life sign: any byte from `peer`."""
        if peer in self.followers:
            self.followers[peer].heard_at = now

    def left(self, peer: str, reason: Reason, now: float) -> list[LeaderAction]:
        """Remove a follower whose control stream ended, for any reason."""
        self._absences.dropped(peer, reason)  # first: the next plan already lists it as absent
        actions = self._lose(peer, reason, now)
        if self.active and self.tip is not None and peer in self.tip.members and reason is not Reason.LEFT:
            # It may already follow another leader, so it is asked before the next plan is made without it.
            actions += self._hear({peer}, now)
        return [*actions, *self._consider(now)]

    def answered(self, peer: str, follows: str) -> list[LeaderAction]:
        """Take in the answer to an Ask: `peer` follows `follows` ('' if nobody).

        Of two leaders the one with fewer followers yields; with equally many, the one with the smaller peer id. Followers count
        that were members of the last commit, and can be dialled: both leaders can ask the same ones. No leader's own word counts.
        """
        if not self.active or self.tip is None or follows in ("", self.me.peer):
            self._told.pop(peer, None)
            return []  # it still looks for its leader; we wait for its report until the roll call is over
        self._told[peer] = follows
        if follows not in (peer, self._told.get(follows)):
            return [Ask((follows,))]  # there may be a second leader, which must answer for itself
        members = self.tip.members
        theirs = sum(self._told.get(other) == follows for other in members if other != follows and other not in self.followers)
        mine = sum(it.hello.reachable for other, it in self.followers.items() if other in members and other != self.me.peer)
        if (theirs, follows) > (mine, self.me.peer):
            return [*self.step_down(), Yield(follows)]
        unasked = tuple(sorted(set(members) - self.followers.keys() - self._told.keys()))
        return [Ask(unasked)] if unasked and follows == peer else []

    def unreachable(self, peer: str, now: float) -> list[LeaderAction]:
        """Take in that `peer` could not be dialled: the roll call does not wait for it."""
        self._roll_call.heard(peer)
        return self._consider(now)

    # -- an attempt ----------------------------------------------------------------------------------------------------------

    def answer(self, peer: str, answer: Answer, now: float) -> list[LeaderAction]:
        """Take in a member's answer to a plan; commit or abort if it decides the attempt."""
        attempt = self.attempt
        plan_digest = answer.result.plan_digest if isinstance(answer, Ready) else answer.plan_digest
        if (
            attempt is None
            or plan_digest != attempt.plan.digest
            or peer not in attempt.plan.members
            or peer not in self.followers
        ):
            return []  # the attempt is over
        attempt.deadline.answered(peer, now)
        if isinstance(answer, Accept):
            return self._accepted(attempt, peer, answer, now)
        if isinstance(answer, Ready):
            attempt.ready[peer] = answer.result
            if answer.vote is not None:
                attempt.votes[peer] = answer.vote
            return self._maybe_commit(now)
        if isinstance(answer, Drifted):
            attempt.drifted[peer] = answer
        if attempt.majority_at is not None or isinstance(answer, Drifted):
            return self._maybe_commit(now)  # with a majority the epoch is decided; a member without the results catches up
        self._strikes.strike(peer, now)
        if isinstance(answer, Refuse):
            self._promised(answer.promised_attempt)
            if answer.reason is Reason.RESULTS_DIFFER and attempt.plan.finishes is not None:
                self._disowned.add(attempt.plan.finishes)
            if answer.reason is not Reason.PROMISED_HIGHER:
                self.followers[peer].report = None  # it is in no plan until it reports again
            return [*self._fail(answer.reason, peer), *self._consider(now)]
        pair = (answer.member, answer.reducer)
        reducers = {shard.reducer for shard in attempt.plan.shards}
        if peer not in pair or pair[0] not in attempt.plan.members or pair[1] not in reducers:
            pair = (peer, peer)  # it names a peer that is not in the plan, or speaks for two others
        self._failed_pairs.add(pair)
        culprit = pair[0] if answer.reason in (Reason.BAD_CHUNK, Reason.CONTRIBUTOR_LOST) else pair[1]
        if culprit != peer:
            self._strikes.strike(culprit, now)  # one of them lies, or has a bad line
        return [*self._fail(answer.reason, culprit), *self._consider(now)]

    def tick(self, now: float) -> list[LeaderAction]:
        """Act on the time: ask again, drop silent followers, end a stalled attempt, commit after the grace, plan."""
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
            late, boasting = attempt.late, sorted(attempt.deadline.exaggerators)
            for peer in {*late, *boasting, *attempt.holders} - {self.me.peer}:
                self._strikes.strike(peer, now)
                if peer in self.followers:
                    self.followers[peer].report = None
            idle = [] if late else attempt.idle
            self._failed_pairs |= {(peer, shard.reducer) for peer in idle for shard in attempt.plan.shards}
            actions += self._fail(Reason.STALLED, (late or boasting or idle or [""])[0])
        actions += self._maybe_commit(now)
        return [*actions, *self._consider(now)]

    def _slept(self, now: float) -> list[LeaderAction]:
        """End the attempt if this process was stopped for longer than DETECTION_S (ticks come far more often).

        The others took it for dead and went on. The messages in its buffers belong to the past. If it committed or planned
        with them, it would begin a fork.
        """
        slept_s, self._awake_at = now - self._awake_at, now
        if not self.active or slept_s <= DETECTION_S:
            return []
        for follower in self.followers.values():
            follower.report, follower.heard_at = None, now
        return self._fail(Reason.SILENT, self.me.peer)

    @property
    def gathered_samples(self) -> int:
        """Samples towards the batch that peers at this leader's tip have reported."""
        return sum(report.samples for _, report in self._at_tip())

    @property
    def vector_bytes(self) -> int:
        """Bytes of a whole vector in the codec of the next plan."""
        largest = max(self.codecs.values())
        return self.codecs.get(self.tip.codec, largest) if self.tip is not None else largest

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _promised(self, attempt: int) -> None:
        """Somebody says that it promised this attempt: the next one must be higher."""
        if attempt <= self._highest_attempt + MAX_LEAP:
            self._highest_attempt = max(self._highest_attempt, attempt)

    def _at_tip(self) -> Iterable[tuple[str, Report]]:
        """(peer, its report) of each follower that is caught up, at this leader's tip, and did not cost attempts lately."""
        for peer, follower in self.followers.items():
            report = follower.report
            if peer != self.me.peer and self._strikes.rests(peer, self._awake_at):
                continue
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
        """Plan the next attempt if all conditions for it hold."""
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
        if not self._has_stalled(tip, samples, now):
            reports = [follower.report for follower in self.followers.values() if follower.report is not None]
            if samples < self.target_batch_size or self._stragglers.awaited(tip, self._parent, reports, now):
                return []
        present = self._present(tip)
        layout = self._layout(tip, present)
        if layout is None:
            return []
        plan = self._plan(tip, layout)
        plan = replace(plan, planned_s=planned_seconds(plan, present, self.vector_bytes))
        self._highest_attempt, self._attempts = plan.ballot.attempt, self._attempts + 1
        self._froze = self._froze or plan.finishes is None
        deadline = self._deadline(plan, present, now)
        self._planned_at = self._planned_at or now
        self.attempt = Attempt(plan, now, deadline, codec_after(plan, present, self.codecs, self.target_batch_size))
        return [SendPlan(plan.members, plan, self._absences.from_plan(plan, layout.too_slow, tip, self.followers))]

    def _deadline(self, plan: Plan, present: dict[str, Present], now: float) -> Deadline:
        planned_s = plan.planned_s * self._overrun * doubled(self._attempts)
        slowest = min_rates(plan, present, self.vector_bytes, planned_s)
        moved = planned_bytes(plan, present, self.vector_bytes)
        most = {peer: MOST_BYTES * size + SPARE_BYTES for peer, size in moved.items()}
        longest_s = plan.patience_s + (LONGEST * planned_s or LONGEST_S * doubled(self._attempts))
        return Deadline(plan.members, now, plan.patience_s, slowest, most, longest_s)

    def _layout(self, tip: Tip, present: dict[str, Present]) -> Layout | None:
        me = self.me.peer
        failed = self._failed_pairs | {(peer, reducer) for peer, report in self._at_tip() for reducer in report.unreached}
        if me not in present:
            return None
        due = Round(tip.epoch + 1, self.elements, self.vector_bytes, self.target_batch_size)
        return finishing(present, me, failed) or fresh(present, me, due, failed)

    def _has_stalled(self, tip: Tip, samples: int, now: float) -> bool:
        """Whether waiting would bring few more samples, because an attempt at this epoch froze its contributors.

        This leader knows of its own attempts, and of those that it promised. What others say that they promised counts only once
        the batch has not grown for the detection time. Otherwise one liar could make every batch a small one.
        """
        if samples > self._grown_at[0]:
            self._grown_at = (samples, now)
        if self._froze:
            return True
        at_tip = dict(self._at_tip())
        if any(self._held_by(peer, tip) is not None for peer in at_tip):
            return True
        if (own := at_tip.get(self.me.peer)) is not None and own.promised_attempt > 0:
            return True
        return any(report.promised_attempt > 0 for report in at_tip.values()) and now - self._grown_at[1] > DETECTION_S

    def _plan(self, tip: Tip, layout: Layout) -> Plan:
        attempt = self._highest_attempt + 1
        steps_s = [report.step_s for peer, report in self._at_tip() if peer in layout.members]
        slowest_s = min(max(steps_s), max(LONGEST_STEP_S, SLOWEST_STEP * statistics.median(steps_s)))
        return Plan(
            run_digest=self.run_digest,
            ballot=Ballot(tip.epoch + 1, tip.lineage, attempt, self.me.peer),
            contributors=layout.contributors,
            members=layout.members,
            shards=layout.shards,
            codec=tip.codec,
            incarnation=self.followers[self.me.peer].hello.incarnation,
            patience_s=2 * (DETECTION_S + slowest_s) * doubled(self._attempts + 1),
            finishes=layout.finishes,
        )

    def _present(self, tip: Tip) -> dict[str, Present]:
        reducers = len(self._reachable())
        return {
            peer: Present(
                self.followers[peer].hello.bulk_address,
                report.samples,
                report.upload_bytes_s,
                report.download_bytes_s,
                self._held_by(peer, tip),
                report.samples_per_second,
                self.followers[peer].hello.memory_bytes,
                self._shares.most(peer, reducers),
            )
            for peer, report in self._at_tip()
        }

    def _held_by(self, peer: str, tip: Tip) -> ReadyFor | None:
        """The attempt that this follower reports to be ready for; None if it cannot be committed at this tip, or was tried in
        vain."""
        ready = self.followers[peer].ready_for
        if (
            self._in_vain[peer] >= MAX_FINISHING
            or ready is None
            or ready.ballot.parent != tip.lineage
            or ready.averages.elements != self.elements
        ):
            return None
        contributions = ready.averages.contributions
        uncounted = all(c.first >= self._counted.get((c.peer, c.incarnation), 0) for c in contributions)
        uncounted = uncounted and tip.may_average(contributions, overlap=self.overlap)
        theirs = all(self._may_be_of(c) for c in contributions)
        return ready if uncounted and theirs and ready.averages not in self._disowned else None

    def _may_be_of(self, contribution: Contribution) -> bool:
        """Whether the contribution agrees with its peer's report, if that process of the peer is connected here."""
        follower = self.followers.get(contribution.peer)
        if follower is None or follower.hello.incarnation != contribution.incarnation or follower.report is None:
            return True  # that process is gone, so we cannot check
        return contribution.weight <= follower.report.samples

    def _accepted(self, attempt: Attempt, peer: str, answer: Accept, now: float) -> list[LeaderAction]:
        follower = self.followers[peer]
        gives = peer in attempt.plan.contributors and attempt.plan.finishes is None
        if gives and (problem := self._problem_with(answer.contribution, peer, follower)) is not None:
            self._strikes.strike(peer, now)
            follower.report = None
            return [*self._fail(problem, peer), *self._consider(now)]
        attempt.accepted[peer] = answer.contribution
        if len(attempt.accepted) == len(attempt.plan.members):
            attempt.accepted_at = now
        return self._maybe_commit(now)

    def _problem_with(self, contribution: Contribution | None, peer: str, follower: Follower) -> Reason | None:
        """Why the contribution may not enter the attempt; None if it may."""
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
        """End the attempt under way, if any. `peer` dropped out or is at fault, '' if nobody is."""
        attempt = self.attempt
        if attempt is None:
            return []
        self.attempt = None
        if attempt.plan.finishes is not None and reason is not Reason.SUPERSEDED:
            self._in_vain.update(attempt.holders)
        self._absences.dropped(peer, reason)
        averages = attempt.averages
        for member in attempt.agreed:
            if averages is not None and member in self.followers:
                self.followers[member].ready_for = ReadyFor(attempt.plan.ballot, averages)
        present = tuple(member for member in attempt.plan.members if member in self.followers)
        return [NoteFailure(attempt.plan.ballot, reason, peer), SendAbort(present, attempt.plan.digest, reason, peer)]

    def _drift_apart(self, attempt: Attempt) -> list[LeaderAction]:
        """End an attempt in which states have drifted apart.

        No majority was ready, so nobody committed it, and nobody may finish it.
        """
        off = attempt.off()
        for peer in off:
            self.followers[peer].report = None
        if (averages := attempt.plan.finishes or attempt.averages) is not None:
            self._disowned.add(averages)
        note, abort = self._fail(Reason.DRIFT, off[0] if off else "")
        assert isinstance(abort, SendAbort)
        sound = tuple(peer for peer in abort.to if peer not in off)
        others = SendAbort(sound, abort.plan_digest, Reason.RESULTS_DIFFER)
        return [note, replace(abort, to=off, sound=sound, verdict=attempt.verdict), others]

    def _maybe_commit(self, now: float) -> list[LeaderAction]:
        """Commit the attempt if a majority agrees and the grace is over; end it if no majority is possible."""
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
        took_s = attempt.majority_at - attempt.started_at
        if attempt.plan.planned_s:
            self._overrun = max(1.0, took_s / attempt.plan.planned_s)
        if attempt.plan.finishes is None:
            moving_s = attempt.majority_at - (attempt.accepted_at or attempt.majority_at)
            self._shares.reduced(planned_fractions(attempt.plan), moving_s, attempt.plan.planned_s)
        self.attempt = None
        self._committed = True
        for peer in attempt.agreed:
            self._strikes.helped(peer)
        for follower in self.followers.values():
            follower.has_commit = True
        absent = self._absences.from_commit(commit, tip, self.followers)
        votes = tuple(attempt.votes[peer] for peer in sorted(attempt.agreed) if peer in attempt.votes)
        return [Announce(commit, now - (self._planned_at or attempt.started_at), attempt.plan.ballot.attempt, votes, absent)]

    def _reachable(self) -> list[Candidate]:
        """The peers at this leader's tip that others can dial, sorted by id."""
        here = [Candidate(peer, self.followers[peer].hello.address) for peer, _ in sorted(self._at_tip())]
        return [candidate for candidate in here if candidate.address]
