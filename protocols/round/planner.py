"""Which reducer averages which part of the vector."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.round.records import MAX_REDUCERS, Candidate, Shard

# Shards start at multiples of this many elements, so that a block-wise codec encodes a value the same way under every plan.
GRID = 1024


def equal_shards(elements: int, reducers: Sequence[Candidate]) -> tuple[Shard, ...]:
    """Cut `elements` into shards of equal size (to the grid), one a reducer; a vector too short for all uses fewer reducers."""
    blocks = -(-elements // GRID)
    used = reducers[: min(len(reducers), MAX_REDUCERS, blocks)]
    cuts = [min(elements, blocks * index // len(used) * GRID) for index in range(len(used) + 1)]
    return tuple(
        Shard(reducer.peer, reducer.address, start, stop) for reducer, start, stop in zip(used, cuts, cuts[1:], strict=False)
    )
