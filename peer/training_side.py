"""What the network's thread needs of the training thread, and what both are told about the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from peer.replica import Frozen, Replica
from protocols.codecs import Codec


class TrainingSide(Protocol):
    """What the training thread does for the round; every method is called there, through the handover."""

    replica: Replica

    def freeze(self) -> Frozen | None:
        """Stop drawing samples; the contribution, or None when there is nothing to give."""

    def resume(self) -> None:
        """Draw samples again, from an empty accumulator."""

    def pause(self) -> None:
        """Stop drawing samples and forget those accumulated."""


@dataclass(frozen=True)
class Settings:
    run_digest: str
    target_batch_size: int
    max_epochs: int | None
    codec: Codec
