"""The records that a round is made of: ballot, contribution, plan, result, commit, tip. Pure values; each checks itself when
it is made.

A digest is the SHA-256 (hex) of the record's canonical JSON: keys sorted, no spaces, floats at full precision. It is
computed from the
values, never from wire bytes, so that two encodings of one record cannot have two identities.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

MAX_REDUCERS = 64
MAX_ATTEMPTS = 1 << 32
# Those of codecs.py, which this package does not import: it knows tensors.
CODEC_NAMES = frozenset(("fp64", "fp32", "fp16", "bf16", "int8", "int4"))


def digest_of(record: Any) -> str:
    text = json.dumps(asdict(record), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def require_digest(value: str, what: str) -> None:
    require(len(value) == 64 and all(c in "0123456789abcdef" for c in value), f"{what} is no SHA-256 digest")


@dataclass(frozen=True)
class Ballot:
    """The identity of one attempt at an epoch. Ballots of one epoch are ordered by (attempt, lead)."""

    epoch: int
    parent: str  # lineage digest that the attempt builds on
    attempt: int
    leader: str

    def __post_init__(self) -> None:
        require(self.epoch >= 1 and 1 <= self.attempt <= MAX_ATTEMPTS, "epochs and attempts count from 1")
        require_digest(self.parent, "a ballot's parent")

    @property
    def rank(self) -> tuple[int, str]:
        return (self.attempt, self.leader)


@dataclass(frozen=True)
class Contribution:
    """Samples [first, end) of one peer's incarnation, their gradient summed at the lineage `base`. `loss` is their mean, for
    the log."""

    peer: str
    incarnation: int
    first: int
    end: int
    base: str
    loss: float

    def __post_init__(self) -> None:
        require(0 <= self.first < self.end, "a contribution covers at least one sample")
        require(math.isfinite(self.loss), "a contribution's loss is finite")
        require_digest(self.base, "a contribution's base")

    @property
    def weight(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Shard:
    """Elements [start, stop) of the flat parameter vector, averaged by `reducer`, which listens at `address` (host:port)."""

    reducer: str
    address: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        require(0 <= self.start < self.stop, "a shard is not empty")


@dataclass(frozen=True)
class ShardResult:
    """The averaged shard: BLAKE3 of its encoded bytes and the canonical values behind them (slices.py), and the sum of squares
    of its decoded values (float64, for clipping)."""

    start: int
    stop: int
    digest: str
    sum_of_squares: float

    def __post_init__(self) -> None:
        require(0 <= self.start < self.stop, "a shard is not empty")
        require_digest(self.digest, "a shard's digest")
        require(math.isfinite(self.sum_of_squares) and self.sum_of_squares >= 0, "a shard's sum of squares is finite")


def _require_whole(shards: tuple[ShardResult, ...]) -> None:
    starts = [0, *(shard.stop for shard in shards)]
    require(
        1 <= len(shards) <= MAX_REDUCERS and [shard.start for shard in shards] == starts[:-1],
        "averaged shards are contiguous from element 0",
    )


@dataclass(frozen=True)
class _Contributions:
    contributions: tuple[Contribution, ...]


def contributions_digest(contributions: tuple[Contribution, ...]) -> str:
    """Identity of a set of contributions with their counter ranges (the order given does not matter)."""
    return digest_of(_Contributions(tuple(sorted(contributions, key=lambda c: c.peer))))


@dataclass(frozen=True)
class Averages:
    """What an attempt comes to: whose contributions are averaged, and every averaged shard."""

    contributions: tuple[Contribution, ...]
    shards: tuple[ShardResult, ...]

    def __post_init__(self) -> None:
        require(bool(self.contributions), "averages have contributions")
        peers = [contribution.peer for contribution in self.contributions]
        require(peers == sorted(set(peers)), "the contributors of averages are sorted and distinct")
        _require_whole(self.shards)

    @property
    def elements(self) -> int:
        return self.shards[-1].stop

    @property
    def samples(self) -> int:
        return sum(contribution.weight for contribution in self.contributions)

    def result(self, plan_digest: str) -> Result:
        """What a member of this plan, ready with these averages, tells the leader."""
        return Result(plan_digest, contributions_digest(self.contributions), self.shards)


@dataclass(frozen=True)
class Result:
    """What a member says that it holds when it is ready: every averaged shard, and whose contributions they average."""

    plan_digest: str
    contributions_digest: str
    shards: tuple[ShardResult, ...]

    def __post_init__(self) -> None:
        _require_whole(self.shards)


@dataclass(frozen=True)
class ReadyFor:
    """The highest attempt that a member was ready for, and what it holds of it."""

    ballot: Ballot
    averages: Averages


@dataclass(frozen=True)
class Candidate:
    """A reachable peer that may lead, in the order of succession."""

    peer: str
    address: str


@dataclass(frozen=True)
class Commit:
    """Closes an epoch. Its digest is the new lineage; signed by the leader that it names."""

    ballot: Ballot
    plan_digest: str
    contributions: tuple[Contribution, ...]
    members: tuple[str, ...]
    shards: tuple[ShardResult, ...]
    codec: str
    total_samples: int  # of the lineage, this epoch included: its weight
    leader: Candidate
    succession: tuple[Candidate, ...]
    next_codec: str  # of every plan that builds on this commit

    def __post_init__(self) -> None:
        require(self.leader.peer == self.ballot.leader, "a commit is led by its ballot's leader")
        require({self.codec, self.next_codec} <= CODEC_NAMES, "a commit's codecs are known")
        require_digest(self.plan_digest, "a commit's plan")
        require(self.total_samples >= self.averages.samples, "a lineage's weight includes the commit's samples")

    @cached_property
    def averages(self) -> Averages:
        return Averages(self.contributions, self.shards)

    @property
    def samples(self) -> int:
        return sum(contribution.weight for contribution in self.contributions)

    @property
    def loss(self) -> float:
        return sum(c.loss * c.weight for c in self.contributions) / self.samples

    @property
    def gradient_norm(self) -> float:
        """L2 norm of the averaged gradient, from the shards' sums of squares alone, so that everybody has the same number."""
        return math.sqrt(sum(shard.sum_of_squares for shard in self.shards))

    @cached_property
    def digest(self) -> str:
        return digest_of(self)


@dataclass(frozen=True)
class SignedCommit:
    """A commit with its leader's signature over `dugnad commit <digest>` and the leader's certificate (PEM)."""

    commit: Commit
    signature: bytes
    certificate: bytes


def signed_message(commit: Commit) -> bytes:
    return b"dugnad commit " + commit.digest.encode()


@dataclass(frozen=True)
class Standing:
    """How far a lineage has come: what peers tell each other of their tips."""

    epoch: int
    lineage: str
    total_samples: int

    def __post_init__(self) -> None:
        require(self.epoch >= 0 and self.total_samples >= 0, "a standing counts from 0")
        require_digest(self.lineage, "a standing's lineage")

    def heavier_than(self, other: Standing) -> bool:
        """Fork choice: more committed samples win; at a tie, the smaller digest."""
        if self.total_samples != other.total_samples:
            return self.total_samples > other.total_samples
        return self.lineage < other.lineage


@dataclass(frozen=True)
class Tip:
    """Where a lineage stands: what a peer needs of its last commit to go on from it."""

    epoch: int
    lineage: str
    total_samples: int
    leader: Candidate
    codec: str  # of every plan that builds on it
    succession: tuple[Candidate, ...] = ()
    members: tuple[str, ...] = ()
    parent: str = ""  # the lineage that its last commit builds on; '' at genesis

    @classmethod
    def genesis(cls, run_digest: str, parameters_sha256: str, leader: Candidate, codec: str) -> Tip:
        seed = f"dugnad genesis {run_digest} {parameters_sha256} {leader.peer}"
        return cls(epoch=0, lineage=hashlib.sha256(seed.encode()).hexdigest(), total_samples=0, leader=leader, codec=codec)

    @classmethod
    def after(cls, commit: Commit) -> Tip:
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
        """Lineages at which gradients that the next commit averages may have been computed. In a run that overlaps, samples were
        drawn while the commit that led here was still being averaged."""
        return (self.lineage, self.parent) if overlap and self.parent else (self.lineage,)

    def leads_to(self, commit: Commit, *, overlap: bool) -> bool:
        """Whether `commit` is the next on this lineage, its numbers and codec are right, and so is every contribution's base."""
        ballot, total = commit.ballot, self.total_samples + commit.samples
        mine = (self.lineage, self.epoch + 1, total, self.codec)
        follows = (ballot.parent, ballot.epoch, commit.total_samples, commit.codec) == mine
        return follows and self.may_average(commit.contributions, overlap=overlap)

    def may_average(self, contributions: Iterable[Contribution], *, overlap: bool) -> bool:
        """Whether the next commit may name these, as far as their bases go."""
        return {contribution.base for contribution in contributions} <= set(self.bases(overlap))

    @property
    def standing(self) -> Standing:
        return Standing(self.epoch, self.lineage, self.total_samples)

    def succession_of(self, leader: Candidate, here: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """What the next commit names, led by `lead`, of those who are here: the old order first, then newcomers as given:
        nobody is displaced by joining late."""
        present = {candidate.peer: candidate for candidate in here if candidate.peer != leader.peer}
        old = [present.pop(c.peer) for c in (self.leader, *self.succession) if c.peer in present]
        return (*old, *present.values())


@dataclass(frozen=True)
class Report:
    """A peer's progress, sent to the leader after each micro-batch and at least every heartbeat."""

    standing: Standing
    samples: int  # accumulated and not yet committed
    samples_per_second: float
    step_s: float  # seconds that one micro-batch takes: the longest that a freeze can be waited for
    promised_attempt: int  # highest attempt accepted at this epoch, 0 if none
    moved_bytes: int  # of rounds, sent and received so far: a round is alive while this grows
    caught_up: bool
    phase: str
    upload_bytes_s: float = 0.0  # of rounds, a moving estimate; 0 before the first was measured
    download_bytes_s: float = 0.0
    ready_for: ReadyFor | None = None
    planned_with: tuple[str, ...] = ()  # known members of the highest attempt accepted at this epoch: for any leader but its own

    def __post_init__(self) -> None:
        require(
            self.samples >= 0 and 0 <= self.promised_attempt < MAX_ATTEMPTS and self.moved_bytes >= 0, "a report counts from 0"
        )
        rates = (self.samples_per_second, self.upload_bytes_s, self.download_bytes_s)
        require(all(0 <= rate < 1e12 for rate in rates) and 0 <= self.step_s < 3600, "a report's rates are finite")


@dataclass(frozen=True)
class Hello:
    """First message on a control stream. The sender's id is read off its certificate."""

    incarnation: int
    auxiliary: bool
    address: str  # where it accepts calls; empty for a client-mode peer
    bulk_address: str  # where it accepts shards; likewise
    name: str
    memory_bytes: int = 0  # free, that it may use for what it reduces; 0: unknown

    def __post_init__(self) -> None:
        require(self.memory_bytes >= 0, "memory counts from 0")
        require(bool(self.address) == bool(self.bulk_address), "a reachable peer can be reached for calls and for shards")

    @property
    def reachable(self) -> bool:
        return bool(self.address)
