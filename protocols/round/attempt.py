"""What a leader knows of each follower and of the attempt under way: who accepted, who is ready, how long it may take (pure)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from protocols.round.deadline import Deadline
from protocols.round.drift_votes import Drifted, DriftVerdict, off
from protocols.round.plans import Plan
from protocols.round.records import Averages, Contribution, Hello, ReadyFor, Report, Result, Vote, contributions_digest

# Once more than half of the members are ready, the others get a grace: this share of the attempt's time so far, and at least
# this many seconds.
GRACE_SHARE, GRACE_S = 0.5, 0.25


@dataclass
class Follower:
    """A peer connected to the leader."""

    hello: Hello
    heard_at: float
    report: Report | None = None
    ready_for: ReadyFor | None = None  # the attempt at this leader's tip that it was ready for
    has_commit: bool = False  # the leader has sent it the commit that led to the leader's tip


@dataclass
class Attempt:
    """The attempt under way: its plan, and what the members have answered so far. Times are on the clock of `now`."""

    plan: Plan
    started_at: float
    deadline: Deadline
    next_codec: str  # that its commit names
    accepted: dict[str, Contribution | None] = field(default_factory=dict)
    ready: dict[str, Result] = field(default_factory=dict)
    votes: dict[str, Vote] = field(default_factory=dict)
    drifted: dict[str, Drifted] = field(default_factory=dict)  # by member
    accepted_at: float | None = None  # when the last member accepted
    majority_at: float | None = None  # when more than half of the members were ready

    @property
    def has_majority(self) -> bool:
        return 2 * len(self.agreed) > len(self.plan.members)

    @property
    def agreed(self) -> list[str]:
        """The ready members with the most common result. The commit leaves the other ready members behind."""
        results = Counter(self.ready.values())
        common = max(results, key=lambda result: (results[result], result.contributions_digest)) if results else None
        return [peer for peer, result in self.ready.items() if result == common]

    @property
    def is_split(self) -> bool:
        """Every member is ready, and no result has a majority."""
        return len(self.ready) == len(self.plan.members) and not self.has_majority

    @property
    def is_refused(self) -> bool:
        """Every member has answered, some with Drifted, and the ready ones have no majority."""
        answered = len(self.ready) + len(self.drifted)
        return bool(self.drifted) and not self.has_majority and answered == len(self.plan.members)

    def off(self) -> tuple[str, ...]:
        """The peers that must give up their state after a refused attempt, sorted.

        A plan that finishes another carries values that are not the reducers' own, so it names nobody; the next fresh attempt
        will.
        """
        if self.plan.finishes is not None:
            return ()
        refusals = {member: refusal.reducers for member, refusal in self.drifted.items()}
        return off(self.plan.members, {shard.reducer for shard in self.plan.shards}, self.plan.ballot.leader, refusals)

    @property
    def verdict(self) -> DriftVerdict:
        """What shows the members that `off` is right."""
        return DriftVerdict(self.plan.members, tuple(self.drifted.values()))

    @property
    def holders(self) -> set[str]:
        """Who was to bring the averages that this attempt finishes; nobody if it averages afresh."""
        if self.plan.finishes is None:
            return set()
        return set(self.plan.contributors) or {shard.reducer for shard in self.plan.shards}

    @property
    def idle(self) -> list[str]:
        """Contributors, other than the leader, that have not moved a byte while some member has."""
        moved = self.deadline.have_moved
        return sorted(set(self.plan.contributors) - moved - {self.plan.ballot.leader}) if moved else []

    @property
    def late(self) -> list[str]:
        """Members that have not accepted."""
        return sorted(set(self.plan.members) - self.accepted.keys())

    @property
    def averages(self) -> Averages | None:
        """What most of the ready members hold.

        None while nobody is ready, or if that does not follow from the plan and the accepted contributions.
        """
        if not self.ready:
            return None
        result = self.ready[self.agreed[0]]
        contributions = tuple(c for p in self.plan.contributors if (c := self.accepted.get(p)) is not None)
        if self.plan.finishes is not None:
            contributions = self.plan.finishes.contributions
        elif len(contributions) != len(self.plan.contributors):
            return None
        averages = Averages(contributions, result.shards)
        if averages.elements != self.plan.elements or self.plan.finishes not in (None, averages):
            return None
        return averages if contributions_digest(contributions) == result.contributions_digest else None

    def in_grace(self, now: float) -> bool:
        """Whether the leader still waits for the members that are not ready. Only once there is a majority."""
        assert self.majority_at is not None
        return now - self.majority_at < max(GRACE_S, GRACE_SHARE * (self.majority_at - self.started_at))
