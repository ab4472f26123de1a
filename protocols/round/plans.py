"""The plan of one attempt at an epoch (Plan), and the part of it that each member receives (MemberPlan). Pure.

Only the leader has the whole plan. Every member knows the shards and their reducers, since it talks with every reducer. A
reducer also knows the contributors, whose chunks it waits for, and the members, which it serves. The other members have a
digest of these two lists instead. So every part has the digest of its plan, and a member can compare a commit with its plan.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from protocols.round.records import (
    CODEC_NAMES,
    MAX_INCARNATION,
    MAX_PEERS,
    Averages,
    Ballot,
    Commit,
    Shard,
    check_shards,
    digest_of,
    require,
    require_digest,
)

# Bounds of a planned time. A plan that would take longer has no planned time, and its transfers go as fast as they can.
MIN_PLANNED_S, LONGEST_PLANNED_S = 1e-3, 600.0
# Transfers of shorter plans are not paced: peers mostly wait for each other there, and a pace would only make it longer.
PACED_S = 0.5


def peers_digest(peers: tuple[str, ...]) -> str:
    """Digest of a sorted list of peers."""
    return digest_of({"peers": peers})


def _require_sorted(contributors: tuple[str, ...], members: tuple[str, ...], shards: tuple[Shard, ...]) -> None:
    require(len(members) <= MAX_PEERS, "a plan has no more members than a run has peers")
    require(list(contributors) == sorted(set(contributors)), "a plan's contributors are sorted and distinct")
    require(list(members) == sorted(set(members)), "a plan's members are sorted and distinct")
    require(set(members).issuperset(contributors), "a plan's contributors are members")
    require(set(members).issuperset(shard.reducer for shard in shards), "a plan's reducers are members")


@dataclass(frozen=True)
class PlanIdentity:
    """All that a plan's digest covers: the plan, with a digest in place of each of its two lists of peers.

    So a member can compute the digest without the lists.
    """

    run_digest: str
    ballot: Ballot
    shards: tuple[Shard, ...]
    codec: str
    patience_s: float  # a party gives the attempt up if no byte moves for this long
    incarnation: int  # of the leader's process: after a restart it must not be taken for its predecessor
    contributors_digest: str
    members_digest: str
    finishes: Averages | None = None  # of an earlier attempt; see Plan
    planned_s: float = 0.0  # duration at measured rates, which sets the pace of each transfer; 0: unknown

    def __post_init__(self) -> None:
        check_shards(self.shards, "a plan's shards")
        require(0 < self.patience_s < 1e6, "a plan's patience is positive")
        require(self.planned_s == 0 or MIN_PLANNED_S <= self.planned_s <= LONGEST_PLANNED_S, "a plan takes its time")
        require(self.codec in CODEC_NAMES, "a plan's codec is known")
        require(0 <= self.incarnation <= MAX_INCARNATION, "an incarnation is a number of 63 bits")
        require_digest(self.contributors_digest, "a plan's contributors")
        require_digest(self.members_digest, "a plan's members")
        if self.finishes is not None:
            held = [(shard.start, shard.stop) for shard in self.finishes.shards]
            require([(s.start, s.stop) for s in self.shards] == held, "a plan that finishes another has the same shards")
        for name in ("patience_s", "planned_s"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def elements(self) -> int:
        return self.shards[-1].stop

    @property
    def values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(PlanIdentity)}

    @cached_property
    def digest(self) -> str:
        return digest_of(PlanIdentity(**self.values))


@dataclass(frozen=True)
class Plan:
    """One attempt: who takes part (`members`, sorted), who of them gives (`contributors`, sorted), and who reduces what.

    The leader keeps it and sends each member its part. A plan that `finishes` an earlier attempt averages nothing. Its
    reducers hold the averages of that attempt and pass them on. If no holder can be dialled, one holder is the only
    contributor and brings the averages to the reducers.
    """

    run_digest: str
    ballot: Ballot
    contributors: tuple[str, ...]
    members: tuple[str, ...]
    shards: tuple[Shard, ...]
    codec: str
    patience_s: float
    incarnation: int
    finishes: Averages | None = None
    planned_s: float = 0.0

    def __post_init__(self) -> None:
        require(bool(self.contributors) or self.finishes is not None, "a plan has contributors")
        _require_sorted(self.contributors, self.members, self.shards)
        object.__setattr__(self, "patience_s", self.identity.patience_s)
        object.__setattr__(self, "planned_s", self.identity.planned_s)

    @cached_property
    def identity(self) -> PlanIdentity:
        """The values that the digest covers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        contributors, members = peers_digest(values.pop("contributors")), peers_digest(values.pop("members"))
        return PlanIdentity(**values, contributors_digest=contributors, members_digest=members)

    @property
    def elements(self) -> int:
        return self.shards[-1].stop

    @property
    def averaged_peers(self) -> tuple[str, ...]:
        """The peers whose contributions its commit names, sorted."""
        return tuple(c.peer for c in self.finishes.contributions) if self.finishes is not None else self.contributors

    @property
    def digest(self) -> str:
        return self.identity.digest


@dataclass(frozen=True)
class MemberPlan(PlanIdentity):
    """One member's part of a plan. Only reducers and the leader receive `contributors` and `members`; else both are empty."""

    sends: bool = False  # this member sends: its contribution or, if the plan finishes another, the averages
    contributors: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members:
            _require_sorted(self.contributors, self.members, self.shards)
            told = (peers_digest(self.contributors), peers_digest(self.members))
            require(told == (self.contributors_digest, self.members_digest), "a part's lists are those of its plan")
        else:
            require(not self.contributors, "whoever knows a plan's contributors knows its members")

    def is_for(self, me: str) -> bool:
        """Whether this can be the part of member `me`. Only a reducer can check that it is a member."""
        if not self.members:
            return all(shard.reducer != me for shard in self.shards)
        return me in self.members and self.sends == (me in self.contributors)

    @property
    def has_senders(self) -> bool:
        """Whether the plan has contributors: one that finishes another may have none."""
        return self.contributors_digest != peers_digest(())

    def rate_of(self, size: int) -> float | None:
        """The pace, in bytes/s, of a transfer of `size` bytes of a shard; None for as fast as possible.

        The transfer is spread over the time that the plan takes, so that no line is asked for more than it can carry.
        """
        return size / self.planned_s if size and self.planned_s >= PACED_S else None

    @property
    def known_members(self) -> tuple[str, ...]:
        """All members if this part lists them; else those that every member knows, the reducers and the leader."""
        return self.members or tuple(sorted({self.ballot.leader, *(shard.reducer for shard in self.shards)}))

    def is_closed_by(self, commit: Commit) -> bool:
        """Whether `commit`, which carries this plan's digest, agrees with the plan in ballot, codec, contributors and members."""
        peers = tuple(contribution.peer for contribution in commit.contributions)
        if self.finishes is not None:
            as_planned = peers == tuple(contribution.peer for contribution in self.finishes.contributions)
        else:
            as_planned = peers_digest(peers) == self.contributors_digest
        said = (commit.ballot, peers_digest(commit.members), commit.codec)
        return as_planned and said == (self.ballot, self.members_digest, self.codec)


def member_plan_of(plan: Plan, member: str) -> MemberPlan:
    """The part of `plan` that the leader sends to `member`."""
    whole = member == plan.ballot.leader or any(shard.reducer == member for shard in plan.shards)
    lists = (plan.contributors, plan.members) if whole else ((), ())
    return MemberPlan(**plan.identity.values, sends=member in plan.contributors, contributors=lists[0], members=lists[1])
