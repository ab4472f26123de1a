"""What the encoding of a contributor's own gradients has lost so far, given back with its next contribution.

So a codec that rounds coarsely delays parts of a gradient instead of losing them: error feedback (Karimireddy et al., ICML 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch

from protocols.gradients.codecs import PIECE_ELEMENTS, Codec
from protocols.round.records import Contribution

# Beyond this a residual is a symptom of something else, and given up: adding it to a finite gradient never overflows.
MOST = 2.0**100


class Sums(Protocol):
    """Gradients of samples [first, end), added up."""

    elements: int
    first: int
    end: int

    def mean(self, at: int, stop: int) -> torch.Tensor:
        """(stop - at,) of their mean, on the CPU; the caller's own."""


class ErrorFeedback:
    """Belongs to one process of one peer. It changes only when a commit names the contribution that it comes of.

    Two vectors in bfloat16, together as large as one in fp32: what is lost for certain, and what would be if the contribution
    that is out now gets committed. None of either before a codec with error feedback is used. They are of gradient sums, not
    means: contributions are weighted by their samples, and what was lost of many samples weighs more beside few.
    """

    def __init__(self, peer: str, incarnation: int) -> None:
        self._owner = (peer, incarnation)
        self._kept: torch.Tensor | None = None  # (elements,) bfloat16
        self._pending: torch.Tensor | None = None
        self._given: tuple[int, int] | None = None  # counter range of the contribution that `_pending` comes of

    def encode(self, codec: Codec, sums: Sums, out: memoryview) -> bool:
        """The contribution as it goes out, the mean gradient and what was lost before, into `out`, which has
        codec.encoded_bytes(elements) bytes. False, and nothing is kept of it, when a value is not finite."""
        samples = sums.end - sums.first
        self._given, self._pending = None, None
        lost = torch.empty(sums.elements, dtype=torch.bfloat16) if codec.error_feedback else None
        for at in range(0, sums.elements, PIECE_ELEMENTS):
            stop = min(at + PIECE_ELEMENTS, sums.elements)
            mean = sums.mean(at, stop)
            if not math.isfinite(float(mean.sum())) and not bool(mean.isfinite().all()):
                return False
            if self._kept is not None:
                mean.add_(self._kept[at:stop], alpha=1 / samples)
            encoded = out[codec.encoded_bytes(at) : codec.encoded_bytes(stop)]
            codec.encode_into(mean.numpy(), encoded)
            if lost is not None:
                decoded = torch.from_numpy(codec.decode(encoded, stop - at))
                lost[at:stop] = mean.sub_(decoded).mul_(samples)
        self._given = (sums.first, sums.end)
        if lost is not None:
            lowest, highest = (float(value) for value in lost.aminmax())
            self._pending = lost if lowest >= -MOST and highest <= MOST else None
        return True

    def settle(self, contributions: Iterable[Contribution]) -> None:
        """A commit is applied that averages these: what is out was given with it, or never will be."""
        named = {(c.peer, c.incarnation, c.first, c.end) for c in contributions}
        if self._given is not None and (*self._owner, *self._given) in named:
            self._kept = self._pending
        self._given = self._pending = None

    def forget(self) -> None:
        """The state comes from elsewhere now: whether its lineage holds what this is the rest of, nobody here can tell."""
        self._kept = self._pending = self._given = None
