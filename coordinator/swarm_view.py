"""The swarm as the organiser sees it: plain values, for the screen and for `dugnad status --json`."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.observations import PeerView, Swarm
from protocols.round.records import Standing
from protocols.run_spec import RunSpec

_NOT_STARTED = Standing(epoch=0, lineage="0" * 64, total_samples=0)


@dataclass(frozen=True)
class SwarmView:
    """The whole swarm. `samples` counts towards the present batch; `total_samples` is the weight of `lineage`."""

    run: str
    run_digest: str
    epoch: int
    lineage: str
    samples: int
    target_batch_size: int
    total_samples: int
    phase: str
    peers: tuple[PeerView, ...]
    max_epochs: int | None
    loss: float | None = None
    """Training loss of the newest commit, where that was told."""

    @classmethod
    def of(cls, swarm: Swarm, spec: RunSpec, loss: float | None = None) -> SwarmView:
        """What a peer said, beside what the run's spec asks for."""
        standing = swarm.standing or _NOT_STARTED
        return cls(
            run=spec.run.name,
            run_digest=spec.digest,
            epoch=standing.epoch,
            lineage=standing.lineage,
            samples=swarm.samples,
            target_batch_size=spec.training.target_batch_size,
            total_samples=standing.total_samples,
            phase=swarm.phase,
            peers=swarm.peers,
            max_epochs=spec.training.max_epochs,
            loss=loss,
        )

    @property
    def samples_per_second(self) -> float:
        """The sum over all peers that are not silent."""
        return sum(peer.samples_per_second for peer in self.peers if peer.state != "silent")
