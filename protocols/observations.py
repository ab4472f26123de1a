"""What a peer tells its observers (the coordinator, `dugnad status`): how the swarm stands, and what happened.

Pure values. Each checks itself when it is made and raises ValueError: it comes from another machine. Each has a wire message
of the same name and fields. `peer` is always a peer's id, in hex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from protocols.reasons import Reason
from protocols.round.records import MAX_COUNT, MAX_EPOCHS, MAX_PEERS, Ballot, Candidate, SignedCommit, Standing, require

Role = Literal["contributor", "auxiliary"]


@dataclass(frozen=True)
class PeerView:
    """One peer, as its leader last heard of it. `samples` counts towards the present epoch's batch."""

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
        require(self.role in get_args(Role), f"{self.role[:20]!r} is no role")
        require(0 <= self.epoch <= MAX_EPOCHS and 0 <= self.samples <= MAX_COUNT, "a peer's epoch and samples count from 0")
        require(0 <= self.samples_per_second < math.inf, "a peer's speed is finite")


@dataclass(frozen=True)
class Swarm:
    """How the swarm stands, as one peer sees it. Only the leader knows all `peers`."""

    standing: Standing | None
    """None before the peer has the run's state."""
    samples: int
    """Gathered towards the present epoch's batch."""
    phase: str
    peers: tuple[PeerView, ...]
    follows: Candidate | None
    """The leader; None while the peer follows nobody. Events are told by the leader alone."""
    committed_samples_per_second: float = 0.0
    """Of wall time, over recent epochs; 0 before the second commit that the peer saw."""
    epoch_s: float = 0.0
    """Seconds that an epoch takes at that pace; 0 where it is not known."""

    def __post_init__(self) -> None:
        require(0 <= self.samples <= MAX_COUNT and len(self.peers) <= MAX_PEERS, "a swarm's samples count from 0")
        require(0 <= self.committed_samples_per_second < math.inf and 0 <= self.epoch_s < math.inf, "a swarm's pace is finite")
        require(bool(self.phase), "a swarm has a phase")


@dataclass(frozen=True)
class Absence:
    """A peer that contributed nothing to an epoch, though it was there or took part in the epoch before."""

    peer: str
    reason: Reason


@dataclass(frozen=True)
class Committed:
    """An epoch was closed. Only its leader knows more than the commit; a record of others has 0 attempts."""

    signed_commit: SignedCommit
    seconds: float = 0.0
    attempts: int = 0
    absent: tuple[Absence, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.seconds < math.inf, "an epoch's duration is finite")
        require(0 <= self.attempts <= MAX_COUNT and len(self.absent) <= MAX_PEERS, "attempts count from 0")


@dataclass(frozen=True)
class Failure:
    """An attempt ended without a commit. `peer` dropped out or was at fault; it is '' if nobody was."""

    ballot: Ballot
    reason: Reason
    peer: str
    seconds: float
    """Since it was planned."""

    def __post_init__(self) -> None:
        require(0 <= self.seconds < math.inf, "an attempt's duration is finite")


@dataclass(frozen=True)
class Seen:
    """A peer came to its leader, or left it. `reason` is the reason code of leaving, '' of a peer that came."""

    peer: PeerView
    present: bool
    reason: str = ""

    def __post_init__(self) -> None:
        reasons = {""} if self.present else {reason.value for reason in Reason}
        require(self.reason in reasons, f"{self.reason[:20]!r} is no reason to leave")


@dataclass(frozen=True)
class Evaluation:
    """The loss on the held-out data at an epoch, as the coordinator measured it."""

    epoch: int
    loss: float

    def __post_init__(self) -> None:
        require(0 <= self.epoch <= MAX_EPOCHS, "epochs count from 0")


Observation = Swarm | Committed | Failure | Seen
