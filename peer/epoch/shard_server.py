"""The reducer's side of a shard: contributions come in on every member's connection, and the averages go out on the same ones.

Both directions flow at once. An averaged chunk goes out as soon as the last contributor's piece of it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from protocols.errors import BadMessageError, DugnadError, UnreachableError
from protocols.gradients.shard_average import ShardAverage, ShardRelay
from protocols.messages import Averaged, ReduceOpen
from protocols.reasons import Reason
from protocols.round.plans import MemberPlan
from protocols.round.records import Contribution, ShardResult
from protocols.transport.frames import FrameStream, Kind, refuse


class AllReduceError(DugnadError):
    """The all-reduce cannot be finished: something broke between this member and this reducer."""

    def __init__(self, reason: Reason, member: str, reducer: str, message: str) -> None:
        super().__init__(f"{reason.value} between {member[:8]} and reducer {reducer[:8]}: {message}")
        self.reason = reason
        self.member = member
        self.reducer = reducer


class UnreachedError(AllReduceError):
    """The member did not reach the reducer, or the connection broke."""


class ServedShard:
    """A shard that this peer reduces, with the members that wait for its averages."""

    def __init__(self, plan: MemberPlan, average: ShardAverage | ShardRelay) -> None:
        self.plan = plan
        self.average = average
        self._error: AllReduceError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._serving: dict[str, asyncio.Task[Any] | None] = {}

    def admits(self, peer: str) -> bool:
        """Whether this member opens the shard for the first time. The task that asks is the one that serves it."""
        task = asyncio.current_task()
        if peer in self._serving or task is None:
            return False
        self._serving[peer] = task
        return True

    def served(self, peer: str) -> None:
        self._serving[peer] = None

    def close(self) -> None:
        """Nobody needs this shard any more: a member that has not taken it by now does not read."""
        for task in self._serving.values():
            if task is not None:
                task.cancel()

    def open(self, peer: str, contribution: Contribution | None) -> None:
        """Raises BadMessageError, or the AllReduceError that came before."""
        self._checked(peer, lambda: self.average.open(peer, contribution))
        self._wake()

    def feed(self, peer: str, data: memoryview) -> None:
        """The next chunk, which is not kept. Raises as `open` does."""
        averaged = len(self.average.averaged)
        self._checked(peer, lambda: self.average.feed(peer, data))
        if len(self.average.averaged) > averaged:
            self._wake()

    def fail(self, reason: Reason, member: str, message: str) -> None:
        """The first failure stands, and every member that waits hears of it."""
        self._error = self._error or AllReduceError(reason, member, self.average.shard.reducer, message)
        self._wake()

    async def room(self, peer: str) -> None:
        """Until `peer`'s next chunk can be taken. Raises AllReduceError."""
        if self._error is not None or not self.average.has_room(peer):
            await self._until(lambda: self.average.has_room(peer))

    async def averages(self) -> AsyncIterator[tuple[Contribution, ...] | bytes | ShardResult]:
        """The contributions, then each averaged chunk as it comes, then the result. Raises AllReduceError."""
        average = self.average
        await self._until(lambda: average.contributions is not None)
        assert average.contributions is not None
        yield average.contributions
        sent = 0
        while average.result is None or sent < len(average.averaged):
            await self._until(lambda sent=sent: len(average.averaged) > sent)  # type: ignore[misc]
            yield average.averaged[sent]
            sent += 1
        yield average.result

    def _checked(self, peer: str, act: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        try:
            act()
        except BadMessageError as error:
            self.fail(Reason.BAD_CHUNK, peer, str(error))
            raise

    def _wake(self) -> None:
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


async def serve_shard(shard: ServedShard, opened: ReduceOpen, stream: FrameStream) -> None:
    """One member's connection: its chunks in, everybody's averages out. Raises UnreachableError when it breaks."""
    size = shard.average.shard_bytes
    stream.set_rate(shard.plan.rate_of(size))
    upload = asyncio.get_running_loop().create_task(_receive(shard, opened, stream))
    try:
        async for item in shard.averages():
            if isinstance(item, bytes):
                await stream.send(Kind.CHUNK, item)
            elif isinstance(item, ShardResult):
                await stream.send_record(Kind.DONE, item)
            else:
                await stream.send_record(Kind.AVERAGED, Averaged(item))
        await upload
    except AllReduceError as error:
        await _stopped(upload)
        await refuse(stream, error.reason, error.member)
    finally:
        shard.served(stream.peer)
        await _stopped(upload)


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _receive(shard: ServedShard, opened: ReduceOpen, stream: FrameStream) -> None:
    peer, average = stream.peer, shard.average
    if opened.contribution is None and peer not in shard.plan.contributors:
        return  # it only receives
    buffer = memoryview(bytearray(average.chunk_bytes))
    try:
        shard.open(peer, opened.contribution)
        while size := average.expects(peer):
            await shard.room(peer)
            await stream.receive_into(buffer[:size])
            shard.feed(peer, buffer[:size])
    except BadMessageError as error:
        shard.fail(Reason.BAD_CHUNK, peer, str(error))
    except AllReduceError:
        return  # it failed before: averages() tells every member
    except (asyncio.CancelledError, UnreachableError) as error:
        if average.expects(peer):
            shard.fail(Reason.CONTRIBUTOR_LOST, peer, f"its stream broke before its end ({error})")
        raise
