"""Which elements' canonical values a round carries: blocks of the flat parameter vector, so many apart, one further each epoch.

The blocks lie on the planner's grid, to which shards align, so that every reducer carries the same small share of its own
shard, and no block lies in two shards. An epoch's slice is every `period`-th block. With 12 bytes an element (fp32, AdamW's two
slots) and fp16 both ways, 1/1024 of the elements is 0.29 % of a round's traffic, at every reducer and at every member.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protocols.gradients.codecs import Bytes, Codec
from protocols.round.planner import GRID

LONGEST_PERIOD = 1024  # epochs
# Small models carry at least this many blocks (16 Ki elements) an epoch, so that they go round in a few epochs.
MIN_BLOCKS = 16

Range = tuple[int, int]  # elements [start, stop)


@dataclass(frozen=True)
class Slices:
    """The rotation over a vector of `elements` elements. Pure: which slice an epoch carries depends on nothing else."""

    elements: int
    period: int  # epochs until an element's turn comes again

    @classmethod
    def of(cls, elements: int) -> Slices:
        return cls(elements, max(1, min(LONGEST_PERIOD, -(-elements // GRID) // MIN_BLOCKS)))

    def at(self, epoch: int, start: int = 0, stop: int | None = None) -> tuple[Range, ...]:
        """What of elements [start, stop) is carried by the round that commits `epoch`, in order. Nothing by
        the first, 1: it builds on the genesis, which everybody has bit for bit."""
        stop = self.elements if stop is None else stop
        if epoch <= 1:
            return ()
        turn = (epoch - 1) % self.period * GRID
        first = turn + max(0, start - turn) // (self.period * GRID) * self.period * GRID
        ranges = ((max(at, start), min(at + GRID, stop)) for at in range(first, stop, self.period * GRID))
        return tuple((begin, end) for begin, end in ranges if begin < end)

    def age(self, epoch: int) -> int:
        """Steps since the slice of `epoch` was last canonical, on any lineage: at its last turn, or at genesis."""
        return min(epoch - 1, self.period)


@dataclass(frozen=True)
class ResultLayout:
    """How the bytes lie that a round comes to: the averaged vector, encoded, then the canonical values of the epoch's slice.

    A shard's part is its piece of the one followed by its piece of the other; that is what its digest is of.
    """

    slices: Slices
    epoch: int
    codec: Codec  # of the averages
    value_bytes: int  # of the canonical values of one element: parameter and slots

    @property
    def averaged_bytes(self) -> int:
        return self.codec.encoded_bytes(self.slices.elements)

    @property
    def total_bytes(self) -> int:
        return self.averaged_bytes + self.canonical_bytes(0, self.slices.elements)

    def canonical_bytes(self, start: int, stop: int) -> int:
        return sum(end - begin for begin, end in self.slices.at(self.epoch, start, stop)) * self.value_bytes

    def parts(self, start: int, stop: int) -> tuple[slice, slice]:
        """Where the averages and the canonical values of elements [start, stop) lie."""
        at = self.averaged_bytes + self.canonical_bytes(0, start)
        return (
            slice(self.codec.encoded_bytes(start), self.codec.encoded_bytes(stop)),
            slice(at, at + self.canonical_bytes(start, stop)),
        )

    def chunks(self, data: Bytes, start: int, stop: int, chunk_elements: int) -> Iterator[memoryview]:
        """What `data` has of elements [start, stop), as it travels: averages, then canonical values, in views no longer than
        `chunk_elements` encoded. A contribution has no canonical values: of it the first part alone."""
        step, view = self.codec.encoded_bytes(chunk_elements), memoryview(data)
        for part in self.parts(start, stop):
            piece = view[part]
            yield from (piece[at : at + step] for at in range(0, len(piece), step))
