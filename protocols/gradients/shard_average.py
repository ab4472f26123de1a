"""Averaging one shard, as a pure state machine: contributors' chunks in, averaged chunks out.

The reducer averages a chunk once every planned contributor has sent it, by the run's aggregation rule, in the order of
contributor ids. So the bytes do not depend on who was faster. The average is encoded once, and every member receives those bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3

from protocols.errors import BadMessageError
from protocols.gradients.aggregation import Rule
from protocols.gradients.codecs import Bytes, Codec, FloatArray
from protocols.round.planner import GRID
from protocols.round.plans import MemberPlan
from protocols.round.records import Contribution, Shard, ShardResult
from protocols.round.weights import capped_weights

MAX_CHUNK_ELEMENTS, MIN_CHUNK_ELEMENTS = 64 * GRID, 4 * GRID  # 256 KiB and 16 KiB of fp32
# A contributor may be this many chunks ahead of the slowest: that is what a reducer holds for it, decoded.
WINDOW_CHUNKS = 4
# The square of a norm is summed in single precision, in another order than its contributor did.
NORM_SLACK = 1.01


@dataclass(frozen=True)
class Chunking:
    """How shards are cut into chunks. All peers of a run cut alike.

    Chunks are small beside their shard, so that averages come down while most of the shard still goes up. They are not too
    small, since each costs some work.
    """

    chunks_of_shard: int = 64
    max_elements: int = MAX_CHUNK_ELEMENTS
    min_elements: int = MIN_CHUNK_ELEMENTS

    def elements(self, shard: Shard) -> int:
        """How many elements each chunk of this shard has; the last may have fewer."""
        blocks = -(-(shard.stop - shard.start) // (self.chunks_of_shard * GRID))
        return min(self.max_elements, max(self.min_elements, blocks * GRID))


class ShardAverage:
    """One shard of one plan. `open` each contributor, `feed` its bytes in order; `averaged` grows as chunks complete."""

    def __init__(
        self,
        plan: MemberPlan,
        shard_index: int,
        codec: Codec,
        rule: Rule,
        chunk_elements: int,
        canonical: bytes = b"",
        *,
        max_share: float = 1.0,
    ) -> None:
        """`canonical`: this reducer's values of the shard's part of the epoch's slice, sent behind the averages. `max_share`: of
        one contributor in the average."""
        self._rule = rule
        self._max_share = max_share
        self._weights: Sequence[float] = ()
        shard = plan.shards[shard_index]
        self._canonical = canonical
        self.plan = plan
        self.shard = shard
        self.codec = codec
        self.shard_bytes = codec.encoded_bytes(shard.stop - shard.start)
        self._chunk_elements = chunk_elements
        self.chunk_bytes = codec.encoded_bytes(chunk_elements)
        self._contributions: dict[str, Contribution] = {}
        self._received = dict.fromkeys(plan.contributors, 0)  # elements
        self._pending: dict[str, deque[FloatArray]] = {peer: deque() for peer in plan.contributors}
        self._squares = dict.fromkeys(plan.contributors, 0.0)  # what each has sent of its norm's square
        self._digest = blake3()
        self._sum_of_squares = 0.0
        self.averaged: list[bytes] = []
        self.averaged_bytes = 0

    @property
    def contributions(self) -> tuple[Contribution, ...] | None:
        """All planned contributions in order, or None while one has not been opened."""
        if len(self._contributions) < len(self.plan.contributors):
            return None
        return tuple(self._contributions[peer] for peer in self.plan.contributors)

    @property
    def result(self) -> ShardResult | None:
        if self.averaged_bytes < self.shard_bytes + len(self._canonical):
            return None
        return ShardResult(self.shard.start, self.shard.stop, self._digest.hexdigest(), self._sum_of_squares)

    def open(self, peer: str, contribution: Contribution | None) -> None:
        """Raises BadMessageError when the plan does not have this contributor, or it was opened before, or it names somebody
        else."""
        if peer not in self._received or contribution is None or contribution.peer != peer:
            raise BadMessageError(f"{peer} is no contributor of this plan")
        if peer in self._contributions:
            raise BadMessageError(f"{peer} contributes twice")
        self._contributions[peer] = contribution

    def expects(self, peer: str) -> int:
        """Bytes of `peer`'s next chunk; 0 when all have come."""
        return self.codec.encoded_bytes(self._next_elements(peer))

    def _next_elements(self, peer: str) -> int:
        whole = self.shard.stop - self.shard.start
        return min(self._chunk_elements, whole - self._received.get(peer, whole))

    def has_room(self, peer: str) -> bool:
        """Whether `peer`'s next chunk can be taken now: a faster contributor waits for the slowest."""
        return len(self._pending[peer]) < WINDOW_CHUNKS

    def feed(self, peer: str, data: Bytes) -> None:
        """The next bytes of `peer`'s shard: whole chunks only (the last may be shorter). They are not kept.

        Raises BadMessageError on any gap or surplus, on a value that is not finite, and once the vector is longer than its
        contributor said.
        """
        if peer not in self._contributions:
            raise BadMessageError(f"{peer} sends before it opened")
        if len(data) != self.expects(peer) or not data:
            raise BadMessageError(f"{peer} sent a chunk of {len(data)} bytes, not {self.expects(peer)}")
        elements = self._next_elements(peer)
        part = self.codec.decode(data, elements)
        self._squares[peer] += float(np.dot(part, part))
        if self._squares[peer] > NORM_SLACK * self._contributions[peer].norm ** 2:
            raise BadMessageError(f"{peer} sent a longer vector than it named")
        self._pending[peer].append(part)
        self._received[peer] += elements
        while self.contributions is not None and all(self._pending.values()):
            self._average_next()

    def _average_next(self) -> None:
        contributions = self.contributions
        assert contributions is not None
        parts = [self._pending[contribution.peer].popleft() for contribution in contributions]
        self._weights = self._weights or capped_weights([it.weight for it in contributions], self._max_share)
        average = self._rule(parts, self._weights, [it.norm for it in contributions])
        encoded = self.codec.encode(average)
        decoded = torch.from_numpy(self.codec.decode(encoded, len(average))).to(torch.float64)
        self._sum_of_squares += float(decoded @ decoded)
        self._pass(encoded)
        if self.averaged_bytes == self.shard_bytes:
            for at in range(0, len(self._canonical), self.chunk_bytes):
                self._pass(self._canonical[at : at + self.chunk_bytes])

    def _pass(self, data: bytes) -> None:
        self._digest.update(data)
        self.averaged.append(data)
        self.averaged_bytes += len(data)


class ShardRelay:
    """One shard of a plan that finishes an earlier attempt. A member that holds the averaged bytes brings them, and they go out
    unchanged. The methods are those of ShardAverage."""

    def __init__(self, plan: MemberPlan, shard_index: int, codec: Codec, chunk_elements: int, canonical: bytes = b"") -> None:
        """Only the size of `canonical` counts: the averages bring as many bytes of canonical values."""
        assert plan.finishes is not None
        self.plan = plan
        self.shard = plan.shards[shard_index]
        self._split = codec.encoded_bytes(self.shard.stop - self.shard.start)  # no chunk lies across it
        self.shard_bytes = self._split + len(canonical)
        self.contributions = plan.finishes.contributions
        self.averaged: list[bytes] = []
        self.result: ShardResult | None = None
        self.chunk_bytes = codec.encoded_bytes(chunk_elements)
        self._expected = plan.finishes.shards[shard_index]
        self._digest = blake3()
        self._received = 0
        self._from = ""

    def open(self, peer: str, contribution: Contribution | None) -> None:
        """Raises BadMessageError unless `peer` is to bring the averages, which are nobody's contribution, for the first time."""
        if peer not in (*self.plan.contributors, self.shard.reducer) or contribution is not None or self._from:
            raise BadMessageError(f"{peer} is not to bring the averages of this plan")
        self._from = peer

    def expects(self, peer: str) -> int:
        """Bytes of the next chunk from `peer`; 0 when all have come."""
        end = self._split if self._received < self._split else self.shard_bytes
        return min(self.chunk_bytes, end - self._received) if peer == self._from else 0

    def has_room(self, peer: str) -> bool:
        """Always: all of it is passed on to whoever comes."""
        return True

    def feed(self, peer: str, data: Bytes) -> None:
        """The next averaged chunk. Raises BadMessageError on any gap or surplus, and when the bytes are not those expected."""
        if len(data) != self.expects(peer) or not data:
            raise BadMessageError(f"{peer} sent a chunk of {len(data)} bytes, not {self.expects(peer)}")
        self._digest.update(data)
        self._received += len(data)
        if self._received == self.shard_bytes and self._digest.hexdigest() != self._expected.digest:
            raise BadMessageError(f"{peer} brought other averages than those to be finished")
        self.averaged.append(bytes(data))
        if self._received == self.shard_bytes:
            self.result = self._expected


def shard_average_of(
    plan: MemberPlan,
    shard_index: int,
    codec: Codec,
    rule: Rule,
    chunk_elements: int,
    canonical: bytes = b"",
    *,
    max_share: float = 1.0,
) -> ShardAverage | ShardRelay:
    """The reducer's part in this plan: to average the shard, or to pass on averages that there are already."""
    if plan.finishes is not None:
        return ShardRelay(plan, shard_index, codec, chunk_elements, canonical)
    return ShardAverage(plan, shard_index, codec, rule, chunk_elements, canonical, max_share=max_share)
