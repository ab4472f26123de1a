"""Slices: the elements whose canonical values a round carries. An epoch's slice is every `period`-th block of the flat vector.

The slice moves one block further each epoch. Canonical values are a reducer's own values of parameters and optimizer slots;
every member takes them over, so that drift stays bounded.

The blocks lie on the planner's grid, to which shards align. So every reducer carries the same small share of its own shard, and
no block lies in two shards. An element has 12 canonical bytes in fp32 with AdamW's two slots. With fp16 both ways, 1/1024 of
the elements is then 0.29 % of a round's traffic, at every reducer and every member.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protocols.gradients.codecs import Bytes, Codec
from protocols.round.planner import GRID

LONGEST_PERIOD = 1024  # epochs
# An epoch carries at least this many blocks (16 Ki elements), so that the slice passes a small model in a few epochs.
MIN_BLOCKS = 16

Range = tuple[int, int]  # elements [start, stop)


@dataclass(frozen=True)
class Slices:
    """The rotation of slices over a vector of `elements` elements. The slice of an epoch depends on these fields alone."""

    elements: int
    period: int  # epochs between two turns of an element

    @classmethod
    def of(cls, elements: int) -> Slices:
        """The rotation that every peer uses for a vector of this length."""
        return cls(elements, max(1, min(LONGEST_PERIOD, -(-elements // GRID) // MIN_BLOCKS)))

    def at(self, epoch: int, start: int = 0, stop: int | None = None) -> tuple[Range, ...]:
        """The part of elements [start, stop) whose canonical values the round of `epoch` carries, in order.

        Empty for epoch 1, which builds on the genesis: all peers have the same bits there.
        """
        stop = self.elements if stop is None else stop
        if epoch <= 1:
            return ()
        turn = (epoch - 1) % self.period * GRID
        first = turn + max(0, start - turn) // (self.period * GRID) * self.period * GRID
        ranges = ((max(at, start), min(at + GRID, stop)) for at in range(first, stop, self.period * GRID))
        return tuple((begin, end) for begin, end in ranges if begin < end)

    def age(self, epoch: int) -> int:
        """Steps since the slice of `epoch` was last canonical: at its last turn, or at genesis. The same on every lineage."""
        return min(epoch - 1, self.period)


@dataclass(frozen=True)
class ResultLayout:
    """The layout of a round's result in bytes: the encoded averaged vector, then the canonical values of the epoch's slice.

    A shard has a piece of each. Its digest covers its averages followed by its canonical values.
    """

    slices: Slices
    epoch: int
    codec: Codec  # of the averages
    value_bytes: int  # canonical bytes of one element: parameter and optimizer slots

    @property
    def averaged_bytes(self) -> int:
        return self.codec.encoded_bytes(self.slices.elements)

    @property
    def total_bytes(self) -> int:
        return self.averaged_bytes + self.canonical_bytes(0, self.slices.elements)

    def canonical_bytes(self, start: int, stop: int) -> int:
        """Bytes of the canonical values of elements [start, stop)."""
        return sum(end - begin for begin, end in self.slices.at(self.epoch, start, stop)) * self.value_bytes

    def parts(self, start: int, stop: int) -> tuple[slice, slice]:
        """(where the averages of elements [start, stop) lie, where their canonical values lie), in bytes."""
        at = self.averaged_bytes + self.canonical_bytes(0, start)
        return (
            slice(self.codec.encoded_bytes(start), self.codec.encoded_bytes(stop)),
            slice(at, at + self.canonical_bytes(start, stop)),
        )

    def chunks(self, data: Bytes, start: int, stop: int, chunk_elements: int) -> Iterator[memoryview]:
        """The chunks of elements [start, stop) of `data`, as they travel: averages, then canonical values.

        A chunk is a view of at most `chunk_elements` encoded elements. If `data` is a contribution, it ends after the averages'
        part, and there are no chunks of canonical values.
        """
        step, view = self.codec.encoded_bytes(chunk_elements), memoryview(data)
        for part in self.parts(start, stop):
            piece = view[part]
            yield from (piece[at : at + step] for at in range(0, len(piece), step))
