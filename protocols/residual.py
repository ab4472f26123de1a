"""What the encoding of a contributor's own gradients has lost so far, given back with its next contribution.

So a codec that rounds coarsely delays parts of a gradient instead of losing them: error feedback (Karimireddy et al., ICML 2019).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from protocols.codecs import PIECE_ELEMENTS, Codec
from protocols.round.records import Contribution

# Beyond this a residual is a symptom of something else, and given up: adding it to a finite gradient never overflows.
MOST = 2.0**100


class Residual:
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

    def encode(self, codec: Codec, mean: torch.Tensor, first: int, end: int) -> bytes:
        """The contribution of samples [first, end) as it goes out: `mean` and what was lost before.

        `mean` is (elements,) on the CPU, and is used up.
        """
        samples = end - first
        if self._kept is not None:
            mean.add_(self._kept, alpha=1 / samples)
        encoded = codec.encode(mean.numpy())
        self._given, self._pending = (first, end), None
        if codec.error_feedback:
            self._pending = self._lost(codec, mean, encoded, samples)
        return encoded

    @staticmethod
    def _lost(codec: Codec, mean: torch.Tensor, encoded: bytes, samples: int) -> torch.Tensor | None:
        lost = torch.empty(len(mean), dtype=torch.bfloat16)
        for at in range(0, len(mean), PIECE_ELEMENTS):
            piece = mean[at : at + PIECE_ELEMENTS]
            data = memoryview(encoded)[codec.encoded_bytes(at) : codec.encoded_bytes(at + len(piece))]
            decoded = torch.from_numpy(codec.decode(data, len(piece)))
            lost[at : at + len(piece)] = piece.sub_(decoded).mul_(samples)
        lowest, highest = (float(value) for value in lost.aminmax())
        return lost if lowest >= -MOST and highest <= MOST else None

    def settle(self, contributions: Iterable[Contribution]) -> None:
        """A commit is applied that averages these: what is out was given with it, or never will be."""
        named = {(c.peer, c.incarnation, c.first, c.end) for c in contributions}
        if self._given is not None and (*self._owner, *self._given) in named:
            self._kept = self._pending
        self._given = self._pending = None

    def forget(self) -> None:
        """The state comes from elsewhere now: whether its lineage holds what this is the rest of, nobody here can tell."""
        self._kept = self._pending = self._given = None
