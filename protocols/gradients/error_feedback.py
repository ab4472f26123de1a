"""Error feedback: a contributor adds what its codec lost to its next contribution (Karimireddy et al., ICML 2019).

So a codec that rounds coarsely delays parts of a gradient, but does not lose them. The lost part is called the residual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch

from protocols.gradients.codecs import PIECE_ELEMENTS, Codec
from protocols.round.records import Contribution

# A residual with a larger value is dropped, since something else must be wrong. Up to this, adding it to a finite gradient
# never overflows.
MOST = 2.0**100


class Sums(Protocol):
    """The contribution of samples [first, end)."""

    elements: int
    first: int
    end: int

    def mean(self, at: int, stop: int) -> torch.Tensor:
        """(stop - at,) elements of the mean over those samples, on the CPU; the caller's own."""


class ErrorFeedback:
    """Encodes the contributions of one process of one peer, and keeps the residual: what their encodings lost.

    The residual changes only when a commit names the contribution that it comes from. There are two vectors in bfloat16, which
    together take as much memory as one in fp32: the residual, and the residual if the contribution under way is committed.
    Neither exists before a codec with error feedback is used.

    Residuals are sums over samples, not means. Reducers weigh contributions by samples, so what many samples lost must weigh
    more than what few lost.
    """

    def __init__(self, peer: str, incarnation: int) -> None:
        self._owner = (peer, incarnation)
        self._kept: torch.Tensor | None = None  # (elements,) bfloat16
        self._pending: torch.Tensor | None = None
        self._given: tuple[int, int] | None = None  # counter range of the contribution that `_pending` comes from
        self._encoded = np.empty(0, np.uint8)
        self.norm = 0.0
        """L2 norm of what was encoded last, as it decodes."""

    def encode(self, codec: Codec, sums: Sums) -> memoryview | None:
        """The mean plus the residual, as codec.encoded_bytes(elements) bytes; None when a value is not finite.

        The next call overwrites these bytes.
        """
        size = codec.encoded_bytes(sums.elements)
        if len(self._encoded) != size:
            self._encoded = np.empty(size, np.uint8)
        out = self._encoded.data
        samples = sums.end - sums.first
        self._given, self._pending = None, None
        squares = 0.0
        lost = torch.empty(sums.elements, dtype=torch.bfloat16) if codec.error_feedback else None
        for at in range(0, sums.elements, PIECE_ELEMENTS):
            stop = min(at + PIECE_ELEMENTS, sums.elements)
            mean = sums.mean(at, stop)
            if not math.isfinite(float(mean.sum())) and not bool(mean.isfinite().all()):
                return None
            if self._kept is not None:
                mean.add_(self._kept[at:stop], alpha=1 / samples)
            encoded = out[codec.encoded_bytes(at) : codec.encoded_bytes(stop)]
            codec.encode_into(mean.numpy(), encoded)
            if lost is not None:
                decoded = torch.from_numpy(codec.decode(encoded, stop - at))
                squares += float(decoded @ decoded)
                lost[at:stop] = mean.sub_(decoded).mul_(samples)
            else:
                squares += float(mean @ mean)
        self.norm = math.sqrt(squares)
        self._given = (sums.first, sums.end)
        if lost is not None:
            lowest, highest = (float(value) for value in lost.aminmax())
            self._pending = lost if lowest >= -MOST and highest <= MOST else None
        return out

    def settle(self, contributions: Iterable[Contribution]) -> None:
        """Take note of an applied commit with these contributions: keep the pending residual if ours is one of them."""
        named = {(c.peer, c.incarnation, c.first, c.end) for c in contributions}
        if self._given is not None and (*self._owner, *self._given) in named:
            self._kept = self._pending
        self._given = self._pending = None

    def forget(self) -> None:
        """Drop the residual, since the state now comes from a donor.

        We cannot know whether the new lineage already contains the contributions that this residual comes from.
        """
        self._kept = self._pending = self._given = None
