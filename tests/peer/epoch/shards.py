"""One vector in two shards, and what peers give to its average, for tests of either side of an all-reduce.

All contributed values are whole numbers that fp16 holds exactly, and each weight is a power of two of the total. So the mean is
exact in fp32, and only the codec rounds it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from blake3 import blake3

from peer.epoch.shard_server import ServedShard
from protocols.gradients.aggregation import weighted_mean
from protocols.gradients.codecs import CODECS, Bytes
from protocols.gradients.shard_average import Chunking, shard_average_of
from protocols.gradients.slices import ResultLayout, Slices
from protocols.round.planner import GRID
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import Ballot, Shard, ShardResult
from tests.factories import PARENT, contribution

CODEC, CHUNKING = CODECS["fp16"], Chunking(max_elements=GRID, min_elements=GRID)
ELEMENTS, CUT = 16 * GRID - 300, 9 * GRID  # nine chunks, then seven, of which the last is short
LAYOUT = ResultLayout(Slices.of(ELEMENTS), 2, CODEC, value_bytes=4)
GIVEN = {peer: contribution(peer, end=weight) for peer, weight in {"ann": 8, "bob": 8, "cid": 16}.items()}
VALUES = {peer: np.random.default_rng(seed).integers(-2048, 2049, ELEMENTS).astype(np.float32) for seed, peer in enumerate(GIVEN)}
ENCODED = {peer: CODEC.encode(values) for peer, values in VALUES.items()}
MEAN = (VALUES["ann"] + VALUES["bob"] + 2 * VALUES["cid"]) / 4
AVERAGED = CODEC.encode(MEAN)


def plan_of(reducers: tuple[str, ...] = ("ann", "bob"), **change: Any) -> Plan:
    """All of GIVEN contribute, and dag fetches. Of two reducers, the first has the elements up to CUT."""
    cuts = (0, CUT, ELEMENTS) if len(reducers) == 2 else (0, ELEMENTS)
    shards = tuple(Shard(peer, f"{peer}:1", *cuts[at : at + 2]) for at, peer in enumerate(reducers))
    members = tuple(sorted({*GIVEN, "dag", *reducers}))
    return replace(Plan("b" * 64, Ballot(2, PARENT, 1, "ann"), tuple(GIVEN), members, shards, "fp16", 10.0, 1), **change)


def canonical(shard: Shard) -> bytes:
    """The values of the shard's elements that its reducer holds, other than any other peer's."""
    return shard.reducer[:1].encode() * LAYOUT.canonical_bytes(shard.start, shard.stop)


def whole_result(plan: Plan) -> bytes:
    """What every member of the plan has to come to."""
    return AVERAGED + b"".join(map(canonical, plan.shards))


def result_of(shard: Shard) -> ShardResult:
    """What the shard's reducer has to state at the end."""
    averaged = AVERAGED[LAYOUT.parts(shard.start, shard.stop)[0]]
    squares = np.square(np.frombuffer(averaged, "<f2").astype(np.float64)).sum()
    return ShardResult(shard.start, shard.stop, blake3(averaged + canonical(shard)).hexdigest(), float(squares))


def served(plan: Plan, index: int = 0) -> ServedShard:
    """A shard as its reducer has it once the plan has come."""
    shard = plan.shards[index]
    part = member_plan_of(plan, shard.reducer)
    average = shard_average_of(part, index, CODEC, weighted_mean, CHUNKING.elements(shard), canonical(shard))
    return ServedShard(part, average)


def chunks(data: Bytes, shard: Shard) -> list[memoryview]:
    """The shard's chunks of a whole vector or result, as they travel."""
    return list(LAYOUT.chunks(data, shard.start, shard.stop, CHUNKING.elements(shard)))
