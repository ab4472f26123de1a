"""What the engine needs of the training thread."""

from __future__ import annotations

from typing import Protocol

from peer.training.job_queue import JobQueue
from peer.training.replica import Frozen, Replica


class TrainingSide(Protocol):
    """The training thread as the engine sees it. The engine calls these methods as jobs, so that they run on that thread."""

    replica: Replica
    jobs: JobQueue

    def freeze(self) -> Frozen | None:
        """The contribution, or None when there is nothing to give. Stops drawing samples, unless the run overlaps."""

    def resume(self) -> None:
        """Draw samples from now on, from none accumulated, at the parameters of the tip."""

    def pause(self) -> None:
        """Stop drawing samples and discard those accumulated."""
