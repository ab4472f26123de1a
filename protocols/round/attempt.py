"""A lead's books on the attempt under way: who accepted, who is ready with what, and how long it may take (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.round.deadline import Deadline
from protocols.round.records import Averages, Contribution, Plan, Result, contributions_digest

# After more than half are ready, the others get this share of the attempt's duration so far (and at least this long) to be
# ready too.
GRACE_SHARE, GRACE_S = 0.5, 0.25


@dataclass
class Attempt:
    plan: Plan
    started_at: float
    deadline: Deadline
    accepted: dict[str, Contribution | None] = field(default_factory=dict)
    ready: dict[str, Result] = field(default_factory=dict)
    majority_at: float | None = None

    @property
    def has_majority(self) -> bool:
        return 2 * len(self.ready) > len(self.plan.members)

    @property
    def late(self) -> list[str]:
        """Members that have not even accepted."""
        return sorted(set(self.plan.members) - self.accepted.keys())

    @property
    def averages(self) -> Averages | None:
        """What its ready members hold; None without any, when they differ, or when the plan and the accepted contributions do not
        lead there."""
        results = set(self.ready.values())
        if len(results) != 1:
            return None
        result = results.pop()
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
