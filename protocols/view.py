"""What an observer sees of the swarm: plain values, fit for a screen, for `dugnad status --json` and for a message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from protocols.errors import BadMessageError

MAX_TEXT = 512  # characters; no name, id or digest of ours comes near it
MAX_PEERS = 100_000
MAX_COUNT = 1 << 62

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
    is_lead: bool


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
    def lead(self) -> PeerView | None:
        return next((peer for peer in self.peers if peer.is_lead), None)

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["peers"] = [asdict(peer) for peer in self.peers]
        return document

    @classmethod
    def from_json(cls, document: object) -> SwarmView:
        """The inverse of `to_json`, strict: a missing, unknown or ill-typed field raises BadMessageError."""
        fields = _fields(document, cls)
        peers = fields["peers"]
        if not isinstance(peers, (list, tuple)) or len(peers) > MAX_PEERS:
            raise BadMessageError("a swarm view's peers are no list, or too many")
        return cls(
            run=_text(fields, "run"),
            run_digest=_text(fields, "run_digest"),
            epoch=_count(fields, "epoch"),
            lineage=_text(fields, "lineage"),
            samples=_count(fields, "samples"),
            target_batch_size=_count(fields, "target_batch_size"),
            total_samples=_count(fields, "total_samples"),
            phase=_text(fields, "phase"),
            peers=tuple(_peer_from_json(peer) for peer in peers),
            max_epochs=None if fields["max_epochs"] is None else _count(fields, "max_epochs"),
        )


def _peer_from_json(document: object) -> PeerView:
    fields = _fields(document, PeerView)
    role: Role
    if fields["role"] == "contributor":
        role = "contributor"
    elif fields["role"] == "auxiliary":
        role = "auxiliary"
    else:
        raise BadMessageError("a peer view's role is neither contributor nor auxiliary")
    return PeerView(
        peer=_text(fields, "peer"),
        name=_text(fields, "name"),
        role=role,
        reachable=_flag(fields, "reachable"),
        epoch=_count(fields, "epoch"),
        samples=_count(fields, "samples"),
        samples_per_second=_rate(fields, "samples_per_second"),
        state=_text(fields, "state"),
        is_lead=_flag(fields, "is_lead"),
    )


def _fields(document: object, of: type[SwarmView] | type[PeerView]) -> Mapping[str, object]:
    if not isinstance(document, Mapping):
        raise BadMessageError(f"a {of.__name__} is no JSON object")
    odd = document.keys() ^ of.__dataclass_fields__.keys()
    if odd:
        raise BadMessageError(f"a {of.__name__} has missing or unknown fields: {', '.join(sorted(map(str, odd))[:3])[:MAX_TEXT]}")
    return document


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise BadMessageError(f"{name} in a view is no text of at most {MAX_TEXT} characters")
    return value


def _flag(fields: Mapping[str, object], name: str) -> bool:
    value = fields[name]
    if not isinstance(value, bool):
        raise BadMessageError(f"{name} in a view is neither true nor false")
    return value


def _count(fields: Mapping[str, object], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise BadMessageError(f"{name} in a view is no count")
    return value


def _rate(fields: Mapping[str, object], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise BadMessageError(f"{name} in a view is no rate")
    return float(value)
