"""Layout of the next attempt at an epoch: who takes part, who gives, and who reduces which part of the vector (pure)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from protocols.round.plans import LONGEST_PLANNED_S, MIN_PLANNED_S, Plan
from protocols.round.program import Link, fastest, measured, round_seconds, worth_waiting_for
from protocols.round.records import MAX_REDUCERS, Averages, Candidate, ReadyFor, Shard, ShardResult

# Shards start at multiples of this many elements (a grid block). So a block-wise codec encodes a value alike under every plan.
GRID = 1024
# A chunk has this many grid blocks. A smaller shard is not worth a connection.
CHUNK_BLOCKS = 64
# One TCP stream cannot fill every link. With fewer reducers than STREAMS, each has several shards of at least STREAM_BLOCKS.
STREAMS, STREAM_BLOCKS = 4, 16 * CHUNK_BLOCKS
# A reducer holds this much of each contributor's part of a shard: four decoded chunks, and one that comes in.
WINDOW_BYTES = 5 * CHUNK_BLOCKS * GRID * 4
# A reducer keeps its averaged shards until the next commit, for late members. So it holds the shards of two epochs.
EPOCHS_HELD = 2
# In one of this many epochs the members with slow links give, too: only sending measures their links.
ALL_GIVE_EVERY = 16
Pairs = Collection[tuple[str, str]]  # (member, reducer)


@dataclass(frozen=True)
class Present:
    """A peer at the leader's tip, as it reported itself."""

    address: str  # for shards; '' in client mode
    samples: int
    upload_bytes_s: float = 0.0  # 0: not measured yet
    download_bytes_s: float = 0.0
    ready_for: ReadyFor | None = None
    samples_per_second: float = 0.0
    memory_bytes: int = 0  # that it may use for reducing; 0: unknown, and taken for enough
    most_share: float = 1.0  # of the vector that it is trusted to reduce


@dataclass(frozen=True)
class Round:
    """The round to plan."""

    epoch: int  # that it would commit
    elements: int  # of the vector
    vector_bytes: int  # of the encoded vector
    target_batch_size: int


@dataclass(frozen=True)
class Layout:
    """Who does what in a plan: a plan without its identity. All peers are sorted."""

    members: tuple[str, ...]
    contributors: tuple[str, ...]
    shards: tuple[Shard, ...]
    finishes: Averages | None = None
    too_slow: tuple[str, ...] = ()  # members that only receive, since their uploads would take too long


def fresh(present: Mapping[str, Present], me: str, due: Round, failed: Pairs = ()) -> Layout | None:
    """Layout of an attempt that averages afresh; None if nobody has samples or nobody can be dialled.

    The members whose samples are worth the time of their upload give. The members that can be dialled reduce. No pair of
    (member, reducer) in `failed` is repeated. `me` is the leader.
    """
    left_out, not_reducing = around(failed, present.keys(), me)
    members = present.keys() - left_out
    reducers = _reachable(present, members - not_reducing)
    if not reducers:  # every reducer failed for somebody: the leader reduces alone, without the members that it failed for
        members = present.keys() - {member for member, reducer in failed if reducer == me} | {me}
        reducers = _reachable(present, {me})
    senders = frozenset(peer for peer in members if present[peer].samples > 0)
    if not senders or not reducers:
        return None
    room = {reducer.peer: _room(present[reducer.peer], senders, due.vector_bytes) for reducer in reducers}
    if not any(room.values()):  # nobody reports enough memory; a slow round is better than none
        room = dict.fromkeys(room, 1.0)
    room = {peer: fraction for peer, fraction in room.items() if fraction}
    rates = measured({peer: (present[peer].upload_bytes_s, present[peer].download_bytes_s) for peer in members})
    worth = senders
    if rates is None:
        fractions = equal_fractions(due.elements, room)
    else:
        links = {peer: Link(*rates[peer], peer in senders, peer in room, room.get(peer, 0.0)) for peer in sorted(members)}
        speed = sum(present[peer].samples_per_second for peer in members)
        if speed and due.epoch % ALL_GIVE_EVERY:
            samples = {peer: present[peer].samples for peer in senders}
            worth = worth_waiting_for(links, samples, due.target_batch_size / speed, due.vector_bytes)
            links = {peer: replace(link, sends=peer in worth) for peer, link in links.items()}
        fractions = fastest_fractions(links, due.elements, due.vector_bytes)
    most = {peer: _max_shards(present[peer], worth, fraction * due.vector_bytes) for peer, fraction in fractions.items()}
    shards = cut_shards(due.elements, [reducer for reducer in reducers if reducer.peer in fractions], fractions, most)
    return Layout(tuple(sorted(members)), tuple(sorted(worth)), shards, too_slow=tuple(sorted(senders - worth)))


def _room(reducer: Present, senders: Collection[str], vector_bytes: float) -> float:
    """The fraction of the vector that the reducer is trusted with, and has the memory for, in one shard."""
    if not reducer.memory_bytes:
        return reducer.most_share
    rest_bytes = reducer.memory_bytes - WINDOW_BYTES * len(senders)
    return min(reducer.most_share, max(0.0, rest_bytes / (EPOCHS_HELD * vector_bytes)))


def _max_shards(reducer: Present, senders: Collection[str], own_bytes: float) -> int:
    """The number of shards that the reducer has the memory for, if it reduces `own_bytes` of the encoded vector."""
    if not reducer.memory_bytes:
        return STREAMS
    return max(0, int(reducer.memory_bytes - EPOCHS_HELD * own_bytes)) // (WINDOW_BYTES * len(senders))


def equal_fractions(elements: int, room: Mapping[str, float]) -> dict[str, float]:
    """Split the vector evenly among reducers of unmeasured rates: reducer -> fraction, sum 1.

    `room` maps each reducer to the fraction that it has the memory for. A vector with fewer grid blocks than reducers uses
    fewer of them. If all together lack the memory, each takes the same multiple of its room.
    """
    used = list(room)[: min(len(room), MAX_REDUCERS, -(-elements // GRID))]
    rest, fractions = 1.0, dict[str, float]()
    for done, peer in enumerate(sorted(used, key=room.__getitem__)):
        fractions[peer] = min(room[peer], rest / (len(used) - done))
        rest -= fractions[peer]
    return {peer: fractions[peer] / (1 - rest) for peer in used}


def fastest_fractions(links: Mapping[str, Link], elements: int, vector_bytes: float) -> dict[str, float]:
    """The fastest split among at most MAX_REDUCERS reducers: reducer -> fraction, each large enough for a connection."""
    blocks = -(-elements // GRID)
    reducing = {peer for peer, link in links.items() if link.reduces}
    while True:
        planned = {peer: replace(link, reduces=peer in reducing) for peer, link in links.items()}
        fractions = fastest(planned, vector_bytes).fractions
        # The least is a chunk. For a short vector it is a quarter of an equal share, so that several peers still reduce.
        least = max(1.0, min(CHUNK_BLOCKS, blocks / (4 * len(reducing))))
        largest = sorted(fractions, key=lambda peer: (-fractions[peer], peer))[:MAX_REDUCERS]
        enough = [peer for peer in largest if fractions[peer] * blocks >= least]
        # Drop the smaller half of the reducers with less than that. Their shares may lift the rest above the least.
        if len(enough) == len(reducing) == len(largest) or len(largest) == 1:
            return dict(fractions)
        others = len(largest) - len(enough)
        reducing = set(largest[: len(largest) - max(others > 0, others // 2)])


def cut_shards(
    elements: int, reducers: Sequence[Candidate], fractions: Mapping[str, float], most: Mapping[str, int]
) -> tuple[Shard, ...]:
    """Cut `elements` on the grid, in the order of `reducers`, so that each has its fraction.

    Where the reducers are few, each has several shards, `most[peer]` at most.
    """
    blocks = -(-elements // GRID)
    parts: list[tuple[Candidate, float]] = []
    for reducer in reducers:
        fraction = fractions[reducer.peer]
        wanted = round(STREAMS * fraction) if len(reducers) < STREAMS else 1
        count = max(1, min(wanted, int(fraction * blocks / STREAM_BLOCKS), most[reducer.peer]))
        parts += [(reducer, fraction / count)] * count
    cuts = [0, *(min(blocks, int(blocks * end + 0.5)) for end in itertools.accumulate(fraction for _, fraction in parts))]
    cuts[-1] = blocks
    return tuple(
        Shard(reducer.peer, reducer.address, start * GRID, min(elements, stop * GRID))
        for (reducer, _), start, stop in zip(parts, cuts, cuts[1:], strict=False)
        if start < stop
    )


def finishing(present: Mapping[str, Present], me: str, failed: Pairs = ()) -> Layout | None:
    """Layout of an attempt that finishes the highest one that somebody present was ready for.

    The holders of its averages pass them on. None without such an attempt, or if nobody can bring the averages to the others.
    """
    held = {peer: ready for peer, it in present.items() if (ready := it.ready_for) is not None}
    if not held:
        return None
    averages = max(held.items(), key=lambda item: (item[1].ballot.rank, item[0]))[1].averages
    left_out, not_reducing = around(failed, present.keys(), me)
    members = present.keys() - left_out
    holders = {peer for peer in members if peer in held and held[peer].averages == averages}
    senders: tuple[str, ...] = ()
    reducers = _reachable(present, holders - not_reducing)
    if not reducers:  # nobody can dial the holders, so one of them brings the averages to the members that all can dial
        senders = tuple(sorted(holders))[:1]
        reducers = _reachable(present, members - not_reducing)
    if not reducers or not holders:
        return None
    return Layout(tuple(sorted(members)), senders, suppliers(averages.shards, reducers), averages)


def suppliers(averaged: Sequence[ShardResult], holders: Sequence[Candidate]) -> tuple[Shard, ...]:
    """Deal the shards that an earlier attempt averaged out to their holders, in turn, so that all send about as much."""
    return tuple(
        Shard(holder.peer, holder.address, shard.start, shard.stop)
        for shard, holder in zip(averaged, itertools.cycle(holders), strict=False)
    )


def around(failed: Pairs, present: Collection[str], me: str) -> tuple[set[str], set[str]]:
    """(members to leave out, members not to reduce), such that no failed pair is repeated.

    The peer in most of the failed pairs goes first. At a tie a reducer goes, since it can still contribute.
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


def planned_seconds(plan: Plan, present: Mapping[str, Present], vector_bytes: int) -> float:
    """Seconds that the plan takes at measured rates: those of the slowest contributor or reducer.

    A member that only receives delays nobody, so it does not count. 0 while a rate is unknown, or above LONGEST_PLANNED_S.
    """
    needed = {*plan.contributors, *(shard.reducer for shard in plan.shards)}
    if not all(present[member].upload_bytes_s and present[member].download_bytes_s for member in needed):
        return 0.0
    links = {peer: _planned_link(plan, peer, present[peer]) for peer in needed}
    seconds = round_seconds(links, planned_fractions(plan), vector_bytes, members=len(plan.members))
    return max(seconds, MIN_PLANNED_S) if seconds <= LONGEST_PLANNED_S else 0.0


def min_rates(plan: Plan, present: Mapping[str, Present], vector_bytes: int, seconds: float) -> dict[str, float]:
    """Member -> half of the pace at which it moves its bytes in `seconds`, in bytes/s, both directions together.

    An attempt in which every member is slower than this is given up. Empty if `seconds` is 0 (unknown).
    """
    if not seconds:
        return {}
    moved = planned_bytes(plan, present, vector_bytes)
    return {peer: size / seconds / 2 for peer, size in moved.items() if size}


def planned_bytes(plan: Plan, present: Mapping[str, Present], vector_bytes: int) -> dict[str, float]:
    """Member -> bytes that it moves in this plan, both directions together."""
    fractions, moved = planned_fractions(plan), {}
    for peer in plan.members:
        link = _planned_link(plan, peer, present[peer])
        moved[peer] = vector_bytes * sum(link.load(fractions.get(peer, 0.0), len(plan.members), len(plan.contributors)))
    return moved


def _planned_link(plan: Plan, peer: str, there: Present) -> Link:
    return Link(there.upload_bytes_s, there.download_bytes_s, sends=peer in plan.contributors, reduces=True)


def planned_fractions(plan: Plan) -> dict[str, float]:
    """Reducer -> the part of the vector that it reduces in this plan; sum 1."""
    fractions: dict[str, float] = {}
    for shard in plan.shards:
        fractions[shard.reducer] = fractions.get(shard.reducer, 0.0) + (shard.stop - shard.start) / plan.elements
    return fractions


def _reachable(present: Mapping[str, Present], peers: Collection[str]) -> list[Candidate]:
    return [Candidate(peer, present[peer].address) for peer in sorted(peers) if present[peer].address]
