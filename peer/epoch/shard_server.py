"""The reducer's side of a shard: contributions come in on every member's connection, and the averages go out on the same.

Both directions flow at once: an averaged chunk goes out as soon as the last contributor's piece of it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from protocols.errors import BadMessageError, DugnadError, UnreachableError
from protocols.gradients.aggregation import Rule
from protocols.gradients.codecs import Codec
from protocols.gradients.shard_average import chunk_elements_of, shard_average_of
from protocols.reasons import Reason
from protocols.round.plans import MemberPlan
from protocols.round.records import Contribution, ShardResult
from protocols.transport.bulk import BulkStream, Kind, refuse
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire, to_wire


class AllReduceError(DugnadError):
    """The exchange cannot be finished: something broke between this member and this reducer."""

    def __init__(self, reason: Reason, member: str, reducer: str, message: str) -> None:
        super().__init__(f"{reason.value} between {member[:8]} and reducer {reducer[:8]}: {message}")
        self.reason = reason
        self.member = member
        self.reducer = reducer


class ServedShard:
    """This peer's own shard of a plan, with those who wait for its averages."""

    def __init__(self, plan: MemberPlan, shard_index: int, codec: Codec, rule: Rule, canonical: bytes) -> None:
        self.plan = plan
        self.reduction = shard_average_of(plan, shard_index, codec, rule, canonical)
        self.chunk_bytes = codec.encoded_bytes(chunk_elements_of(plan.shards[shard_index]))
        self._error: AllReduceError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._serving: dict[str, asyncio.Task[Any] | None] = {}

    def admits(self, peer: str) -> bool:
        """Whether this member opens the shard for the first time; the task that runs serves it."""
        task = asyncio.current_task()
        if peer in self._serving or task is None:
            return False
        self._serving[peer] = task
        return True

    def served(self, peer: str) -> None:
        self._serving[peer] = None

    def close(self) -> None:
        """Nobody needs this any more; who has not taken it by now does not read."""
        for task in self._serving.values():
            if task is not None:
                task.cancel()

    def open(self, peer: str, contribution: Contribution | None) -> None:
        """Raises BadMessageError, or the ReduceError that came before."""
        self._checked(peer, lambda: self.reduction.open(peer, contribution))
        self._tell()

    def feed(self, peer: str, data: memoryview) -> None:
        """The next chunk; `data` is not kept. Raises as open does."""
        averaged = len(self.reduction.averaged)
        self._checked(peer, lambda: self.reduction.feed(peer, data))
        if len(self.reduction.averaged) > averaged:
            self._tell()

    def fail(self, reason: Reason, member: str, message: str) -> None:
        """The first failure stands; everybody who waits is told."""
        self._error = self._error or AllReduceError(reason, member, self.reduction.shard.reducer, message)
        self._tell()

    async def room(self, peer: str) -> None:
        """Until `peer`'s next chunk can be taken. Raises ReduceError."""
        if self._error is not None or not self.reduction.has_room(peer):
            await self._until(lambda: self.reduction.has_room(peer))

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

    def _checked(self, peer: str, act: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        try:
            act()
        except BadMessageError as error:
            self.fail(Reason.BAD_CHUNK, peer, str(error))
            raise

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _until(self, there: Callable[[], bool]) -> None:
        while not there():
            if self._error is not None:
                raise self._error
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


async def serve_shard(reducing: ServedShard, opened: pb.ReduceOpen, stream: BulkStream) -> None:
    """A member's request, seen from the reducer: what it gives and what it gets end independently. Raises as BulkStream does."""
    stream.pace(reducing.plan.pace(reducing.reduction.shard_bytes))
    upload = asyncio.create_task(_receive(reducing, opened, stream))
    try:
        async for item in reducing.averages():
            if isinstance(item, bytes):
                await stream.send(Kind.CHUNK, item)
            elif isinstance(item, ShardResult):
                await stream.send_record(Kind.DONE, to_wire(item))
            else:
                await stream.send_record(Kind.AVERAGED, pb.Averaged(contributions=[to_wire(it) for it in item]))
        await upload
    except AllReduceError as error:
        await _stopped(upload)
        await refuse(stream, error.reason, error.member)
    finally:
        reducing.served(stream.peer)
        await _stopped(upload)


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _receive(reducing: ServedShard, opened: pb.ReduceOpen, stream: BulkStream) -> None:
    peer, reduction = stream.peer, reducing.reduction
    given = opened.HasField("contribution")
    if not given and peer not in reducing.plan.contributors:
        return  # it only receives
    buffer = memoryview(bytearray(reducing.chunk_bytes))
    try:
        reducing.open(peer, from_wire(Contribution, opened.contribution) if given else None)
        while size := reduction.expects(peer):
            await reducing.room(peer)
            await stream.receive_into(buffer[:size])
            reducing.feed(peer, buffer[:size])
    except BadMessageError as error:
        reducing.fail(Reason.BAD_CHUNK, peer, str(error))
    except AllReduceError:
        return  # failed already: everybody is told by averages()
    except (asyncio.CancelledError, UnreachableError) as error:
        if reduction.expects(peer):
            reducing.fail(Reason.CONTRIBUTOR_LOST, peer, f"its stream broke before its end ({error})")
        raise
