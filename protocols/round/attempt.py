"""A leader's books (pure): who is seated; and of the attempt under way who accepted, who is ready, how long it may take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from protocols.round.deadline import Deadline
from protocols.round.plans import Plan
from protocols.round.records import Averages, Contribution, Hello, ReadyFor, Report, Result, contributions_digest

# After more than half are ready, the others get this share of the attempt's duration so far (and at least this long) to be
# ready too.
GRACE_SHARE, GRACE_S = 0.5, 0.25


@dataclass
class Follower:
    """A peer connected to the leader."""

    hello: Hello
    heard_at: float
    report: Report | None = None
    ready_for: ReadyFor | None = None  # at this leader's tip
    has_commit: bool = False  # the one that led to this leader's tip was sent to it


@dataclass
class Attempt:
    plan: Plan
    started_at: float
    deadline: Deadline
    next_codec: str  # what its commit names
    accepted: dict[str, Contribution | None] = field(default_factory=dict)
    ready: dict[str, Result] = field(default_factory=dict)
    drifted: dict[str, tuple[str, ...]] = field(default_factory=dict)  # member -> reducers whose canonical values it refuses
    majority_at: float | None = None

    @property
    def has_majority(self) -> bool:
        return 2 * len(self.agreed) > len(self.plan.members)

    @property
    def agreed(self) -> list[str]:
        """The ready members that hold what most of them hold; a few that say otherwise are left behind by the commit."""
        results = Counter(self.ready.values())
        common = max(results, key=lambda result: (results[result], result.contributions_digest)) if results else None
        return [peer for peer, result in self.ready.items() if result == common]

    @property
    def is_split(self) -> bool:
        """Every member is ready, and no result has a majority."""
        return len(self.ready) == len(self.plan.members) and not self.has_majority

    @property
    def is_refused(self) -> bool:
        """Every member has said whether it is ready, and too many find that states have drifted apart."""
        answered = len(self.ready) + len(self.drifted)
        return bool(self.drifted) and not self.has_majority and answered == len(self.plan.members)

    def off(self) -> tuple[str, ...]:
        """Those whose state is to be given up: reducers whose values more than half of the members refuse (at a tie, the leader
        is right); else the members that refuse. Never everybody: the leader stays then. Nobody when the values were not the
        reducers' own: what is averaged afresh will tell."""
        leader, members = self.plan.ballot.leader, len(self.plan.members)
        if self.plan.finishes is not None:
            return ()
        votes = {
            reducer: {member for member, refused in self.drifted.items() if reducer in refused}
            for reducer in {shard.reducer for shard in self.plan.shards}
        }
        off = {reducer for reducer, against in votes.items() if 2 * len(against) > members}
        off = off or {reducer for reducer, against in votes.items() if 2 * len(against) == members and leader in against}
        off = off or self.drifted.keys() - {leader}
        return tuple(sorted(off if len(off) < members else off - {leader}))

    @property
    def idle(self) -> list[str]:
        """Contributors that have not moved a byte, when others have."""
        moved = self.deadline.have_moved
        return sorted(set(self.plan.contributors) - moved - {self.plan.ballot.leader}) if moved else []

    @property
    def late(self) -> list[str]:
        """Members that have not even accepted."""
        return sorted(set(self.plan.members) - self.accepted.keys())

    @property
    def averages(self) -> Averages | None:
        """What most of its ready members hold; None without any, or when the plan and the accepted contributions do not lead
        there."""
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
        """`majority_at` has come: whether those who are not ready yet are still waited for."""
        assert self.majority_at is not None
        return now - self.majority_at < max(GRACE_S, GRACE_SHARE * (self.majority_at - self.started_at))
