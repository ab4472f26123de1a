"""What the network's thread needs of the training thread, and what both are told about the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from peer.training.replica import Frozen, Replica


class TrainingSide(Protocol):
    """What the training thread does for the round; every method is called there, through the handover."""

    replica: Replica

    def freeze(self) -> Frozen | None:
        """The contribution, or None when there is nothing to give. Stop drawing samples, unless the run overlaps."""

    def resume(self) -> None:
        """Draw samples, from an empty accumulator, at the parameters of the tip."""

    def pause(self) -> None:
        """Stop drawing samples and forget those accumulated."""


@dataclass(frozen=True)
class Settings:
    run_digest: str
    target_batch_size: int
    max_epochs: int | None
    codecs: tuple[str, ...]  # that a commit may name for the next plan, least lossy first
    overlap: bool = False
