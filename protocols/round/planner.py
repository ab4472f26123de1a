"""What the next attempt at an epoch looks like: who takes part, who gives, and who reduces which part of the vector."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from protocols.round.plans import LONGEST_PLANNED_S, MIN_PLANNED_S, Plan
from protocols.round.program import Link, fastest, measured, round_seconds, worth_waiting_for
from protocols.round.records import MAX_REDUCERS, Averages, Candidate, ReadyFor, Shard, ShardResult

# Shards start at multiples of this many elements, so that a block-wise codec encodes a value the same way under every plan.
GRID = 1024
# A shard of less than a chunk is not worth a connection.
CHUNK_BLOCKS = 64
# One TCP stream cannot fill every link: fewer reducers than this have several shards each, if these have so many blocks at least.
STREAMS, STREAM_BLOCKS = 4, 16 * CHUNK_BLOCKS
# What a reducer may have to hold of each contributor's part of a shard: four chunks decoded, and one as it comes in.
WINDOW_BYTES = 5 * CHUNK_BLOCKS * GRID * 4
# Its own averaged shards it holds until the next commit, for whoever is late: so those of two epochs.
EPOCHS_HELD = 2
# Whoever gives nothing because of a slow link gives all the same in one of so many epochs: its link is measured by what it sends.
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
    memory_bytes: int = 0  # that it may use for what it reduces; 0: unknown, and taken for enough


@dataclass(frozen=True)
class Round:
    """What is to be planned."""

    epoch: int  # that it would commit
    elements: int
    vector_bytes: int  # encoded
    target_batch_size: int


@dataclass(frozen=True)
class Layout:
    """A plan without its identity."""

    members: tuple[str, ...]
    contributors: tuple[str, ...]
    shards: tuple[Shard, ...]
    finishes: Averages | None = None
    too_slow: tuple[str, ...] = ()  # members whose samples are not waited for, because of their links


def fresh(present: Mapping[str, Present], me: str, due: Round, failed: Pairs = ()) -> Layout | None:
    """Whoever has samples that are worth their time gives, those who can be dialled reduce; None without either.

    No pair of a contributor and a reducer that failed in this epoch meets again.
    """
    left_out, not_reducing = around(failed, present.keys(), me)
    members = present.keys() - left_out
    reducers = _reachable(present, members - not_reducing)
    if not reducers:  # every reducer failed for somebody: better without those members than without the epoch
        members = present.keys() - {member for member, reducer in failed if reducer == me} | {me}
        reducers = _reachable(present, {me})
    givers = frozenset(peer for peer in members if present[peer].samples > 0)
    if not givers or not reducers:
        return None
    room = {reducer.peer: _room(present[reducer.peer], givers, due.vector_bytes) for reducer in reducers}
    if not any(room.values()):  # nobody has the memory: slowly rather than not at all
        room = dict.fromkeys(room, 1.0)
    reducers = [reducer for reducer in reducers if room[reducer.peer]]
    rates = measured({peer: (present[peer].upload_bytes_s, present[peer].download_bytes_s) for peer in members})
    worth = givers
    if rates is None:
        fractions = equal_fractions(due.elements, {reducer.peer: room[reducer.peer] for reducer in reducers})
    else:
        may_reduce = {reducer.peer for reducer in reducers}
        channels = {peer: Link(*rates[peer], peer in givers, peer in may_reduce, room.get(peer, 0.0)) for peer in sorted(members)}
        speed = sum(present[peer].samples_per_second for peer in members)
        if speed and due.epoch % ALL_GIVE_EVERY:
            samples = {peer: present[peer].samples for peer in givers}
            worth = worth_waiting_for(channels, samples, due.target_batch_size / speed, due.vector_bytes)
            channels = {peer: replace(link, gives=peer in worth) for peer, link in channels.items()}
        fractions = fastest_fractions(channels, due.elements, due.vector_bytes)
    most = {peer: _max_shards(present[peer], worth, fraction * due.vector_bytes) for peer, fraction in fractions.items()}
    shards = cut_shards(due.elements, [reducer for reducer in reducers if reducer.peer in fractions], fractions, most)
    return Layout(tuple(sorted(members)), tuple(sorted(worth)), shards, too_slow=tuple(sorted(givers - worth)))


def _room(reducer: Present, givers: Collection[str], vector_bytes: float) -> float:
    """The fraction of the vector that it has the memory to reduce, in one shard."""
    if not reducer.memory_bytes:
        return 1.0
    rest_bytes = reducer.memory_bytes - WINDOW_BYTES * len(givers)
    return min(1.0, max(0.0, rest_bytes / (EPOCHS_HELD * vector_bytes)))


def _max_shards(reducer: Present, givers: Collection[str], own_bytes: float) -> int:
    """In how many that it has the memory for, when it reduces so much of the encoded vector."""
    if not reducer.memory_bytes:
        return STREAMS
    return max(0, int(reducer.memory_bytes - EPOCHS_HELD * own_bytes)) // (WINDOW_BYTES * len(givers))


def equal_fractions(elements: int, room: Mapping[str, float]) -> dict[str, float]:
    """For reducers of whom nothing is known but the fraction that each has the memory for; a vector too short for all uses
    fewer. When all together lack the memory, each takes the same multiple of what it has room for."""
    used = list(room)[: min(len(room), MAX_REDUCERS, -(-elements // GRID))]
    rest, fractions = 1.0, dict[str, float]()
    for done, peer in enumerate(sorted(used, key=room.__getitem__)):
        fractions[peer] = min(room[peer], rest / (len(used) - done))
        rest -= fractions[peer]
    return {peer: fractions[peer] / (1 - rest) for peer in used}


def fastest_fractions(channels: Mapping[str, Link], elements: int, vector_bytes: float) -> dict[str, float]:
    """The fastest split among at most MAX_REDUCERS, of which each has enough to be worth a connection."""
    blocks = -(-elements // GRID)
    reducing = {peer for peer, link in channels.items() if link.reduces}
    while True:
        planned = {peer: replace(link, reduces=peer in reducing) for peer, link in channels.items()}
        fractions = fastest(planned, vector_bytes).fractions
        # A vector so short that this would leave few to share the work: a quarter of an equal share is enough.
        least = max(1.0, min(CHUNK_BLOCKS, blocks / (4 * len(reducing))))
        largest = sorted(fractions, key=lambda peer: (-fractions[peer], peer))[:MAX_REDUCERS]
        enough = [peer for peer in largest if fractions[peer] * blocks >= least]
        # Half of the others go, the smallest: what these had may be enough for those who stay.
        if len(enough) == len(reducing) == len(largest) or len(largest) == 1:
            return dict(fractions)
        others = len(largest) - len(enough)
        reducing = set(largest[: len(largest) - max(others > 0, others // 2)])


def cut_shards(
    elements: int, reducers: Sequence[Candidate], fractions: Mapping[str, float], most: Mapping[str, int]
) -> tuple[Shard, ...]:
    """Cut `elements` (to the grid) in the order of `reducers`, so that each has its fraction; where they are few, in several
    shards of one reducer, so many at `most`."""
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


def planned_seconds(plan: Plan, present: Mapping[str, Present], vector_bytes: int) -> float:
    """How long the plan takes whoever of those who give or reduce takes longest over its share, at measured rates; 0 while some
    are not known, or when that is too long to be waited for. Whoever only receives holds nobody up."""
    needed = {*plan.contributors, *(shard.reducer for shard in plan.shards)}
    if not all(present[member].upload_bytes_s and present[member].download_bytes_s for member in needed):
        return 0.0
    channels = {peer: _planned_link(plan, peer, present[peer]) for peer in needed}
    seconds = round_seconds(channels, _planned_fractions(plan), vector_bytes, members=len(plan.members))
    return max(seconds, MIN_PLANNED_S) if seconds <= LONGEST_PLANNED_S else 0.0


def slowest_paces(plan: Plan, present: Mapping[str, Present], vector_bytes: int, seconds: float) -> dict[str, float]:
    """Half of each member's share of a plan that is to take so many `seconds`, in bytes/s both ways together: an attempt in which
    everybody moves less goes nowhere. Empty when it takes no time, or nobody knows how much."""
    if not seconds:
        return {}
    fractions = _planned_fractions(plan)
    paces = {}
    for peer in plan.members:
        link = _planned_link(plan, peer, present[peer])
        moved = sum(link.load(fractions.get(peer, 0.0), len(plan.members), len(plan.contributors)))
        if moved:
            paces[peer] = moved * vector_bytes / seconds / 2
    return paces


def _planned_link(plan: Plan, peer: str, there: Present) -> Link:
    return Link(there.upload_bytes_s, there.download_bytes_s, gives=peer in plan.contributors, reduces=True)


def _planned_fractions(plan: Plan) -> dict[str, float]:
    fractions: dict[str, float] = {}
    for shard in plan.shards:
        fractions[shard.reducer] = fractions.get(shard.reducer, 0.0) + (shard.stop - shard.start) / plan.elements
    return fractions


def _reachable(present: Mapping[str, Present], peers: Collection[str]) -> list[Candidate]:
    return [Candidate(peer, present[peer].address) for peer in sorted(peers) if present[peer].address]
