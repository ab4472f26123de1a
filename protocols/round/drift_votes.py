"""Who must give up its state when states have drifted apart: the members say so with signed refusals (pure).

The leader sends the refusals with its verdict, and whoever is to give up its state counts them. So no leader can make a peer do
that while less than half of the members refuse anybody's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocols.round.plans import MemberPlan, peers_digest
from protocols.round.records import MAX_PEERS, MAX_REDUCERS, Vote, require


@dataclass(frozen=True)
class Drifted:
    """Answer to a plan, instead of Ready: every shard is here, but the states have drifted apart.

    This member's state is further off the canonical values of these reducers than rounding allows.
    """

    plan_digest: str
    reducers: tuple[str, ...]
    vote: Vote | None = None  # the member's signature over `refusal_message`

    def __post_init__(self) -> None:
        require(0 < len(self.reducers) <= MAX_REDUCERS, "states have drifted apart from somebody's")


def refusal_message(drifted: Drifted) -> bytes:
    """The bytes that a member signs when it refuses the values of these reducers."""
    return f"dugnad drifted {drifted.plan_digest} {' '.join(drifted.reducers)}".encode()


@dataclass(frozen=True)
class DriftVerdict:
    """All members of an attempt, and the refusals of those who refused somebody's values."""

    members: tuple[str, ...]
    refusals: tuple[Drifted, ...]

    def __post_init__(self) -> None:
        voters = [refusal.vote.peer for refusal in self.refusals if refusal.vote is not None]
        require(0 < len(self.members) <= MAX_PEERS, "an attempt has members, and no more than a run has peers")
        require(len(voters) == len(self.refusals) == len(set(voters)), "every refusal is signed, and nobody refuses twice")
        require(set(voters) <= set(self.members), "members alone refuse")

    def condemns(self, me: str, plan: MemberPlan) -> bool:
        """Whether it shows that member `me` of this plan is to give up its state. The caller has checked the signatures."""
        if plan.finishes is not None or peers_digest(self.members) != plan.members_digest:
            return False
        if any(refusal.plan_digest != plan.digest for refusal in self.refusals):
            return False
        refusals = {refusal.vote.peer: refusal.reducers for refusal in self.refusals if refusal.vote is not None}
        reducers = {shard.reducer for shard in plan.shards}
        return 2 * len(refusals) >= len(self.members) and me in off(self.members, reducers, plan.ballot.leader, refusals)


def off(members: tuple[str, ...], reducers: set[str], leader: str, refusals: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The members that must give up their state after an attempt in which nobody's result had a majority, sorted.

    They are the reducers whose values more than half of the members refuse, and the members that took those values: they hold
    the same damage, and would hand it back. At exactly half, the leader's vote decides. Without such a reducer they are the
    members that refuse, but not the leader. If all this names every member, the leader keeps its state.
    """
    everybody = set(members)
    votes = {reducer: {member for member, refused in refusals.items() if reducer in refused} for reducer in reducers}
    refused = {reducer: against for reducer, against in votes.items() if 2 * len(against) > len(everybody)} or {
        reducer: against for reducer, against in votes.items() if 2 * len(against) == len(everybody) and leader in against
    }
    named = {peer for reducer, against in refused.items() for peer in (everybody - against) | {reducer}}
    named = named or refusals.keys() - {leader}
    return tuple(sorted(named - {leader} if named == everybody else named))
