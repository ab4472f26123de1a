"""A member's part in rounds, as a pure state machine: events in, actions out.

Rule 1: nothing here touches a socket, a clock, a thread or a tensor. The driver feeds events in the order in which they happened
and carries out the returned actions in order.

    phase        what the peer does                      leaves it by
    CATCHING_UP  fetches state, contributes nothing      adopted()
    TRAINING     draws samples                           on_plan() accepted
    FROZEN       contribution fixed, no attempt running  on_plan(), applied commit
    REDUCING     an attempt runs                         reduced() -> READY, abort -> FROZEN
    READY        holds every averaged shard              commit -> APPLYING, abort -> FROZEN
    APPLYING     the commit is being applied             applied() -> TRAINING, apply_failed() -> CATCHING_UP

In a run that overlaps the peer draws in all phases but the first: from a freeze on for the next epoch, at that moment's tip.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocols.reasons import Reason
from protocols.round.plans import MemberPlan
from protocols.round.promises import Promises
from protocols.round.records import (
    MAX_ATTEMPTS,
    MAX_REDUCERS,
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
)


class Phase(str, Enum):
    CATCHING_UP = "catching up"
    TRAINING = "training"
    FROZEN = "frozen"
    REDUCING = "reducing"
    READY = "ready"
    APPLYING = "applying"


@dataclass(frozen=True)
class Freeze:
    """Answer with frozen(): the contribution, encoded, or None if there is none. Draw no more; with overlap, go on anew."""


@dataclass(frozen=True)
class Reduce:
    """Do this part of the plan, with the contribution (None: receive only); answer reduced() or reduce_failed()."""

    plan: MemberPlan
    contribution: Contribution | None


@dataclass(frozen=True)
class StopReducing:
    plan_digest: str
    reason: Reason


@dataclass(frozen=True)
class Accept:
    plan_digest: str
    contribution: Contribution | None


@dataclass(frozen=True)
class Refuse:
    plan_digest: str
    reason: Reason
    promised_attempt: int

    def __post_init__(self) -> None:
        if not 0 <= self.promised_attempt < MAX_ATTEMPTS:
            raise ValueError("a promise is out of bounds")


@dataclass(frozen=True)
class Ready:
    result: Result


@dataclass(frozen=True)
class Failed:
    """Something broke between `member` (who gives, or only receives) and `reducer`; one of them is the sender of this."""

    plan_digest: str
    reason: Reason
    member: str
    reducer: str


@dataclass(frozen=True)
class Drifted:
    """All is here, but this member's state is further off the canonical values of these reducers than rounding allows."""

    plan_digest: str
    reducers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.reducers) <= MAX_REDUCERS:
            raise ValueError("states have drifted apart from somebody's")


Answer = Accept | Refuse | Ready | Failed | Drifted


@dataclass(frozen=True)
class Send:
    """To the leader of the plan (or of the current tip)."""

    to: str
    answer: Answer


@dataclass(frozen=True)
class Apply:
    """Apply this commit's averaged shards, all of them (they are those of the last reduced()), then answer applied() or
    apply_failed()."""

    signed: SignedCommit


@dataclass(frozen=True)
class Resume:
    """Draw samples, from an empty accumulator at the tip's parameters; with `keep`, go on drawing as it is."""

    keep: bool = False


@dataclass(frozen=True)
class GiveUp:
    """These samples (without a contribution: those accumulated, not frozen) will never be committed; log them with the reason."""

    reason: Reason
    contribution: Contribution | None


@dataclass(frozen=True)
class CatchUp:
    reason: Reason


MemberAction = Freeze | Reduce | StopReducing | Send | Apply | Resume | GiveUp | CatchUp


class Member:
    """One peer's view of the epoch under way. See the table at the top for the phases."""

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
        self.ready_for: ReadyFor | None = None  # kept when its attempt ends, so that another can finish it
        self._moved = (0, 0.0)  # bytes of rounds, and since when it is so many
        self._base = ""  # the lineage at which what accumulates is computed
        self._frozen = False  # whether the accumulator of this epoch is fixed (perhaps as "nothing")
        self._freezing = False
        self._commit: SignedCommit | None = None
        self._drifted = False  # from what the plan's reducers hold; whose fault it is, the others' votes say
        self._named: tuple[Commit, Contribution] | None = None  # a commit that names what was given here, and is to be fetched

    # -- state -------------------------------------------------------------------------------------------------------------

    def adopted(self, tip: Tip) -> list[MemberAction]:
        """State of `tip` is in place, from a donor or from the disk."""
        actions = [*self._drop_plan(Reason.SUPERSEDED), *self._settle_named(tip)]
        self._start_epoch(tip, tip.lineage)
        self.phase = Phase.TRAINING
        return [*actions, Resume()]

    def replayed(self, tip: Tip) -> bool:
        """Whether that is news for the leader: catching up, the state has come to `tip`, and goes on from there."""
        if self.phase is not Phase.CATCHING_UP or self.tip is None:
            return False
        self.promised, self.tip = self._promises.moved(self.promised, self.tip, tip), tip
        return True

    def _settle_named(self, tip: Tip) -> list[MemberAction]:
        """The commit that names the contribution may be lost, with all who held it. A tip further on than it does not tell."""
        named, self._named = self._named, None
        if named is None or tip.lineage == named[0].digest or tip.epoch > named[0].ballot.epoch:
            return []
        reason = Reason.LOST_FORK if tip.epoch == named[0].ballot.epoch else Reason.MISSED_RESULTS
        return [GiveUp(reason, named[1])]

    def catch_up(self, reason: Reason) -> list[MemberAction]:
        """The driver found that this lineage is behind, or lost to a heavier one."""
        if self.phase in (Phase.CATCHING_UP, Phase.APPLYING):
            return []
        return self._fall_behind(reason, self._commit.commit if self._commit is not None else None)

    def planned_with(self, leader: str) -> tuple[str, ...]:
        """Known members of the highest attempt accepted at this epoch, for any other leader than its own: it must ask them
        all."""
        return self._planned_with if self.promised is not None and self.promised.leader != leader else ()

    def samples(self, accumulated: int) -> int:
        """What can be given to the epoch that is averaged now or next: what is frozen for it, else what has accumulated."""
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
    ) -> Report | None:
        """For the leader `following` ('' while there is none); None before the first state. `accumulated`: samples not frozen."""
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
        )

    def is_behind(self, theirs: Standing, following: str) -> bool:
        """Whether to leave for a lineage that somebody stands at: a heavier one, unless a round of the leader `following` is
        under way, which leads there anyway."""
        if self.tip is None or self.phase in (Phase.CATCHING_UP, Phase.APPLYING) or not theirs.heavier_than(self.tip.standing):
            return False
        return self.plan is None or self.plan.ballot.leader != following

    def tick(self, moved_bytes: int, now: float) -> list[MemberAction]:
        """`moved_bytes` of rounds, so far. A commit whose averages stopped coming: they are got from somebody else."""
        awaits_results = self._commit is not None and self.phase is Phase.REDUCING
        if self.plan is None or not awaits_results or moved_bytes != self._moved[0]:
            self._moved = (moved_bytes, now)
        elif now - self._moved[1] > self.plan.patience_s:
            return self.catch_up(Reason.MISSED_RESULTS)
        return []

    # -- the leader's messages -----------------------------------------------------------------------------------------------

    def on_plan(self, plan: MemberPlan) -> list[MemberAction]:
        refusal = self._refusal(plan)
        leader = plan.ballot.leader
        if refusal is not None:
            return [Send(leader, Refuse(plan.digest, refusal, self.promised.attempt if self.promised else 0))]
        actions = self._drop_plan(Reason.SUPERSEDED)
        self.promised, self._planned_with = plan.ballot, plan.known_members
        self.plan = plan
        if self._frozen or not self._gives(plan):  # who gives nothing goes on drawing, for the next attempt if this one fails
            return [*actions, *self._begin_reducing()]
        self.phase = Phase.FROZEN
        if not self._freezing:
            self._freezing = True
            actions.append(Freeze())
        return actions

    def on_abort(self, plan_digest: str, reason: Reason) -> list[MemberAction]:
        if self.plan is None or self.plan.digest != plan_digest or self.phase is Phase.APPLYING:
            return []
        return self._fall_behind(reason) if reason is Reason.DRIFT else self._drop_plan(reason)

    def on_commit(self, signed: SignedCommit) -> list[MemberAction]:
        """`signed`'s signature was checked. One of a promised-away ballot is ignored, one whose shards are here is applied."""
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
            return self._fall_behind(Reason.DRIFT, commit)  # more than half of the members agreed with each other
        self._commit = signed
        return self._apply() if self.phase is Phase.READY else []

    # -- the driver's answers ----------------------------------------------------------------------------------------------

    def frozen(self, contribution: Contribution | None) -> list[MemberAction]:
        given = () if contribution is None else (contribution,)
        if self.tip is None or not self._freezing or not self.tip.may_average(given, overlap=self.overlap):
            return []  # the epoch closed while the accumulator was being frozen
        self._freezing = False
        self._frozen = True
        self._base = self.tip.lineage
        self.contribution = contribution
        if self.plan is None:
            self.phase = Phase.FROZEN
        return self._begin_reducing() if self.plan is not None and self.phase is Phase.FROZEN else []

    def reduced(self, plan_digest: str, averages: Averages) -> list[MemberAction]:
        if self.plan is None or plan_digest != self.plan.digest or self.phase is not Phase.REDUCING:
            return []
        self.ready_for = ReadyFor(self.plan.ballot, averages)
        self.phase = Phase.READY
        actions: list[MemberAction] = [Send(self.plan.ballot.leader, Ready(averages.result(plan_digest)))]
        return [*actions, *self._apply()] if self._commit is not None else actions

    def reduce_failed(self, plan_digest: str, reason: Reason, member: str, reducer: str) -> list[MemberAction]:
        if self.plan is None or plan_digest != self.plan.digest or self.phase is not Phase.REDUCING:
            return []
        if self._commit is not None:
            return self._fall_behind(Reason.MISSED_RESULTS, self._commit.commit)
        leader = self.plan.ballot.leader
        return [*self._drop_plan(reason), Send(leader, Failed(plan_digest, reason, member, reducer))]

    def drifted(self, plan_digest: str, reducers: tuple[str, ...]) -> list[MemberAction]:
        """Instead of reduced(). What this member reduces stays there for the others, until the attempt ends."""
        if self.plan is None or plan_digest != self.plan.digest or self.phase is not Phase.REDUCING:
            return []
        if self._commit is not None:
            return self._fall_behind(Reason.DRIFT, self._commit.commit)
        self._drifted = True
        return [Send(self.plan.ballot.leader, Drifted(plan_digest, reducers))]

    def applied(self) -> list[MemberAction]:
        assert self._commit is not None, "applied() answers an Apply"
        commit = self._commit.commit
        tip = Tip.after(commit)
        keep = self._base in tip.bases(self.overlap)
        actions = self._give_up(Reason.MISSED, commit, accumulated=not keep)
        self._start_epoch(tip, self._base if keep else tip.lineage)
        self.phase = Phase.TRAINING
        return [*actions, Resume(keep)]

    def apply_failed(self) -> list[MemberAction]:
        commit = self._commit.commit if self._commit is not None else None
        self._commit = None
        self.phase = Phase.READY
        return self._fall_behind(Reason.APPLY_FAILED, commit)

    # -- inside ------------------------------------------------------------------------------------------------------------

    def _refusal(self, plan: MemberPlan) -> Reason | None:
        if self.phase in (Phase.CATCHING_UP, Phase.APPLYING) or self.tip is None:
            return Reason.NOT_CAUGHT_UP
        builds_on = (plan.ballot.parent, plan.ballot.epoch - 1, plan.codec)
        if builds_on != (self.tip.lineage, self.tip.epoch, self.tip.codec):
            return Reason.OTHER_LINEAGE
        if not plan.is_for(self.me):
            return Reason.NOT_A_MEMBER
        if self.promised is not None and plan.ballot.rank <= self.promised.rank:
            return Reason.PROMISED_HIGHER
        if plan.finishes is not None:
            if not self.tip.may_average(plan.finishes.contributions, overlap=self.overlap):
                return Reason.OTHER_LINEAGE
            mine = [c for c in plan.finishes.contributions if (c.peer, c.incarnation) == (self.me, self.incarnation)]
            return Reason.RESULTS_DIFFER if mine and mine != [self.contribution] else None
        if self._frozen and plan.gives and self.contribution is None:
            return Reason.NOTHING_TO_GIVE
        return None

    def _begin_reducing(self) -> list[MemberAction]:
        assert self.plan is not None
        plan = self.plan
        gives = self._gives(plan)
        if gives and self.contribution is None:
            # Nothing was fixed, so nothing need stay frozen: were this the only contributor, nobody would ever plan again.
            actions = self._drop_plan(Reason.NOTHING_TO_GIVE)
            self._forget_contribution()
            self.phase = Phase.TRAINING
            refusal = Refuse(plan.digest, Reason.NOTHING_TO_GIVE, plan.ballot.attempt)
            return [*actions, Send(plan.ballot.leader, refusal), Resume(keep=self.overlap)]
        given = self.contribution if gives else None
        self.phase = Phase.REDUCING
        return [Send(plan.ballot.leader, Accept(plan.digest, given)), Reduce(plan, given)]

    def _gives(self, plan: MemberPlan) -> bool:
        return plan.gives and plan.finishes is None

    def _holds(self, commit: Commit) -> bool:
        return self.ready_for is not None and self.ready_for.averages == commit.averages

    def _apply(self) -> list[MemberAction]:
        assert self._commit is not None
        if not self._holds(self._commit.commit):
            return self._fall_behind(Reason.RESULTS_DIFFER)
        self.phase = Phase.APPLYING
        return [Apply(self._commit)]

    def _drop_plan(self, reason: Reason) -> list[MemberAction]:
        plan, phase = self.plan, self.phase
        self.plan = self._commit = None
        self._drifted = False
        if plan is None:
            return []
        self.phase = Phase.FROZEN if self._frozen or self._freezing else Phase.TRAINING
        return [StopReducing(plan.digest, reason)] if phase in (Phase.REDUCING, Phase.READY) else []

    def _fall_behind(self, reason: Reason, commit: Commit | None = None) -> list[MemberAction]:
        """`commit`: the one whose state is not here; samples that it names are not given up."""
        actions = self._drop_plan(reason)
        if commit is not None and self.contribution is not None and self.contribution in commit.contributions:
            self._named = (commit, self.contribution)
        given_up = Reason.MISSED if reason in (Reason.BEHIND, Reason.MISSED_RESULTS) else reason
        actions += self._give_up(given_up, commit, accumulated=True)
        self._forget_contribution()
        self.phase = Phase.CATCHING_UP
        return [*actions, CatchUp(reason)]

    def _give_up(self, reason: Reason, commit: Commit | None, *, accumulated: bool) -> list[MemberAction]:
        """What is frozen, unless `commit` names it; and what has `accumulated`, which is nothing beside it without overlap."""
        actions: list[MemberAction] = []
        if self.contribution is not None and (commit is None or self.contribution not in commit.contributions):
            actions.append(GiveUp(reason, self.contribution))
        if accumulated and (self.contribution is None or self.overlap):
            actions.append(GiveUp(reason, None))
        return actions

    def _start_epoch(self, tip: Tip, base: str) -> None:
        self.promised = self._promises.moved(self.promised, self.tip, tip)
        self.tip, self._base = tip, base
        self.plan = self._commit = None
        self._drifted = False
        self._forget_contribution()

    def _forget_contribution(self) -> None:
        self.contribution = self.ready_for = None
        self._frozen = self._freezing = False
