"""What simulated processes send each other besides the protocol's own records: dugnad.proto's messages as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocols.reasons import Reason
from protocols.round.records import Contribution, SignedCommit, Standing, Tip
from protocols.snapshot.chunks import Manifest

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NotLeader:
    follows: str
    able: bool


@dataclass(frozen=True)
class Heartbeat:
    standing: Standing


@dataclass(frozen=True)
class Abort:
    plan_digest: str
    reason: Reason


@dataclass(frozen=True)
class AskRequest:
    pass


@dataclass(frozen=True)
class Whereabouts:
    peer: str
    standing: Standing
    caught_up: bool
    follows: str
    followers: int


@dataclass(frozen=True)
class ReduceOpen:
    plan_digest: str
    shard: int
    contribution: Contribution | None


@dataclass(frozen=True)
class Chunk:
    data: bytes


@dataclass(frozen=True)
class Averaged:
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Refused:
    reason: Reason
    whom: str = ""


@dataclass(frozen=True)
class OfferRequest:
    digest: str
    at_least: Standing | None


@dataclass(frozen=True)
class Offer:
    """A manifest, and what a real snapshot says of itself in its header."""

    manifest: Manifest
    tip: Tip
    commit: SignedCommit | None


@dataclass(frozen=True)
class SnapshotRequest:
    digest: str
    first_chunk: int
    chunks: int


@dataclass(frozen=True)
class SnapshotChunk:
    index: int
    data: bytes


@dataclass(frozen=True)
class Snapshot:
    """The training state at `tip`, and the commit that led there (None at genesis)."""

    tip: Tip
    commit: SignedCommit | None
    state: Vector


@dataclass(frozen=True)
class NeedState:
    """A leader asks a client-mode peer that stands further on to bring its state."""


@dataclass(frozen=True)
class UploadOpen:
    """Opens the stream on which it does; the Snapshot follows."""


@dataclass(frozen=True)
class CommitsRequest:
    after: str


@dataclass(frozen=True)
class KeptCommit:
    signed: SignedCommit
    averaged: bytes


@dataclass(frozen=True)
class NoMore:
    """The end of what was asked for, as distinct from a stream that broke."""
