"""What the next attempt at an epoch looks like: who takes part, who gives, and who reduces which part of the vector."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from protocols.round.records import MAX_REDUCERS, Averages, Candidate, Plan, ReadyFor, Shard, ShardResult

# Shards start at multiples of this many elements, so that a block-wise codec encodes a value the same way under every plan.
GRID = 1024
Pairs = Collection[tuple[str, str]]  # (member, reducer)


@dataclass(frozen=True)
class Present:
    """A peer at the lead's tip, as it reported itself."""

    address: str  # for shards; '' in client mode
    samples: int
    upload_bytes_s: float = 0.0  # 0: not measured yet
    download_bytes_s: float = 0.0
    ready_for: ReadyFor | None = None


@dataclass(frozen=True)
class Layout:
    """A plan without its identity."""

    members: tuple[str, ...]
    contributors: tuple[str, ...]
    shards: tuple[Shard, ...]
    finishes: Averages | None = None


def fresh(present: Mapping[str, Present], me: str, elements: int, failed: Pairs = ()) -> Layout | None:
    """Everybody who has samples gives, everybody who can be dialled reduces; None without either.

    No pair of a contributor and a reducer that failed in this epoch meets again.
    """
    left_out, not_reducing = around(failed, present.keys(), me)
    members = present.keys() - left_out
    reducers = _reachable(present, members - not_reducing)
    if not reducers:  # every reducer failed for somebody: better without those members than without the epoch
        members = present.keys() - {member for member, reducer in failed if reducer == me} | {me}
        reducers = _reachable(present, {me})
    contributors = tuple(peer for peer in sorted(members) if present[peer].samples > 0)
    if not contributors or not reducers:
        return None
    return Layout(tuple(sorted(members)), contributors, equal_shards(elements, reducers))


def finishing(present: Mapping[str, Present], me: str, failed: Pairs = ()) -> Layout | None:
    """The highest attempt that somebody present was ready for: whoever holds its averages passes them on.

    None when there is none, or nobody is left who could bring them to the others.
    """
    held = {peer: ready for peer, it in present.items() if (ready := it.ready_for) is not None}
    if not held:
        return None
    averages = max(held.items(), key=lambda item: (item[1].ballot.rank, item[0]))[1].averages
    left_out, not_reducing = around(failed, present.keys(), me)
    members = present.keys() - left_out
    holders = {peer for peer in members if peer in held and held[peer].averages == averages}
    givers: tuple[str, ...] = ()
    reducers = _reachable(present, holders - not_reducing)
    if not reducers:  # nobody can dial the holders: one of them brings the averages to those whom everybody can
        givers = tuple(sorted(holders))[:1]
        reducers = _reachable(present, members - not_reducing)
    if not reducers or not holders:
        return None
    return Layout(tuple(sorted(members)), givers, suppliers(averages.shards, reducers), averages)


def equal_shards(elements: int, reducers: Sequence[Candidate]) -> tuple[Shard, ...]:
    """Cut `elements` into shards of equal size (to the grid), one a reducer; a vector too short for all uses fewer reducers."""
    blocks = -(-elements // GRID)
    used = reducers[: min(len(reducers), MAX_REDUCERS, blocks)]
    cuts = [min(elements, blocks * index // len(used) * GRID) for index in range(len(used) + 1)]
    return tuple(
        Shard(reducer.peer, reducer.address, start, stop) for reducer, start, stop in zip(used, cuts, cuts[1:], strict=False)
    )


def suppliers(averaged: Sequence[ShardResult], holders: Sequence[Candidate]) -> tuple[Shard, ...]:
    """Who passes on which of the shards that an earlier attempt averaged: in turn, so that nobody sends much more than others."""
    return tuple(
        Shard(holder.peer, holder.address, shard.start, shard.stop)
        for shard, holder in zip(averaged, itertools.cycle(holders), strict=False)
    )


def around(failed: Pairs, present: Collection[str], me: str) -> tuple[set[str], set[str]]:
    """(members to leave out, members not to reduce) such that no pair that failed in this epoch meets again.

    Whoever stands in most of the failed pairs goes first; at a tie a reducer, since it can still contribute.
    """
    pairs = {(member, reducer) for member, reducer in failed if member in present and reducer in present}
    left_out: set[str] = set()
    not_reducing: set[str] = set()
    while pairs:
        as_member = Counter(member for member, _ in pairs)
        as_reducer = Counter(reducer for _, reducer in pairs)
        member, member_count = min(as_member.items(), key=lambda item: (-item[1], item[0]))
        reducer, reducer_count = min(as_reducer.items(), key=lambda item: (-item[1], item[0]))
        if member_count > reducer_count and member != me:
            left_out.add(member)
        else:
            not_reducing.add(reducer)
        pairs = {pair for pair in pairs if pair[0] not in left_out and pair[1] not in not_reducing}
    return left_out, not_reducing


def slowest_paces(plan: Plan, present: Mapping[str, Present], vector_bytes: int) -> dict[str, float]:
    """Half the planned rate of each member, in bytes/s both ways together: an attempt in which everybody moves less goes nowhere.

    The plan takes as long as the member whose share of it takes longest at its measured rates. Empty while somebody's rates have
    not been measured.
    """
    loads = {member: _load(plan, member, vector_bytes) for member in plan.members}
    seconds = [0.0]
    for member, (up, down) in loads.items():
        peer = present[member]
        if not peer.upload_bytes_s or not peer.download_bytes_s:
            return {}
        seconds.append(max(up / peer.upload_bytes_s, down / peer.download_bytes_s))
    planned_s = max(seconds)
    return {member: (up + down) / planned_s / 2 for member, (up, down) in loads.items() if up + down} if planned_s else {}


def _load(plan: Plan, member: str, vector_bytes: int) -> tuple[float, float]:
    """Bytes that `member` sends and receives in `plan`, whose encoded vector has `vector_bytes`."""
    own = sum(shard.stop - shard.start for shard in plan.shards if shard.reducer == member) / plan.elements * vector_bytes
    others = vector_bytes - own
    given = len(plan.contributors) - (member in plan.contributors)
    return (others if member in plan.contributors else 0.0) + own * (len(plan.members) - 1), others + own * given


def _reachable(present: Mapping[str, Present], peers: Collection[str]) -> list[Candidate]:
    return [Candidate(peer, present[peer].address) for peer in sorted(peers) if present[peer].address]
