"""What peers tell each other besides the records of a round: requests, replies and notices. Pure values.

Each has a message of the same name in wire/dugnad.proto. A record says nothing about its sender: the transport knows the sender
by its certificate.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

from protocols.reasons import Reason
from protocols.round.drift_votes import DriftVerdict
from protocols.round.records import MAX_COUNT, MAX_EPOCHS, MAX_PEERS, MAX_REDUCERS, Candidate, Contribution, Standing, require

NOBODY = Candidate("", "")
# A chunk of state, or of a round's result, is never larger. A call holds one that comes in, whole, in memory.
MAX_CHUNK_BYTES = 1 << 20
MAX_CHUNKS = 20_000  # of a snapshot: 20 GB


# -- between a follower and its leader ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leave:
    """A follower leaves the run of its own accord."""


@dataclass(frozen=True)
class NotLeader:
    """The answer of a peer that does not lead."""

    follows: str  # the peer that it follows itself; '' if none
    address: str
    able: bool  # it can lead once it finds that it is next in order


@dataclass(frozen=True)
class Heartbeat:
    """How the swarm stands, twice a second."""

    standing: Standing
    samples: int  # gathered towards the batch
    samples_per_second: float
    peers: int

    def __post_init__(self) -> None:
        require(0 <= self.samples <= MAX_COUNT and 0 <= self.peers <= MAX_COUNT, "a heartbeat counts from 0")
        require(0 <= self.samples_per_second < math.inf, "a swarm's speed is finite")


@dataclass(frozen=True)
class Abort:
    """An attempt ends without a commit."""

    plan_digest: str
    reason: Reason
    sound: tuple[str, ...] = ()  # with reason DRIFT: the members whose states agree, from which the receiver is to fetch its own
    peer: str = ""  # that dropped out or is at fault
    verdict: DriftVerdict | None = None  # with reason DRIFT: what shows that the receiver's state is off

    def __post_init__(self) -> None:
        require(len(self.sound) <= MAX_PEERS, "an abort names no more peers than a run has")


@dataclass(frozen=True)
class NeedState:
    """The leader asks a follower that is further, and that nobody can dial, to push its state."""


# -- asking ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskRequest:
    """Where does this peer stand, and whom does it follow?"""


@dataclass(frozen=True)
class AskReply:
    standing: Standing
    caught_up: bool
    follows: Candidate  # NOBODY when it follows nobody
    bulk_address: str  # '' for a client-mode peer


@dataclass(frozen=True)
class DialBackRequest:
    """Does this peer reach the caller at these addresses?"""

    address: str  # for calls
    bulk_address: str  # for shards


@dataclass(frozen=True)
class DialBackReply:
    problem: str  # '' if it does


# -- state -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfferRequest:
    """Which snapshot does this peer give? The answer is a Manifest."""

    digest: str  # the snapshot whose download is under way; '' if none
    at_least: Standing | None  # nothing lighter is wanted
    strictly: bool = False  # nor that very state


@dataclass(frozen=True)
class Manifest:
    """The names of a snapshot's chunks: the SHA-256 of each. A chunk has `chunk_bytes` bytes; the last may be shorter."""

    epoch: int
    lineage: str
    total_bytes: int
    chunk_bytes: int
    chunk_sha256: tuple[bytes, ...] = field(metadata={"max_items": MAX_CHUNKS})

    def __post_init__(self) -> None:
        if not 0 < self.chunk_bytes <= MAX_CHUNK_BYTES or self.total_bytes <= 0:
            raise ValueError(f"a snapshot of {self.total_bytes} bytes in chunks of {self.chunk_bytes}")
        if len(self.chunk_sha256) != -(-self.total_bytes // self.chunk_bytes):
            raise ValueError(f"{len(self.chunk_sha256)} chunks for a snapshot of {self.total_bytes} bytes")
        require(0 <= self.epoch <= MAX_EPOCHS, "an epoch counts from 0")
        if any(len(digest) != 32 for digest in self.chunk_sha256):
            raise ValueError("a chunk's digest is not of 32 bytes")

    @property
    def digest(self) -> str:
        """The snapshot's name: SHA-256 (hex) of its chunks' digests."""
        return hashlib.sha256(b"".join(self.chunk_sha256)).hexdigest()

    def size_of(self, index: int) -> int:
        """Bytes of chunk `index`."""
        return min(self.chunk_bytes, self.total_bytes - index * self.chunk_bytes)


@dataclass(frozen=True)
class SnapshotRequest:
    """Chunks [first_chunk, first_chunk + chunks) of the snapshot with this digest; the answer is as many Chunks."""

    digest: str
    first_chunk: int
    chunks: int

    def __post_init__(self) -> None:
        require(0 <= self.first_chunk <= MAX_COUNT and 0 <= self.chunks <= MAX_COUNT, "chunks count from 0")


@dataclass(frozen=True)
class CommitsRequest:
    """The commits after this lineage; the answer is each SignedCommit, with the round's result behind it in Chunks."""

    after: str


@dataclass(frozen=True)
class Chunk:
    """A piece of a snapshot, or of a round's result."""

    offset: int  # bytes from the beginning of the whole
    data: bytes = field(metadata={"max_bytes": MAX_CHUNK_BYTES})

    def __post_init__(self) -> None:
        require(0 <= self.offset <= MAX_COUNT, "an offset counts from 0")


@dataclass(frozen=True)
class PushReply:
    """The pushed snapshot came whole."""


# -- a round's bulk traffic ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BulkHello:
    """First on every bulk connection."""

    protocol: int
    run_digest: str


@dataclass(frozen=True)
class ReduceOpen:
    """Opens a member's stream to the reducer of a shard."""

    plan_digest: str
    shard: int
    contribution: Contribution | None  # None: the member only receives, or brings the averages that the plan finishes

    def __post_init__(self) -> None:
        require(0 <= self.shard < MAX_REDUCERS, "a plan has no such shard")


@dataclass(frozen=True)
class Averaged:
    """Whose contributions are in the averaged chunks that follow."""

    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Probe:
    """How fast is the line between the two peers?"""

    up: bool  # chunks go up until an empty one; else they come down


@dataclass(frozen=True)
class Probed:
    bytes_s: float  # at which the chunks came

    def __post_init__(self) -> None:
        require(0 <= self.bytes_s < 1e12, "a probed rate is finite")


@dataclass(frozen=True)
class Refused:
    """Instead of an answer."""

    reason: str
    sentence: str


# -- observing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObserveRequest:
    """Tell me how the swarm stands and what happens, beginning with the commits after `after_epoch`."""

    after_epoch: int
    once: bool  # only how it stands now
