"""Asking peers where they stand, and fetching state from them: a snapshot, or the commits since a lineage."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.reasons import Reason
from protocols.round.lead import DETECTION_S
from protocols.round.records import Candidate, SignedCommit, Standing
from protocols.slices import Outcome
from protocols.state import Manifest
from protocols.transport.links import Links, translated
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire, to_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

Progress = Callable[[int, int], None]  # (bytes done, bytes in total)
# A transfer in which no byte comes for this long is given up and another donor is tried.
IDLE_S = 10.0
_ANOTHER_SWARM = (Reason.OTHER_RUN.value, Reason.OTHER_VERSION.value)


@dataclass(frozen=True)
class Whereabouts:
    """What a peer answers when it is asked where it stands."""

    peer: Candidate
    standing: Standing
    caught_up: bool
    follows: Candidate  # with an empty id when it follows nobody
    followers: int


async def ask(links: Links, peer: Candidate, limit_s: float = DETECTION_S) -> Whereabouts:
    """Raises UnreachableError, RefusedError (another run) or BadMessageError."""
    with translated(f"peer {peer.peer[:8]}"):
        stub = PeerStub(links.to(peer.peer, peer.address))
        reply = await stub.Ask(pb.AskRequest(), metadata=links.metadata, timeout=limit_s)
    follows = from_wire(Candidate, reply.follows)
    return Whereabouts(peer, from_wire(Standing, reply.standing), reply.caught_up, follows, reply.followers)


async def ask_all(links: Links, peers: Iterable[Candidate], limit_s: float = DETECTION_S) -> list[Whereabouts]:
    """Those of `peers` that answer and are caught up, the furthest first; among equals in random order, so that donors share
    the load.

    Raises RefusedError when nobody answers and somebody refused because it is of another run or version.
    """
    answers = await asyncio.gather(*(ask(links, peer, limit_s) for peer in peers), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, RemoteError):
            raise answer
    found = [answer for answer in answers if isinstance(answer, Whereabouts) and answer.caught_up]
    foreign = [answer for answer in answers if isinstance(answer, RefusedError) and answer.reason in _ANOTHER_SWARM]
    if not found and foreign:
        raise foreign[0]
    random.shuffle(found)
    return sorted(found, key=lambda answer: (-answer.standing.total_samples, answer.standing.lineage))


class SnapshotAssembler:
    """Puts a snapshot together from its parts: the manifest first, then every chunk in order, each checked against it."""

    def __init__(self, whom: str, max_bytes: int, progress: Progress) -> None:
        self._whom = whom
        self._max_bytes = max_bytes
        self._progress = progress
        self._manifest: Manifest | None = None
        self._received = bytearray()
        self._chunks = 0

    def take(self, part: pb.SnapshotPart) -> None:
        """Raises BadMessageError when a chunk does not match, or the snapshot is larger than `max_bytes`."""
        if part.WhichOneof("kind") == "manifest":
            self._manifest = from_wire(Manifest, part.manifest)
            if self._manifest.total_bytes > self._max_bytes:
                offered = self._manifest.total_bytes
                raise BadMessageError(f"{self._whom} offers a snapshot of {offered} bytes, more than this model can have")
            return
        if self._manifest is None or self._chunks >= len(self._manifest.chunk_sha256):
            raise BadMessageError(f"{self._whom} sent a chunk that its manifest does not name")
        if hashlib.sha256(part.chunk.data).digest() != self._manifest.chunk_sha256[self._chunks]:
            raise BadMessageError(f"{self._whom} sent chunk {self._chunks} with another digest than it promised")
        self._received += part.chunk.data
        self._chunks += 1
        self._progress(len(self._received), self._manifest.total_bytes)

    def finish(self) -> bytes:
        """Raises BadMessageError when something is missing."""
        if self._manifest is None or len(self._received) != self._manifest.total_bytes:
            raise BadMessageError(f"{self._whom}'s snapshot ended early, at {len(self._received)} bytes")
        return bytes(self._received)


async def fetch_snapshot(links: Links, donor: Candidate, max_bytes: int, progress: Progress) -> bytes:
    """The donor's newest snapshot. Raises BadMessageError (see SnapshotAssembler); UnreachableError when the donor goes."""
    whom = f"donor {donor.peer[:8]}"
    call = PeerStub(links.to(donor.peer, donor.address)).Snapshot(pb.SnapshotRequest(), metadata=links.metadata)
    assembler = SnapshotAssembler(whom, max_bytes, progress)
    try:
        async for part in _unless_idle(call, whom):
            assembler.take(part)
    finally:
        call.cancel()
    return assembler.finish()


def snapshot_parts(manifest: Manifest, snapshot: bytes, first_chunk: int = 0) -> Iterator[pb.SnapshotPart]:
    yield pb.SnapshotPart(manifest=to_wire(manifest))
    for at in range(first_chunk * manifest.chunk_bytes, len(snapshot), manifest.chunk_bytes):
        yield pb.SnapshotPart(chunk=pb.Chunk(offset=at, data=snapshot[at : at + manifest.chunk_bytes]))


async def give_snapshot(links: Links, to: Candidate, manifest: Manifest, snapshot: bytes) -> None:
    """Send a snapshot to a peer that asked for it with need_state. Raises RemoteError."""
    with translated(f"peer {to.peer[:8]}"):
        stub = PeerStub(links.to(to.peer, to.address))
        await stub.Give(snapshot_parts(manifest, snapshot), metadata=links.metadata)


async def fetch_commits(
    links: Links, donor: Candidate, after: str, outcome_of: Callable[[int], Outcome]
) -> AsyncIterator[tuple[SignedCommit, bytes]]:
    """The commits after lineage `after`, each with what its round came to, digests checked, signatures not.

    `outcome_of` says how the bytes of an epoch lie; it is asked once the epoch before has been taken.

    Raises RefusedError (reason other-lineage) when the donor's commits do not reach back that far.
    """
    whom = f"donor {donor.peer[:8]}"
    call = PeerStub(links.to(donor.peer, donor.address)).Commits(pb.CommitsRequest(after=after), metadata=links.metadata)
    signed: SignedCommit | None = None
    vector = bytearray()
    try:
        async for part in _unless_idle(call, whom):
            if part.WhichOneof("kind") == "signed_commit":
                if signed is not None:
                    raise BadMessageError(f"{whom} sent a commit without its averages")
                signed, vector = from_wire(SignedCommit, part.signed_commit), bytearray()
                outcome = outcome_of(signed.commit.ballot.epoch)
                continue
            vector += part.chunk.data
            if signed is None or len(vector) > outcome.total_bytes:
                raise BadMessageError(f"{whom} sent averages that belong to no commit")
            if len(vector) == outcome.total_bytes:
                check_averaged(signed, vector, outcome)
                yield signed, bytes(vector)
                signed = None
    finally:
        call.cancel()


def check_averaged(signed: SignedCommit, averaged: bytes | bytearray, outcome: Outcome) -> None:
    """Raises BadMessageError unless `averaged`, laid out as `outcome` says, has the digests that the commit names."""
    shards = signed.commit.shards
    if shards[-1].stop != outcome.slices.elements:
        raise BadMessageError(f"a commit of {shards[-1].stop} elements, not {outcome.slices.elements}")
    view = memoryview(averaged)
    for shard in shards:
        digest = hashlib.sha256()
        for part in outcome.parts(shard.start, shard.stop):
            digest.update(view[part])
        if digest.hexdigest() != shard.sha256:
            raise BadMessageError(f"the averages of elements {shard.start} to {shard.stop} do not match the commit")


async def _unless_idle(call: Any, whom: str) -> AsyncIterator[Any]:
    parts = aiter(call)
    while True:
        try:
            with translated(whom):
                yield await asyncio.wait_for(anext(parts), IDLE_S)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise RefusedError(f"{whom} sent nothing for {IDLE_S:.0f} s", reason=Reason.SILENT.value) from error
