"""A member of rounds, as a pure state machine: it takes events and returns actions.

Rule 1: nothing here touches a socket, a clock, a thread or a tensor. The driver feeds the events in the order in which they
happen. It carries out the returned actions in order.

    phase        what the peer does                      what ends it
    CATCHING_UP  fetches state, contributes nothing      adopted()
    TRAINING     draws samples                           on_plan() accepted
    FROZEN       contribution fixed, no attempt running  on_plan(), applied commit
    REDUCING     an attempt runs                         reduced() -> READY, abort -> FROZEN
    READY        holds every averaged shard              commit -> APPLYING, abort -> FROZEN
    APPLYING     the commit is being applied             applied() -> TRAINING, apply_failed() -> CATCHING_UP

In a run with overlap the peer draws samples in every phase but CATCHING_UP. After a freeze it draws for the next epoch, at
the tip of that moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocols.reasons import Reason
from protocols.round.drift_votes import Drifted, DriftVerdict
from protocols.round.plans import MemberPlan
from protocols.round.promises import Promises
from protocols.round.records import (
    MAX_COUNT,
    Averages,
    Ballot,
    Commit,
    Contribution,
    ReadyFor,
    Report,
    Result,
    SignedCommit,
    Standing,
    Tip,
    Vote,
    require,
)

# A leader's attempts grow by one. To promise one this far above would leave no room for the attempts of other leaders.
MAX_LEAP = 1 << 32


class Phase(str, Enum):
    """What a member does now: see the table at the top."""

    CATCHING_UP = "catching up"
    TRAINING = "training"
    FROZEN = "frozen"
    REDUCING = "reducing"
    READY = "ready"
    APPLYING = "applying"


@dataclass(frozen=True)
class Freeze:
    """Encode the contribution and answer with frozen(); None if there are no samples.

    Without overlap, stop drawing. With overlap, go on with an empty accumulator.
    """


@dataclass(frozen=True)
class Reduce:
    """Do this member's part of the plan; answer with reduced(), drifted() or reduce_failed().

    Without a contribution the member sends no gradient.
    """

    plan: MemberPlan
    contribution: Contribution | None


@dataclass(frozen=True)
class StopReducing:
    """Stop the traffic of this plan: its attempt is over."""

    plan_digest: str
    reason: Reason


@dataclass(frozen=True)
class Accept:
    """Answer to a plan: this member takes part, with the contribution if it gives one."""

    plan_digest: str
    contribution: Contribution | None


# What a member may say of a plan. The leader passes the reason on to all: none of these makes anybody give up its state.
REFUSALS = {
    *(Reason.NOT_CAUGHT_UP, Reason.OTHER_LINEAGE, Reason.NOT_A_MEMBER, Reason.PROMISED_HIGHER, Reason.RESULTS_DIFFER),
    *(Reason.NOTHING_TO_GIVE, Reason.BAD_MESSAGE),
}
FAILURES = {
    *(Reason.BAD_CHUNK, Reason.CONTRIBUTOR_LOST, Reason.OTHER_LINEAGE, Reason.REDUCER_LOST, Reason.RESULTS_DIFFER),
    Reason.SUPERSEDED,
}


@dataclass(frozen=True)
class Refuse:
    """Answer to a plan: this member takes no part. `promised_attempt` is the highest that it accepted in this epoch, else 0."""

    plan_digest: str
    reason: Reason
    promised_attempt: int

    def __post_init__(self) -> None:
        require(0 <= self.promised_attempt <= MAX_COUNT, "a promise is out of bounds")
        require(self.reason in REFUSALS, f"{self.reason.value} is no reason to refuse a plan")


@dataclass(frozen=True)
class Ready:
    """Answer to a plan: this member holds every averaged shard. Whoever sends it signs the result."""

    result: Result
    vote: Vote | None = None


@dataclass(frozen=True)
class Failed:
    """Answer to a plan: the connection between `member` and `reducer` broke. One of the two is the sender of this answer."""

    plan_digest: str
    reason: Reason
    member: str
    reducer: str

    def __post_init__(self) -> None:
        require(self.reason in FAILURES, f"{self.reason.value} breaks no connection")


Answer = Accept | Refuse | Ready | Failed | Drifted


@dataclass(frozen=True)
class Send:
    """Send the answer to the leader `to`."""

    to: str
    answer: Answer


@dataclass(frozen=True)
class Apply:
    """Apply all averaged shards of this commit; answer with applied() or apply_failed().

    They are the shards of the last reduced().
    """

    signed: SignedCommit


@dataclass(frozen=True)
class Resume:
    """Draw samples from an empty accumulator at the tip's parameters. With `keep`, go on with the accumulator as it is."""

    keep: bool = False


@dataclass(frozen=True)
class GiveUp:
    """Log that these samples will never be committed. Without a contribution they are the accumulated ones, not yet frozen."""

    reason: Reason
    contribution: Contribution | None


@dataclass(frozen=True)
class CatchUp:
    """Fetch the state from donors, from `sound` ones first; answer with adopted()."""

    reason: Reason
    sound: tuple[str, ...] = ()


MemberAction = Freeze | Reduce | StopReducing | Send | Apply | Resume | GiveUp | CatchUp


class Member:
    """One peer's view of the epoch under way. The table at the top lists its phases."""

    def __init__(self, me: str, incarnation: int, *, overlap: bool = False) -> None:
        self.me = me
        self.incarnation = incarnation
        self.overlap = overlap
        self.phase = Phase.CATCHING_UP
        self.tip: Tip | None = None
        self.promised: Ballot | None = None
        self._promises = Promises()
        self._planned_with: tuple[str, ...] = ()
        self.plan: MemberPlan | None = None
        self.contribution: Contribution | None = None
        self.ready_for: ReadyFor | None = None  # kept when its attempt ends, so that another attempt can finish it
        self._moved = (0, 0.0)  # (bytes of rounds so far, the time at which they last grew)
        self._base = ""  # the lineage whose parameters the accumulated gradients are computed at
        self._frozen = False  # the contribution of this epoch is fixed, perhaps as None
        self._freezing = False
        self._commit: SignedCommit | None = None
        self._drifted = False  # this state or a reducer's is off; the votes of the others decide which
        self._named: tuple[Commit, Contribution] | None = None  # a commit still to be fetched, and our contribution in it

    # -- state -------------------------------------------------------------------------------------------------------------

    def adopted(self, tip: Tip) -> list[MemberAction]:
        """Begin an epoch at `tip`: its state is in place, from a donor or from the disk."""
        actions = [*self._drop_plan(Reason.SUPERSEDED), *self._settle_named(tip)]
        self._start_epoch(tip, tip.lineage)
        return [*actions, Resume()]

    def reached(self, tip: Tip) -> bool:
        """Take note that the state has reached `tip` while catching up. Returns whether the leader should hear of it."""
        if self.phase is not Phase.CATCHING_UP or self.tip is None:
            return False
        self.promised, self.tip = self._promises.moved(self.promised, self.tip, tip), tip
        return True

    def _settle_named(self, tip: Tip) -> list[MemberAction]:
        """Give up the contribution that a fetched commit was to name, if `tip` shows that the commit is lost.

        A tip of a later epoch does not show it.
        """
        named, self._named = self._named, None
        if named is None or tip.lineage == named[0].digest or tip.epoch > named[0].ballot.epoch:
            return []
        reason = Reason.LOST_FORK if tip.epoch == named[0].ballot.epoch else Reason.MISSED_RESULTS
        return [GiveUp(reason, named[1])]

    def catch_up(self, reason: Reason) -> list[MemberAction]:
        """Leave for other state: the driver found that this lineage is behind, or lost to a heavier one."""
        if self.phase in (Phase.CATCHING_UP, Phase.APPLYING):
            return []
        return self._fall_behind(reason, self._commit.commit if self._commit is not None else None)

    def planned_with(self, leader: str) -> tuple[str, ...]:
        """The known members of the highest attempt accepted at this epoch, for a report to `leader`.

        A leader must ask all of them before it plans. Empty if the attempt is the leader's own.
        """
        return self._planned_with if self.promised is not None and self.promised.leader != leader else ()

    def samples(self, accumulated: int) -> int:
        """Samples for the epoch that is averaged now or next: those of the frozen contribution, else the accumulated ones."""
        return self.contribution.weight if self.contribution is not None else accumulated

    def report(
        self,
        following: str,
        *,
        accumulated: int,
        samples_per_second: float,
        step_s: float,
        moved_bytes: int,
        upload_bytes_s: float,
        download_bytes_s: float,
        unreached: tuple[str, ...] = (),
    ) -> Report | None:
        """The report to the leader `following` ('' without one); None before the first state.

        `accumulated` counts the samples that are not frozen. `samples_per_second` and the rates are moving estimates.
        """
        if self.tip is None:
            return None
        return Report(
            standing=self.tip.standing,
            samples=self.samples(accumulated),
            samples_per_second=samples_per_second,
            step_s=step_s,
            promised_attempt=self.promised.attempt if self.promised is not None else 0,
            moved_bytes=moved_bytes,
            caught_up=self.phase is not Phase.CATCHING_UP,
            phase=self.phase.value,
            upload_bytes_s=upload_bytes_s,
            download_bytes_s=download_bytes_s,
            ready_for=self.ready_for,
            planned_with=self.planned_with(following),
            unreached=unreached,
        )

    def is_behind(self, theirs: Standing, following: str) -> bool:
        """Whether to leave for the lineage `theirs`: it must be heavier.

        During a round of the leader `following` the answer is no if the commit of that round leads there anyway.
        """
        if self.tip is None or self.phase in (Phase.CATCHING_UP, Phase.APPLYING) or not theirs.heavier_than(self.tip.standing):
            return False
        return self.plan is None or self.plan.ballot.leader != following or theirs.epoch > self.plan.ballot.epoch

    def tick(self, moved_bytes: int, now: float) -> list[MemberAction]:
        """Catch up if a commit is here and its averages stopped coming for the plan's patience.

        `moved_bytes` counts the bytes of all rounds so far.
        """
        awaits_results = self._commit is not None and self.phase is Phase.REDUCING
        if self.plan is None or not awaits_results or moved_bytes != self._moved[0]:
            self._moved = (moved_bytes, now)
        elif now - self._moved[1] > self.plan.patience_s:
            return self.catch_up(Reason.MISSED_RESULTS)
        return []

    # -- the leader's messages -----------------------------------------------------------------------------------------------

    def on_plan(self, plan: MemberPlan) -> list[MemberAction]:
        """Refuse the plan, or accept it: that is the promise to ignore every lower ballot of its epoch."""
        refusal = self._refusal(plan)
        leader = plan.ballot.leader
        if refusal is not None:
            return [Send(leader, Refuse(plan.digest, refusal, self.promised.attempt if self.promised else 0))]
        actions = self._drop_plan(Reason.SUPERSEDED)
        self.promised, self._planned_with = plan.ballot, plan.known_members
        self.plan = plan
        if self._frozen or not self._sends(plan):
            # A member that gives nothing goes on drawing: the next attempt can take its samples if this one fails.
            return [*actions, *self._begin_reducing()]
        self.phase = Phase.FROZEN
        if not self._freezing:
            self._freezing = True
            actions.append(Freeze())
        return actions

    def on_abort(
        self, plan_digest: str, reason: Reason, sound: tuple[str, ...] = (), verdict: DriftVerdict | None = None
    ) -> list[MemberAction]:
        """Leave the attempt. With reason DRIFT, and a verdict that shows it, give up the state and fetch it anew, from the
        `sound` members first. The caller has checked the verdict's signatures."""
        if self.plan is None or self.plan.digest != plan_digest or self.phase is Phase.APPLYING:
            return []
        if reason is not Reason.DRIFT:
            return self._drop_plan(reason)
        if verdict is None or not verdict.condemns(self.me, self.plan):
            return self._drop_plan(Reason.RESULTS_DIFFER)
        return self._fall_behind(reason, sound=sound)

    def on_commit(self, signed: SignedCommit) -> list[MemberAction]:
        """Apply a commit whose shards are here; ignore one of a lower ballot than promised; catch up for any other.

        The caller has checked the signature.
        """
        commit, tip = signed.commit, self.tip
        if tip is None or self.phase in (Phase.CATCHING_UP, Phase.APPLYING) or commit.digest == tip.lineage:
            return []
        if commit.ballot.parent != tip.lineage:
            return self._fall_behind(Reason.BEHIND) if Tip.after(commit).standing.heavier_than(tip.standing) else []
        if self.promised is not None and commit.ballot.rank < self.promised.rank:
            return []
        if not tip.leads_to(commit, overlap=self.overlap):
            return self._fall_behind(Reason.RESULTS_DIFFER)
        if self.plan is None or self.plan.digest != commit.plan_digest:
            if not self._holds(commit):
                return self._fall_behind(Reason.MISSED_RESULTS, commit)
            actions = self._drop_plan(Reason.SUPERSEDED)
            self._commit = signed
            return [*actions, *self._apply()]
        if not self.plan.is_closed_by(commit):
            return self._fall_behind(Reason.RESULTS_DIFFER)
        if self._drifted:
            return self._fall_behind(Reason.DRIFT, commit)  # a majority of the members agreed, so this state is off
        self._commit = signed
        return self._apply() if self.phase is Phase.READY else []

    # -- the driver's answers ----------------------------------------------------------------------------------------------

    def frozen(self, contribution: Contribution | None) -> list[MemberAction]:
        """Answer to Freeze: the contribution is encoded, or there is none."""
        given = () if contribution is None else (contribution,)
        if self.tip is None or not self._freezing or not self.tip.may_average(given, overlap=self.overlap):
            return []  # the epoch ended during the freeze
        self._freezing = False
        self._frozen = True
        self._base = self.tip.lineage
        self.contribution = contribution
        if self.plan is None:
            self.phase = Phase.FROZEN
        return self._begin_reducing() if self.plan is not None and self.phase is Phase.FROZEN else []

    def reduced(self, plan_digest: str, averages: Averages) -> list[MemberAction]:
        """Answer to Reduce: every averaged shard is here, and the digests match."""
        if self.plan is None or plan_digest != self.plan.digest or self.phase is not Phase.REDUCING:
            return []
        self.ready_for = ReadyFor(self.plan.ballot, averages)
        self.phase = Phase.READY
        actions: list[MemberAction] = [Send(self.plan.ballot.leader, Ready(averages.result(plan_digest)))]
        return [*actions, *self._apply()] if self._commit is not None else actions

    def reduce_failed(self, plan_digest: str, reason: Reason, member: str, reducer: str) -> list[MemberAction]:
        """Answer to Reduce: the connection between `member` and `reducer` broke."""
        if self.plan is None or plan_digest != self.plan.digest or self.phase is not Phase.REDUCING:
            return []
        if self._commit is not None:
            return self._fall_behind(Reason.MISSED_RESULTS, self._commit.commit)
        leader = self.plan.ballot.leader
        return [*self._drop_plan(reason), Send(leader, Failed(plan_digest, reason, member, reducer))]

    def drifted(self, plan_digest: str, reducers: tuple[str, ...]) -> list[MemberAction]:
        """Answer to Reduce: every shard is here, but this state is off the canonical values of `reducers`.

        The others can still fetch what this member reduces, until the attempt ends.
        """
        if self.plan is None or plan_digest != self.plan.digest or self.phase is not Phase.REDUCING:
            return []
        if self._commit is not None:
            return self._fall_behind(Reason.DRIFT, self._commit.commit)
        self._drifted = True
        return [Send(self.plan.ballot.leader, Drifted(plan_digest, reducers))]

    def applied(self) -> list[MemberAction]:
        """Answer to Apply: the state is at the commit. The next epoch begins."""
        assert self._commit is not None, "applied() answers an Apply"
        commit = self._commit.commit
        tip = Tip.after(commit)
        keep = self._base in tip.bases(self.overlap)
        actions = self._give_up(Reason.MISSED, commit, accumulated=not keep)
        self._start_epoch(tip, self._base if keep else tip.lineage)
        return [*actions, Resume(keep)]

    def apply_failed(self) -> list[MemberAction]:
        """Answer to Apply: the step failed midway, so the state belongs to no lineage and is fetched anew."""
        commit = self._commit.commit if self._commit is not None else None
        self._commit = None
        self.phase = Phase.READY
        return self._fall_behind(Reason.APPLY_FAILED, commit)

    # -- inside ------------------------------------------------------------------------------------------------------------

    def _refusal(self, plan: MemberPlan) -> Reason | None:
        """Why this member must refuse the plan; None if it may accept."""
        if self.phase in (Phase.CATCHING_UP, Phase.APPLYING) or self.tip is None:
            return Reason.NOT_CAUGHT_UP
        builds_on = (plan.ballot.parent, plan.ballot.epoch - 1, plan.codec)
        if builds_on != (self.tip.lineage, self.tip.epoch, self.tip.codec):
            return Reason.OTHER_LINEAGE
        if not plan.is_for(self.me):
            return Reason.NOT_A_MEMBER
        if self.promised is not None and plan.ballot.rank <= self.promised.rank:
            return Reason.PROMISED_HIGHER
        if plan.ballot.attempt > (self.promised.attempt if self.promised is not None else 0) + MAX_LEAP:
            return Reason.BAD_MESSAGE
        if plan.finishes is not None:
            if not self.tip.may_average(plan.finishes.contributions, overlap=self.overlap):
                return Reason.OTHER_LINEAGE
            mine = [c for c in plan.finishes.contributions if (c.peer, c.incarnation) == (self.me, self.incarnation)]
            return Reason.RESULTS_DIFFER if mine and mine != [self.contribution] else None
        if self._frozen and plan.sends and self.contribution is None:
            return Reason.NOTHING_TO_GIVE
        return None

    def _begin_reducing(self) -> list[MemberAction]:
        assert self.plan is not None
        plan = self.plan
        sends = self._sends(plan)
        if sends and self.contribution is None:
            # Nothing is frozen, so the member draws again. If the only contributor stayed frozen, no plan could ever be made.
            actions = self._drop_plan(Reason.NOTHING_TO_GIVE)
            self._forget_contribution()
            self.phase = Phase.TRAINING
            refusal = Refuse(plan.digest, Reason.NOTHING_TO_GIVE, plan.ballot.attempt)
            return [*actions, Send(plan.ballot.leader, refusal), Resume(keep=self.overlap)]
        given = self.contribution if sends else None
        self.phase = Phase.REDUCING
        return [Send(plan.ballot.leader, Accept(plan.digest, given)), Reduce(plan, given)]

    def _sends(self, plan: MemberPlan) -> bool:
        return plan.sends and plan.finishes is None

    def _holds(self, commit: Commit) -> bool:
        return self.ready_for is not None and self.ready_for.averages == commit.averages

    def _apply(self) -> list[MemberAction]:
        assert self._commit is not None
        if not self._holds(self._commit.commit):
            return self._fall_behind(Reason.RESULTS_DIFFER)
        self.phase = Phase.APPLYING
        return [Apply(self._commit)]

    def _drop_plan(self, reason: Reason) -> list[MemberAction]:
        """Leave the attempt under way, if any. The frozen contribution and `ready_for` stay for the next one."""
        plan, phase = self.plan, self.phase
        self.plan = self._commit = None
        self._drifted = False
        if plan is None:
            return []
        self.phase = Phase.FROZEN if self._frozen or self._freezing else Phase.TRAINING
        return [StopReducing(plan.digest, reason)] if phase in (Phase.REDUCING, Phase.READY) else []

    def _fall_behind(self, reason: Reason, commit: Commit | None = None, sound: tuple[str, ...] = ()) -> list[MemberAction]:
        """Give up the samples of this epoch and catch up. Samples that `commit` names are kept: its state will be fetched."""
        actions = self._drop_plan(reason)
        if commit is not None and self.contribution is not None and self.contribution in commit.contributions:
            self._named = (commit, self.contribution)
        given_up = Reason.MISSED if reason in (Reason.BEHIND, Reason.MISSED_RESULTS) else reason
        actions += self._give_up(given_up, commit, accumulated=True)
        self._forget_contribution()
        self.phase = Phase.CATCHING_UP
        return [*actions, CatchUp(reason, sound)]

    def _give_up(self, reason: Reason, commit: Commit | None, *, accumulated: bool) -> list[MemberAction]:
        """GiveUp actions: for the frozen contribution, unless `commit` names it, and with `accumulated` for the accumulator.

        Without overlap a peer with a frozen contribution has accumulated nothing else.
        """
        actions: list[MemberAction] = []
        if self.contribution is not None and (commit is None or self.contribution not in commit.contributions):
            actions.append(GiveUp(reason, self.contribution))
        if accumulated and (self.contribution is None or self.overlap):
            actions.append(GiveUp(reason, None))
        return actions

    def _start_epoch(self, tip: Tip, base: str) -> None:
        self.promised = self._promises.moved(self.promised, self.tip, tip)
        self.tip, self._base = tip, base
        self.phase = Phase.TRAINING
        self.plan = self._commit = None
        self._drifted = False
        self._forget_contribution()

    def _forget_contribution(self) -> None:
        self.contribution = self.ready_for = None
        self._frozen = self._freezing = False
