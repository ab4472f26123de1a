"""One plan's bulk traffic: this peer's contribution goes up to every reducer while the averaged shards come down.

A stream a shard, opened by the member to the shard's reducer (its own shard takes the same way without a network). Both
directions flow at
once: a reducer sends an averaged chunk as soon as the last contributor's piece of it is there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from protocols.codecs import Codec
from protocols.errors import BadMessageError, DugnadError, RefusedError, RemoteError
from protocols.reasons import Reason
from protocols.reduction import CHUNK_ELEMENTS, reduction_of
from protocols.round.records import Averages, Contribution, Plan, Shard, ShardResult
from protocols.slices import Outcome
from protocols.transport.links import END, Links, translated
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire, to_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

Moved = Callable[[int], None]  # told of every chunk's size


class ReduceError(DugnadError):
    """The exchange cannot be finished: something broke between this member and this reducer."""

    def __init__(self, reason: Reason, member: str, reducer: str, message: str) -> None:
        super().__init__(f"{reason.value} between {member[:8]} and reducer {reducer[:8]}: {message}")
        self.reason = reason
        self.member = member
        self.reducer = reducer


class Reducing:
    """This peer's own shard of a plan, with those who wait for its averages."""

    def __init__(self, plan: Plan, shard_index: int, codec: Codec, canonical: bytes) -> None:
        self.plan = plan
        self.reduction = reduction_of(plan, shard_index, codec, canonical)
        self._error: ReduceError | None = None
        self._grown = asyncio.Condition()

    async def open(self, peer: str, contribution: Contribution | None) -> None:
        await self._checked(peer, lambda: self.reduction.open(peer, contribution))

    async def feed(self, peer: str, offset: int, data: bytes) -> None:
        await self._checked(peer, lambda: self.reduction.feed(peer, offset, data))

    async def fail(self, reason: Reason, member: str, message: str) -> None:
        """The first failure stands; everybody who waits is told."""
        async with self._grown:
            self._error = self._error or ReduceError(reason, member, self.reduction.shard.reducer, message)
            self._grown.notify_all()

    async def averages(self) -> AsyncIterator[tuple[Contribution, ...] | bytes | ShardResult]:
        """The contributions, then each averaged chunk as it comes, then the result. Raises ReduceError."""
        reduction = self.reduction
        await self._until(lambda: reduction.contributions is not None)
        assert reduction.contributions is not None
        yield reduction.contributions
        sent = 0
        while reduction.result is None or sent < len(reduction.averaged):
            await self._until(lambda sent=sent: len(reduction.averaged) > sent)  # type: ignore[misc]
            yield reduction.averaged[sent]
            sent += 1
        yield reduction.result

    async def _checked(self, peer: str, act: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        try:
            act()
        except BadMessageError as error:
            await self.fail(Reason.BAD_CHUNK, peer, str(error))
            raise
        async with self._grown:
            self._grown.notify_all()

    async def _until(self, there: Callable[[], bool]) -> None:
        async with self._grown:
            await self._grown.wait_for(lambda: there() or self._error is not None)
        if not there() and self._error is not None:
            raise self._error


async def serve_reduce(
    reducing: Reducing, peer: str, opened: pb.ReduceOpen, context: Any, *, sent: Moved, received: Moved
) -> None:
    """A member's stream, seen from the reducer. Its upload and its download end independently."""
    upload = asyncio.create_task(_receive(reducing, peer, opened, context, received))
    try:
        async for item in reducing.averages():
            await context.write(_down(item, sent))
        await upload
    except ReduceError as error:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{error.reason.value}: {error.member}")
    finally:
        upload.cancel()


async def _receive(reducing: Reducing, peer: str, opened: pb.ReduceOpen, context: Any, moved: Moved) -> None:
    given = opened.HasField("contribution")
    if not given and peer not in reducing.plan.contributors:
        return  # it only receives
    expected = reducing.reduction.shard_bytes
    received = 0
    try:
        await reducing.open(peer, from_wire(Contribution, opened.contribution) if given else None)
        while received < expected:
            message = await context.read()
            if message is END:
                break
            if message.WhichOneof("kind") != "chunk":
                raise BadMessageError("a second opening")
            await reducing.feed(peer, message.chunk.offset, message.chunk.data)
            received += len(message.chunk.data)
            moved(len(message.chunk.data))
    except BadMessageError as error:
        await reducing.fail(Reason.BAD_CHUNK, peer, str(error))
    except ReduceError:
        return  # failed already: everybody is told by averages()
    except (asyncio.CancelledError, grpc.RpcError):
        if received < expected:
            await reducing.fail(Reason.CONTRIBUTOR_LOST, peer, f"its stream broke at {received} of {expected} bytes")
        raise
    if received < expected:
        await reducing.fail(Reason.CONTRIBUTOR_LOST, peer, f"its stream ended at {received} of {expected} bytes")


def _down(item: tuple[Contribution, ...] | bytes | ShardResult, sent: Moved) -> pb.ReduceDown:
    if isinstance(item, tuple):
        return pb.ReduceDown(averaged=pb.Averaged(contributions=[to_wire(contribution) for contribution in item]))
    if isinstance(item, ShardResult):
        return pb.ReduceDown(done=to_wire(item))
    sent(len(item))
    return pb.ReduceDown(chunk=pb.Chunk(data=item))


@dataclass
class _Received:
    """A shard as it comes down, checked against what its reducer says at the end."""

    shard: Shard
    codec: Codec
    averaged: memoryview
    canonical: memoryview
    contributions: tuple[Contribution, ...] = ()
    result: ShardResult | None = None
    at: int = 0

    def take(self, data: bytes) -> None:
        if not data or self.at + len(data) > len(self.averaged) + len(self.canonical):
            raise BadMessageError("more averaged bytes than the shard has")
        split = max(0, len(self.averaged) - self.at)  # of `data`: what is left of it are canonical values
        behind = max(0, self.at - len(self.averaged))
        self.averaged[self.at : self.at + len(data[:split])] = data[:split]
        self.canonical[behind : behind + len(data[split:])] = data[split:]
        self.at += len(data)

    def finish(self, result: ShardResult) -> None:
        whole = len(self.averaged) + len(self.canonical)
        if self.at != whole or (result.start, result.stop) != (self.shard.start, self.shard.stop):
            raise BadMessageError("the averaged shard is short, or another one")
        digest = hashlib.sha256(self.averaged)
        digest.update(self.canonical)
        if digest.hexdigest() != result.sha256:
            raise BadMessageError("the averaged shard does not match its digest")
        self.codec.decode(self.averaged)  # refuses what is not finite
        self.result = result


async def exchange(
    plan: Plan,
    contribution: Contribution | None,
    encoded: bytes | bytearray,
    own: dict[int, Reducing],
    *,
    outcome: Outcome,
    codec: Codec,
    links: Links,
    sent: Moved,
    received: Moved,
) -> tuple[Averages, bytearray]:
    """Take part in a plan: returns what it averages, and the bytes that it comes to, as `outcome` lays them out.

    `encoded` is the whole vector that this member gives (empty when it gives nothing; with the canonical values behind it when
    it brings what the plan finishes), `own` this peer's reductions by shard index. Raises ReduceError for the first shard that
    cannot be finished; the others are given up.
    """
    me = links.credentials.peer_id
    came_to = bytearray(outcome.total_bytes)
    whole = memoryview(came_to)
    chunk_bytes = outcome.codec.encoded_bytes(CHUNK_ELEMENTS)
    tasks = []
    for index, shard in enumerate(plan.shards):
        averaged, canonical = outcome.parts(shard.start, shard.stop)
        taken = _Received(shard, codec, whole[averaged], whole[canonical])
        up = outcome.of(encoded, shard.start, shard.stop)
        if index in own:
            work = _exchange_locally(own[index], me, contribution, up, chunk_bytes, taken)
        else:
            work = _exchange_remotely(plan, index, contribution, up, chunk_bytes, taken, links, sent, received)
        tasks.append(asyncio.create_task(work))
    try:
        shards = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    first = shards[0].contributions
    for shard_received in shards:
        if shard_received.contributions != first:
            raise ReduceError(Reason.RESULTS_DIFFER, me, shard_received.shard.reducer, "reducers average different contributions")
    if contribution is not None and contribution not in first:
        raise ReduceError(Reason.RESULTS_DIFFER, me, plan.shards[0].reducer, "this peer's contribution is not in the average")
    results = tuple(shard_received.result for shard_received in shards if shard_received.result is not None)
    averages = Averages(first, results)
    if plan.finishes not in (None, averages):
        raise ReduceError(Reason.RESULTS_DIFFER, me, plan.shards[0].reducer, "these are not the averages to be finished")
    return averages, came_to


async def give_locally(reducing: Reducing, me: str, contribution: Contribution | None, up: memoryview, chunk_bytes: int) -> None:
    """This peer's own part of a shard that it reduces itself. Raises BadMessageError, or the ReduceError that came before."""
    await reducing.open(me, contribution)
    for at in range(0, len(up), chunk_bytes):
        await reducing.feed(me, at, bytes(up[at : at + chunk_bytes]))
        await asyncio.sleep(0)  # averaging a chunk takes milliseconds: let heartbeats through between two


async def _exchange_locally(
    reducing: Reducing, me: str, contribution: Contribution | None, up: memoryview, chunk_bytes: int, received: _Received
) -> _Received:
    async def take() -> None:
        async for item in reducing.averages():
            _take(received, item)

    try:
        if up:
            await asyncio.gather(give_locally(reducing, me, contribution, up, chunk_bytes), take())
        else:
            await take()
    except BadMessageError as error:
        raise ReduceError(Reason.BAD_CHUNK, received.shard.reducer, received.shard.reducer, str(error)) from error
    return received


async def _exchange_remotely(
    plan: Plan,
    index: int,
    contribution: Contribution | None,
    up: memoryview,
    chunk_bytes: int,
    taken: _Received,
    links: Links,
    sent: Moved,
    received: Moved,
) -> _Received:
    me, shard = links.credentials.peer_id, plan.shards[index]
    call = PeerStub(links.to(shard.reducer, shard.address)).Reduce(metadata=links.metadata)

    async def give() -> None:
        opened = pb.ReduceOpen(plan_digest=plan.digest, shard=index)
        if contribution is not None:
            opened.contribution.CopyFrom(to_wire(contribution))
        await call.write(pb.ReduceUp(open=opened))
        for at in range(0, len(up), chunk_bytes):
            data = bytes(up[at : at + chunk_bytes])
            await call.write(pb.ReduceUp(chunk=pb.Chunk(offset=at, data=data)))
            sent(len(data))
        await call.done_writing()

    async def take() -> None:
        while taken.result is None:
            message = await call.read()
            if message is END:
                raise BadMessageError("the reducer's stream ended early")
            kind = message.WhichOneof("kind")
            if kind == "averaged":
                _take(taken, tuple(from_wire(Contribution, item) for item in message.averaged.contributions))
            elif kind == "chunk":
                received(len(message.chunk.data))
                _take(taken, message.chunk.data)
            elif kind == "done":
                _take(taken, from_wire(ShardResult, message.done))

    try:
        with translated(f"reducer {shard.reducer[:8]}"):
            giving = asyncio.create_task(give())
            try:
                await take()
                await giving
            finally:
                giving.cancel()
                await asyncio.gather(giving, return_exceptions=True)
    except (BadMessageError, asyncio.InvalidStateError) as error:
        raise ReduceError(Reason.REDUCER_LOST, me, shard.reducer, str(error)) from error
    except RefusedError as error:
        # The reducer gave up because of some contributor: pass on whom it names, so that all members tell the lead the same.
        named = error.reason in (Reason.BAD_CHUNK.value, Reason.CONTRIBUTOR_LOST.value)
        raise ReduceError(
            Reason(error.reason) if named else Reason.REDUCER_LOST, error.sentence if named else me, shard.reducer, str(error)
        ) from error
    except RemoteError as error:
        raise ReduceError(Reason.REDUCER_LOST, me, shard.reducer, str(error)) from error
    finally:
        call.cancel()
    return taken


def _take(received: _Received, item: tuple[Contribution, ...] | bytes | ShardResult) -> None:
    if isinstance(item, tuple):
        received.contributions = item
    elif isinstance(item, ShardResult):
        received.finish(item)
    else:
        received.take(item)
