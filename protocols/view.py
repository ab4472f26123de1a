"""What an observer sees of the swarm: plain values, fit for a screen, for `dugnad status --json` and for a message."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Role = Literal["contributor", "auxiliary"]


@dataclass(frozen=True)
class PeerView:
    """One peer as last heard of. `peer` is its id in hex; `samples` counts towards the present epoch's batch."""

    peer: str
    name: str
    role: Role
    reachable: bool
    epoch: int
    samples: int
    samples_per_second: float
    state: str
    is_leader: bool

    def __post_init__(self) -> None:
        """Raises ValueError: a view comes from another machine."""
        if self.role not in ("contributor", "auxiliary"):
            raise ValueError(f"{self.role[:20]!r} is no role")
        if not (math.isfinite(self.samples_per_second) and self.samples_per_second >= 0):
            raise ValueError("a peer's speed is no rate")


@dataclass(frozen=True)
class SwarmView:
    """The whole swarm. `samples` counts towards the present batch, `total_samples` is the weight of `lineage`."""

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

    @property
    def samples_per_second(self) -> float:
        """Of all peers that are heard from."""
        return sum(peer.samples_per_second for peer in self.peers if peer.state != "silent")

    @property
    def leader(self) -> PeerView | None:
        return next((peer for peer in self.peers if peer.is_leader), None)

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["peers"] = [asdict(peer) for peer in self.peers]
        return document
