"""Asking peers where they stand, bringing them a snapshot, and fetching the commits since a lineage.

Fetching a snapshot, which takes many donors, is in fetching.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.gradients.slices import ResultLayout
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, SignedCommit, Standing
from protocols.snapshot.chunks import Manifest
from protocols.transport.channels import Channels, translated
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import MAX_TEXT, from_wire, to_wire
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
    bulk_address: str  # empty for a client-mode peer


async def ask(channels: Channels, peer: Candidate, limit_s: float = DETECTION_S) -> Whereabouts:
    """Raises UnreachableError, RefusedError (another run) or BadMessageError."""
    with translated(f"peer {peer.peer[:8]}"):
        stub = PeerStub(channels.to(peer.peer, peer.address))
        reply = await stub.Ask(pb.AskRequest(), metadata=channels.metadata, timeout=limit_s)
    follows = from_wire(Candidate, reply.follows)
    standing = from_wire(Standing, reply.standing)
    return Whereabouts(peer, standing, reply.caught_up, follows, reply.followers, reply.bulk_address[:MAX_TEXT])


async def ask_all(channels: Channels, peers: Iterable[Candidate], limit_s: float = DETECTION_S) -> list[Whereabouts]:
    """Those of `peers` that answer and are caught up, the furthest first; among equals in random order, so that donors share
    the load.

    Raises RefusedError when nobody answers and somebody refused because it is of another run or version.
    """
    answers = await asyncio.gather(*(ask(channels, peer, limit_s) for peer in peers), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, RemoteError):
            raise answer
    found = [answer for answer in answers if isinstance(answer, Whereabouts) and answer.caught_up]
    foreign = [answer for answer in answers if isinstance(answer, RefusedError) and answer.reason in _ANOTHER_SWARM]
    if not found and foreign:
        raise foreign[0]
    random.shuffle(found)
    return sorted(found, key=lambda answer: (-answer.standing.total_samples, answer.standing.lineage))


def chunk_part(manifest: Manifest, snapshot: bytes, index: int) -> pb.SnapshotPart:
    at = index * manifest.chunk_bytes
    return pb.SnapshotPart(chunk=pb.Chunk(offset=at, data=snapshot[at : at + manifest.chunk_bytes]))


def whole_snapshot(manifest: Manifest, snapshot: bytes) -> Iterator[pb.SnapshotPart]:
    """The manifest, then every chunk in order; those that come more than once, once."""
    yield pb.SnapshotPart(manifest=to_wire(manifest))
    first_places = {digest: index for index, digest in reversed(list(enumerate(manifest.chunk_sha256)))}
    for index in sorted(first_places.values()):
        yield chunk_part(manifest, snapshot, index)


async def give_snapshot(channels: Channels, to: Candidate, manifest: Manifest, snapshot: bytes) -> None:
    """Send a snapshot to a peer that asked for it with need_state. Raises RemoteError."""

    async def parts() -> AsyncIterator[pb.SnapshotPart]:
        for part in whole_snapshot(manifest, snapshot):
            await channels.bandwidth.up.turn(len(part.chunk.data))
            yield part

    with translated(f"peer {to.peer[:8]}"):
        stub = PeerStub(channels.to(to.peer, to.address))
        await stub.Give(parts(), metadata=channels.metadata)


async def fetch_commits(
    channels: Channels, kept_state: Candidate, after: str, outcome_of: Callable[[int], ResultLayout]
) -> AsyncIterator[tuple[SignedCommit, bytes]]:
    """The commits after lineage `after`, each with what its round came to, digests checked, signatures not.

    `outcome_of` says how the bytes of an epoch lie; it is asked once the epoch before has been taken.

    Raises RefusedError (reason other-lineage) when the donor's commits do not reach back that far.
    """
    whom = f"donor {kept_state.peer[:8]}"
    call = PeerStub(channels.to(kept_state.peer, kept_state.address)).Commits(
        pb.CommitsRequest(after=after), metadata=channels.metadata
    )
    signed: SignedCommit | None = None
    vector = bytearray()
    try:
        async for part in unless_idle(call, whom):
            if part.WhichOneof("kind") == "signed_commit":
                if signed is not None:
                    raise BadMessageError(f"{whom} sent a commit without its averages")
                signed, vector = from_wire(SignedCommit, part.signed_commit), bytearray()
                outcome = outcome_of(signed.commit.ballot.epoch)
                continue
            await channels.bandwidth.down.turn(len(part.chunk.data))
            vector += part.chunk.data
            if signed is None or len(vector) > outcome.total_bytes:
                raise BadMessageError(f"{whom} sent averages that belong to no commit")
            if len(vector) == outcome.total_bytes:
                check_averaged(signed, vector, outcome)
                yield signed, bytes(vector)
                signed = None
    finally:
        call.cancel()


def check_averaged(signed: SignedCommit, averaged: bytes | bytearray, outcome: ResultLayout) -> None:
    """Raises BadMessageError unless `averaged`, laid out as `outcome` says, has the digests that the commit names."""
    shards = signed.commit.shards
    if shards[-1].stop != outcome.slices.elements:
        raise BadMessageError(f"a commit of {shards[-1].stop} elements, not {outcome.slices.elements}")
    view = memoryview(averaged)
    for shard in shards:
        digest = blake3()
        for part in outcome.parts(shard.start, shard.stop):
            digest.update(view[part])
        if digest.hexdigest() != shard.digest:
            raise BadMessageError(f"the averages of elements {shard.start} to {shard.stop} do not match the commit")


async def unless_idle(call: Any, whom: str, limit_s: Callable[[], float] = lambda: IDLE_S) -> AsyncIterator[Any]:
    """The messages of a stream. Raises RefusedError (reason silent) when none comes for `limit_s()` seconds, and what
    `translated` raises."""
    parts = aiter(call)
    while True:
        patience_s = limit_s()
        try:
            with translated(whom):
                yield await asyncio.wait_for(anext(parts), patience_s)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise RefusedError(f"{whom} sent nothing for {patience_s:.0f} s", reason=Reason.SILENT.value) from error
