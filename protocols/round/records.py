"""The records of a round: ballot, contribution, result, commit, tip, report. Pure values that check themselves on creation.

Every record raises ValueError when it is created with values out of bounds.

A digest is the SHA-256 (hex) of the record's canonical JSON: keys sorted, no spaces, floats at full precision. It is computed
from the values, never from wire bytes, so that two encodings of one record cannot have two identities.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

MAX_REDUCERS = 64
# Whatever counts is bounded far below what a message can hold, so that no sum of what honest peers say leaves its bounds.
MAX_COUNT = 1 << 53  # of samples, ever; of attempts
MAX_SAMPLES = 1 << 32  # of one contribution
MAX_EPOCHS = 1 << 32
MAX_INCARNATION = (1 << 63) - 1
MAX_ELEMENTS = 1 << 48
# That a record lists, and that follow one leader. A commit of so many is read and its votes are checked in 0.1 s.
MAX_PEERS = 1024
MAX_LOSS = 1e9
MAX_NORM = 1e50
MAX_SUM_OF_SQUARES = 1e100
_DIGEST = re.compile("[0-9a-f]{64}")
# The names in gradients/codecs.py. This package must not import that module, since it imports torch.
CODEC_NAMES = frozenset(("fp64", "fp32", "fp16", "bf16", "int8", "int4"))


def digest_of(record: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a dataclass instance, or of values with such instances in them."""
    text = json.dumps(record, default=asdict, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require(condition: bool, problem: str) -> None:
    """Raise ValueError(problem) unless the condition holds."""
    if not condition:
        raise ValueError(problem)


def require_digest(value: str, what: str) -> None:
    require(_DIGEST.fullmatch(value) is not None, f"{what} is no SHA-256 digest")


@dataclass(frozen=True)
class Ballot:
    """The identity of one attempt at an epoch. Ballots of one epoch are ordered by (attempt, leader)."""

    epoch: int
    parent: str  # digest of the lineage that the attempt builds on
    attempt: int
    leader: str

    def __post_init__(self) -> None:
        require(1 <= self.epoch <= MAX_EPOCHS and 1 <= self.attempt <= MAX_COUNT, "epochs and attempts count from 1")
        require_digest(self.parent, "a ballot's parent")

    @property
    def rank(self) -> tuple[int, str]:
        return (self.attempt, self.leader)


@dataclass(frozen=True)
class Contribution:
    """Samples [first, end) of one peer's incarnation, whose gradients were summed at one lineage."""

    peer: str
    incarnation: int
    first: int
    end: int
    base: str  # digest of the lineage whose parameters the gradients were computed at
    loss: float  # mean over the samples, for the log
    norm: float = 0.0  # L2 norm of the whole vector, as it decodes; 0 for a vector of zeros

    def __post_init__(self) -> None:
        require(0 <= self.first < self.end <= MAX_COUNT, "a contribution covers at least one sample")
        require(self.weight <= MAX_SAMPLES, "a contribution is no more than a peer can draw")
        require(0 <= self.incarnation <= MAX_INCARNATION, "an incarnation is a number of 63 bits")
        require(abs(self.loss) <= MAX_LOSS, "a contribution's loss is finite")
        require(0 <= self.norm <= MAX_NORM, "a contribution's norm is finite")
        object.__setattr__(self, "norm", float(self.norm))
        require_digest(self.base, "a contribution's base")

    @property
    def weight(self) -> int:
        """The number of samples."""
        return self.end - self.first


@dataclass(frozen=True)
class Shard:
    """Elements [start, stop) of the flat parameter vector, averaged by `reducer`, which listens at `address` (host:port)."""

    reducer: str
    address: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        require(0 <= self.start < self.stop <= MAX_ELEMENTS, "a shard is not empty")


@dataclass(frozen=True)
class ShardResult:
    """Digest and norm of the averaged shard of elements [start, stop)."""

    start: int
    stop: int
    digest: str  # BLAKE3 (hex) of its encoded bytes and the canonical values behind them (gradients/slices.py)
    sum_of_squares: float  # of its decoded values, in float64, as the reducer says: for people alone

    def __post_init__(self) -> None:
        require(0 <= self.start < self.stop <= MAX_ELEMENTS, "a shard is not empty")
        require_digest(self.digest, "a shard's digest")
        require(0 <= self.sum_of_squares <= MAX_SUM_OF_SQUARES, "a shard's sum of squares is finite")


def check_shards(shards: Sequence[Shard | ShardResult], what: str) -> None:
    """Raise ValueError, which names `what`, unless there are 1 to MAX_REDUCERS shards, contiguous from element 0."""
    require(1 <= len(shards) <= MAX_REDUCERS, f"{what} are 1 to {MAX_REDUCERS}")
    starts = [0, *(shard.stop for shard in shards[:-1])]
    require([shard.start for shard in shards] == starts, f"{what} are contiguous from element 0")


def contributions_digest(contributions: tuple[Contribution, ...]) -> str:
    """Digest of a set of contributions with their counter ranges. Their order does not matter."""
    return digest_of({"contributions": sorted(contributions, key=lambda c: c.peer)})


@dataclass(frozen=True)
class Averages:
    """The outcome of an attempt: the contributions that are averaged, and the digest of every averaged shard."""

    contributions: tuple[Contribution, ...]
    shards: tuple[ShardResult, ...]

    def __post_init__(self) -> None:
        require(1 <= len(self.contributions) <= MAX_PEERS, "averages have contributions")
        peers = [contribution.peer for contribution in self.contributions]
        require(peers == sorted(set(peers)), "the contributors of averages are sorted and distinct")
        check_shards(self.shards, "averaged shards")

    @property
    def elements(self) -> int:
        return self.shards[-1].stop

    @property
    def samples(self) -> int:
        return sum(contribution.weight for contribution in self.contributions)

    def result(self, plan_digest: str) -> Result:
        """The result that a member of this plan, ready with these averages, sends to the leader."""
        return Result(plan_digest, contributions_digest(self.contributions), self.shards)


@dataclass(frozen=True)
class Result:
    """What a ready member says that it holds: every averaged shard, of exactly these contributions."""

    plan_digest: str
    contributions_digest: str
    shards: tuple[ShardResult, ...]

    def __post_init__(self) -> None:
        check_shards(self.shards, "averaged shards")


@dataclass(frozen=True)
class ReadyFor:
    """The highest attempt that a member was ready for, and the averages that it holds of it."""

    ballot: Ballot
    averages: Averages


@dataclass(frozen=True)
class Candidate:
    """A reachable peer that may lead, with the address (host:port) where it accepts calls."""

    peer: str
    address: str


@dataclass(frozen=True)
class Commit:
    """The record that closes an epoch. Its digest is the new lineage. The leader that it names signs it."""

    ballot: Ballot
    plan_digest: str
    contributions: tuple[Contribution, ...]
    members: tuple[str, ...]
    shards: tuple[ShardResult, ...]
    codec: str
    total_samples: int  # of the lineage, this epoch included: the lineage's weight
    leader: Candidate
    succession: tuple[Candidate, ...]  # who leads next when the leader is silent, in this order
    next_codec: str  # the codec of every plan that builds on this commit

    def __post_init__(self) -> None:
        require(self.leader.peer == self.ballot.leader, "a commit is led by its ballot's leader")
        require({self.codec, self.next_codec} <= CODEC_NAMES, "a commit's codecs are known")
        require_digest(self.plan_digest, "a commit's plan")
        require(self.averages.samples <= self.total_samples <= MAX_COUNT, "a lineage's weight includes the commit's samples")
        require(
            len(self.members) <= MAX_PEERS and len(self.succession) <= MAX_PEERS, "a commit lists no more peers than a run has"
        )

    @cached_property
    def averages(self) -> Averages:
        return Averages(self.contributions, self.shards)

    @property
    def samples(self) -> int:
        return self.averages.samples

    @property
    def loss(self) -> float:
        """Mean loss over all samples of the epoch."""
        return sum(c.loss * c.weight for c in self.contributions) / self.samples

    @property
    def gradient_norm(self) -> float:
        """L2 norm of the averaged gradient, as the reducers say. It is for people; who clips works it out."""
        return math.sqrt(sum(shard.sum_of_squares for shard in self.shards))

    @cached_property
    def digest(self) -> str:
        return digest_of(self)


@dataclass(frozen=True)
class Vote:
    """A member's signature over the result that it was ready with. A peer id is a hash of the key, so the key needs no
    certificate."""

    peer: str
    key: bytes  # public, P-256, compressed
    signature: bytes  # over `vote_message` of the result

    def __post_init__(self) -> None:
        require(bool(self.peer and self.signature), "a vote is somebody's")


@dataclass(frozen=True)
class SignedCommit:
    """A commit with its leader's signature over `dugnad commit <digest>`, the leader's certificate (PEM), and the votes of
    members. The digest does not cover the votes: a commit with more of them is the same commit."""

    commit: Commit
    signature: bytes
    certificate: bytes
    votes: tuple[Vote, ...] = ()

    def __post_init__(self) -> None:
        voters = [vote.peer for vote in self.votes]
        require(len(voters) <= MAX_PEERS and len(set(voters)) == len(voters), "nobody votes twice")


def vote_message(result: Result) -> bytes:
    """The bytes that a member signs once it is ready with this result."""
    return b"dugnad ready " + digest_of(result).encode()


def signed_message(commit: Commit) -> bytes:
    """The bytes that a leader signs for this commit."""
    return b"dugnad commit " + commit.digest.encode()


@dataclass(frozen=True)
class Standing:
    """How far a lineage has come. Peers tell each other the standing of their tips."""

    epoch: int
    lineage: str
    total_samples: int

    def __post_init__(self) -> None:
        require(0 <= self.epoch <= MAX_EPOCHS and 0 <= self.total_samples <= MAX_COUNT, "a standing counts from 0")
        require_digest(self.lineage, "a standing's lineage")

    def heavier_than(self, other: Standing) -> bool:
        """Whether this lineage wins a fork: the one with more committed samples does; at a tie, the smaller digest."""
        return (-self.total_samples, self.lineage) < (-other.total_samples, other.lineage)


@dataclass(frozen=True)
class Tip:
    """The end of a lineage: all that a peer needs of its last commit to go on from there."""

    epoch: int
    lineage: str
    total_samples: int
    leader: Candidate
    codec: str  # of every plan that builds on this tip
    succession: tuple[Candidate, ...] = ()
    members: tuple[str, ...] = ()  # of the last commit's plan
    parent: str = ""  # the lineage that its last commit builds on; '' at genesis

    @classmethod
    def genesis(cls, run_digest: str, parameters_sha256: str, leader: Candidate, codec: str) -> Tip:
        """The tip of a run before its first commit."""
        seed = f"dugnad genesis {run_digest} {parameters_sha256} {leader.peer}"
        return cls(epoch=0, lineage=hashlib.sha256(seed.encode()).hexdigest(), total_samples=0, leader=leader, codec=codec)

    @classmethod
    def after(cls, commit: Commit) -> Tip:
        """The tip that `commit` leads to."""
        return cls(
            commit.ballot.epoch,
            commit.digest,
            commit.total_samples,
            commit.leader,
            commit.next_codec,
            commit.succession,
            commit.members,
            commit.ballot.parent,
        )

    def bases(self, overlap: bool) -> tuple[str, ...]:
        """The lineages whose parameters the next commit's gradients may have been computed at.

        With overlap the parent is one of them: samples were drawn while the commit that led here was still averaged.
        """
        return (self.lineage, self.parent) if overlap and self.parent else (self.lineage,)

    def leads_to(self, commit: Commit, *, overlap: bool) -> bool:
        """Whether `commit` follows on this tip: parent, epoch, weight, codec and every contribution's base must fit."""
        ballot, total = commit.ballot, self.total_samples + commit.samples
        mine = (self.lineage, self.epoch + 1, total, self.codec)
        follows = (ballot.parent, ballot.epoch, commit.total_samples, commit.codec) == mine
        return follows and self.may_average(commit.contributions, overlap=overlap)

    def may_average(self, contributions: Iterable[Contribution], *, overlap: bool) -> bool:
        """Whether the bases of these contributions allow the next commit to name them."""
        return {contribution.base for contribution in contributions} <= set(self.bases(overlap))

    @property
    def standing(self) -> Standing:
        return Standing(self.epoch, self.lineage, self.total_samples)

    def succession_of(self, leader: Candidate, here: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """The order of succession in the next commit, which `leader` leads, among the peers that are `here`.

        The old order comes first, then the newcomers as given, so that no newcomer displaces anybody.
        """
        present = {candidate.peer: candidate for candidate in here if candidate.peer != leader.peer}
        old = [present.pop(c.peer) for c in (self.leader, *self.succession) if c.peer in present]
        return (*old, *present.values())


@dataclass(frozen=True)
class Report:
    """A peer's progress, sent to the leader after each micro-batch and at least every heartbeat."""

    standing: Standing
    samples: int  # accumulated and not yet committed
    samples_per_second: float
    step_s: float  # seconds of one micro-batch: a freeze may have to wait for one
    promised_attempt: int  # highest attempt accepted at this epoch, 0 if none
    moved_bytes: int  # sent and received in rounds so far: a round is alive while this grows
    caught_up: bool
    phase: str
    upload_bytes_s: float = 0.0  # moving estimate over rounds; 0 before the first measurement
    download_bytes_s: float = 0.0
    ready_for: ReadyFor | None = None
    planned_with: tuple[str, ...] = ()  # known members of the highest attempt accepted at this epoch; () for its own leader
    unreached: tuple[str, ...] = ()  # reducers that it could not reach, and has not reached since

    def __post_init__(self) -> None:
        require(0 <= self.samples <= MAX_SAMPLES and 0 <= self.promised_attempt <= MAX_COUNT, "a report counts from 0")
        require(0 <= self.moved_bytes <= MAX_INCARNATION, "a report counts from 0")
        require(len(self.planned_with) <= MAX_PEERS and len(self.unreached) <= MAX_PEERS, "a report lists no more than a run has")
        rates = (self.samples_per_second, self.upload_bytes_s, self.download_bytes_s)
        require(all(0 <= rate < 1e12 for rate in rates) and 0 <= self.step_s < 3600, "a report's rates are finite")


@dataclass(frozen=True)
class Hello:
    """The first message on a control stream. The receiver reads the sender's id off its certificate."""

    incarnation: int
    auxiliary: bool
    address: str  # where it accepts calls (host:port); '' for a client-mode peer
    bulk_address: str  # where it accepts shards (host:port); '' for a client-mode peer
    name: str
    memory_bytes: int = 0  # free memory that it may use for reducing; 0: unknown

    def __post_init__(self) -> None:
        require(0 <= self.memory_bytes <= MAX_COUNT, "memory counts from 0")
        require(0 <= self.incarnation <= MAX_INCARNATION, "an incarnation is a number of 63 bits")
        require(bool(self.address) == bool(self.bulk_address), "a reachable peer can be reached for calls and for shards")

    @property
    def reachable(self) -> bool:
        return bool(self.address)
