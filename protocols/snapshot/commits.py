"""Fetching commits: with their results, to replay them; without, to learn which lineage a peer came by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from blake3 import blake3

from protocols.errors import BadMessageError, UnreachableError
from protocols.gradients.slices import ResultLayout
from protocols.messages import Chunk, CommitsRequest, ObserveRequest
from protocols.observations import Committed, Swarm
from protocols.round.records import Candidate, SignedCommit
from protocols.signing import Signer
from protocols.snapshot.fetch import IDLE_S
from protocols.transport.interface import Transport, receive_within

MAX_RECORDS = 4096
RECORDS_S = 10.0


async def fetch_commits(
    transport: Transport, donor: Candidate, after: str, layout_of: Callable[[int], ResultLayout]
) -> AsyncIterator[tuple[SignedCommit, bytes]]:
    """The commits after lineage `after`, each with its round's result; digests are checked, signatures are not.

    `layout_of` says how the bytes of an epoch's result lie. It is asked once the commit before has been taken.

    Raises RefusedError (reason other-lineage) when the donor's commits do not reach back that far.
    """
    whom = f"donor {donor.peer[:8]}"
    signed: SignedCommit | None = None
    result = bytearray()
    async with transport.open(donor, CommitsRequest(after)) as stream:
        while (record := await receive_within(stream, IDLE_S)) is not None:
            if isinstance(record, SignedCommit):
                if signed is not None:
                    raise BadMessageError(f"{whom} sent a commit without its averages")
                signed, result = record, bytearray()
                layout = layout_of(signed.commit.ballot.epoch)
                continue
            if not isinstance(record, Chunk):
                raise BadMessageError(f"{whom} sent a {type(record).__name__} among its commits")
            await transport.bandwidth.down.turn(len(record.data))
            result += record.data
            if signed is None or len(result) > layout.total_bytes:
                raise BadMessageError(f"{whom} sent averages that belong to no commit")
            if len(result) == layout.total_bytes:
                check_result(signed, result, layout)
                yield signed, bytes(result)
                signed = None


def check_result(signed: SignedCommit, result: bytes | bytearray, layout: ResultLayout) -> None:
    """Raises BadMessageError unless `result`, laid out as `layout` says, has the digests that the commit names."""
    shards = signed.commit.shards
    if shards[-1].stop != layout.slices.elements:
        raise BadMessageError(f"a commit of {shards[-1].stop} elements, not {layout.slices.elements}")
    view = memoryview(result)
    for shard in shards:
        digest = blake3()
        for part in layout.parts(shard.start, shard.stop):
            digest.update(view[part])
        if digest.hexdigest() != shard.digest:
            raise BadMessageError(f"the averages of elements {shard.start} to {shard.stop} do not match the commit")


async def fetch_records(
    transport: Transport, peer: Candidate, signer: Signer, after_epoch: int, lineage: str
) -> list[SignedCommit]:
    """The commits after `after_epoch` up to `lineage`, oldest first, as far as `peer` has them on record. Signatures are checked.

    Raises RemoteError.
    """
    found: list[SignedCommit] = []

    async def read() -> None:
        views = 0
        async with transport.open(peer, ObserveRequest(after_epoch, once=False)) as stream:
            while (record := await stream.receive()) is not None:
                if isinstance(record, Committed):
                    found.append(signer.verify(record.signed_commit))
                views += isinstance(record, Swarm)
                # The first view says where the peer stands; at the second, all records have been told and it is the present.
                if views > 1 or len(found) == MAX_RECORDS or (found and found[-1].commit.digest == lineage):
                    return

    try:
        await asyncio.wait_for(read(), RECORDS_S)
    except asyncio.TimeoutError as error:
        raise UnreachableError(f"peer {peer.peer[:8]} did not tell its commits within {RECORDS_S:g} s") from error
    return found


def chain_to(lineage: str, records: Iterable[SignedCommit]) -> list[SignedCommit]:
    """The unbroken chain among `records` that ends at `lineage`, oldest first."""
    by_digest = {signed.commit.digest: signed for signed in records}
    chain: list[SignedCommit] = []
    at = by_digest.get(lineage)
    while at is not None:
        chain.append(at)
        at = by_digest.get(at.commit.ballot.parent)
    return chain[::-1]
