"""A member's side of an all-reduce: its contribution goes up to every reducer while the averaged shards come down into place.

There is one connection for each shard. A shard that this peer reduces itself takes the same way without a network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from peer.epoch.shard_server import AllReduceError, ServedShard, UnreachedError
from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.gradients.codecs import Bytes, Codec
from protocols.gradients.shard_average import Chunking
from protocols.gradients.slices import ResultLayout
from protocols.messages import Averaged, ReduceOpen
from protocols.reasons import Reason
from protocols.round.plans import MemberPlan
from protocols.round.records import Averages, Contribution, Shard, ShardResult
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import Transport

# No shard's upload gets further ahead of another's than this share of itself. A round ends with its last shard, so the line is
# to be shared by the shards' sizes, and not, as TCP does it, by connection.
AHEAD_SHARE = 1 / 16
AHEAD_CHUNKS = 2
# A reducer that has not taken the connection, or has not answered on it, after this share of the plan's patience cannot be
# reached. The member says so before the leader's patience ends: the leader would not know whose fault it is.
ANSWER_SHARE = 0.5


@dataclass(frozen=True)
class Participation:
    """What one member brings to a plan."""

    me: str
    plan: MemberPlan
    contribution: Contribution | None
    encoded: Bytes  # the whole vector that it sends; empty when it sends nothing
    own: Mapping[int, ServedShard]  # the shards that it reduces, by index
    layout: ResultLayout
    chunking: Chunking


async def all_reduce(participation: Participation, transport: Transport) -> tuple[Averages, memoryview]:
    """Take part in a plan: what it averages, and the round's result as `participation.layout` lays it out.

    Raises AllReduceError for the first shard that cannot be finished; the others are given up.
    """
    plan, layout = participation.plan, participation.layout
    result = np.empty(layout.total_bytes, np.uint8).data  # numpy's memory comes in large pages, unwritten
    uploads = [_chunks(participation, participation.encoded, shard) for shard in plan.shards]
    abreast = _Abreast([len(chunks) for chunks in uploads])
    loop, tasks = asyncio.get_running_loop(), []
    for index, shard in enumerate(plan.shards):
        received = _Received(shard, layout.codec, participation.chunking.elements(shard), _chunks(participation, result, shard))
        if index in participation.own:
            work = _reduce_here(participation, participation.own[index], uploads[index], received)
        else:
            work = _reduce_there(participation, index, _Upload(index, uploads[index], abreast), received, transport)
        tasks.append(loop.create_task(work))
    try:
        shards = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _compared(participation, shards), result


def _chunks(participation: Participation, data: Bytes, shard: Shard) -> list[memoryview]:
    return list(participation.layout.chunks(data, shard.start, shard.stop, participation.chunking.elements(shard)))


def _compared(participation: Participation, shards: Sequence[_Received]) -> Averages:
    """What the plan averages, once all reducers agree on it. Raises AllReduceError."""
    plan, first = participation.plan, shards[0].contributions

    def differ(reducer: str, problem: str) -> AllReduceError:
        return AllReduceError(Reason.RESULTS_DIFFER, participation.me, reducer, problem)

    for received in shards:
        if received.contributions != first:
            raise differ(received.shard.reducer, "reducers average different contributions")
    if participation.contribution is not None and participation.contribution not in first:
        raise differ(plan.shards[0].reducer, "this peer's contribution is not in the average")
    try:
        averages = Averages(first, tuple(received.result for received in shards if received.result is not None))
    except ValueError as error:
        raise differ(plan.shards[0].reducer, str(error)) from error
    if plan.finishes not in (None, averages):
        raise differ(plan.shards[0].reducer, "these are not the averages to be finished")
    return averages


async def send_locally(shard: ServedShard, me: str, contribution: Contribution | None, chunks: Iterable[memoryview]) -> None:
    """This peer's own part of a shard that it reduces itself. Raises BadMessageError, or the AllReduceError that came before."""
    shard.open(me, contribution)
    for chunk in chunks:
        await shard.room(me)
        shard.feed(me, chunk)
        await asyncio.sleep(0)  # heartbeats pass between two chunks


class _Abreast:
    """Keeps the uploads of one contribution, one for each shard, at about the same share of their lengths."""

    def __init__(self, totals: Sequence[int]) -> None:
        """`totals`: chunks of each shard."""
        self._totals = totals
        self._sent = [0] * len(totals)
        self._remote: set[int] = set()  # under way
        self._waiters: list[asyncio.Future[None]] = []

    def begin(self, index: int) -> None:
        self._remote.add(index)

    async def turn(self, index: int) -> None:
        """Until this shard's next chunk may go."""
        while self._is_ahead(index):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def sent(self, index: int) -> None:
        self._sent[index] += 1
        if self._sent[index] == self._totals[index]:
            self._remote.discard(index)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _is_ahead(self, index: int) -> bool:
        slowest = min(self._sent[other] / self._totals[other] for other in self._remote)
        return self._sent[index] - AHEAD_CHUNKS > (slowest + AHEAD_SHARE) * self._totals[index]


@dataclass(frozen=True)
class _Upload:
    """A shard's chunks on their way to its reducer."""

    index: int
    chunks: list[memoryview]
    abreast: _Abreast

    @property
    def size(self) -> int:
        return sum(map(len, self.chunks))

    def begin(self) -> None:
        if self.chunks:
            self.abreast.begin(self.index)

    async def run(self, stream: FrameStream) -> None:
        for chunk in self.chunks:
            await self.abreast.turn(self.index)
            await stream.write(chunk)
            self.abreast.sent(self.index)


class _Received:
    """A shard as it comes down. It is checked against the result that its reducer states at the end."""

    def __init__(self, shard: Shard, codec: Codec, chunk_elements: int, into: list[memoryview]) -> None:
        """`into`: where each chunk belongs."""
        self.shard = shard
        self.contributions: tuple[Contribution, ...] = ()
        self.result: ShardResult | None = None
        self._codec = codec
        self._chunk_elements = chunk_elements
        self._into = into
        self._averaged = shard.stop - shard.start  # averaged elements that are still to come
        self._digest = blake3()
        self._next = 0

    def place(self, size: int) -> memoryview:
        """Where the next chunk, of `size` bytes, goes."""
        if self._next == len(self._into) or size != len(self._into[self._next]):
            raise BadMessageError(f"a chunk of {size} bytes, which the shard does not have")
        return self._into[self._next]

    def placed(self) -> None:
        """The next chunk is in its place. Raises BadMessageError when a value is not finite."""
        chunk = self._into[self._next]
        self._next += 1
        self._digest.update(chunk)
        if self._averaged:
            elements = min(self._chunk_elements, self._averaged)
            self._codec.check(chunk, elements)
            self._averaged -= elements

    def finish(self, result: ShardResult, *, own: bool = False) -> None:
        """The reducer's statement of what it sent. `own`: this peer is the reducer, and its digest needs no check."""
        if self._next != len(self._into) or (result.start, result.stop) != (self.shard.start, self.shard.stop):
            raise BadMessageError("the averaged shard is short, or another one")
        if not own and self._digest.hexdigest() != result.digest:
            raise BadMessageError("the averaged shard does not match its digest")
        self.result = result

    def take_own(self, item: tuple[Contribution, ...] | bytes | ShardResult) -> None:
        """From the shard that this peer reduces itself, which needs no check."""
        if isinstance(item, tuple):
            self.contributions = item
        elif isinstance(item, ShardResult):
            self.finish(item, own=True)
        else:
            self.place(len(item))[:] = item
            self._next += 1


async def _reduce_here(
    participation: Participation, shard: ServedShard, chunks: list[memoryview], received: _Received
) -> _Received:
    async def take() -> None:
        async for item in shard.averages():
            received.take_own(item)

    try:
        if chunks:
            await asyncio.gather(send_locally(shard, participation.me, participation.contribution, chunks), take())
        else:
            await take()
    except BadMessageError as error:
        raise AllReduceError(Reason.BAD_CHUNK, received.shard.reducer, received.shard.reducer, str(error)) from error
    return received


async def _reduce_there(
    participation: Participation, index: int, upload: _Upload, received: _Received, transport: Transport
) -> _Received:
    plan, shard, me = participation.plan, received.shard, participation.me
    answer_s = plan.patience_s * ANSWER_SHARE
    upload.begin()
    try:
        async with transport.bulk(shard.reducer, shard.address, answer_s) as stream:
            stream.set_rate(plan.rate_of(upload.size))
            await stream.send_record(Kind.OPEN, ReduceOpen(plan.digest, index, participation.contribution))
            await _opened(stream, answer_s)
            sending = asyncio.get_running_loop().create_task(upload.run(stream))
            try:
                await _receive(stream, received)
                await sending
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except RefusedError as error:
        # The reducer gave up because of some contributor. Its name is passed on, so that all members tell the leader the same.
        named = error.reason in (Reason.BAD_CHUNK.value, Reason.CONTRIBUTOR_LOST.value)
        reason, whom = (Reason(error.reason), error.sentence) if named else (Reason.REDUCER_LOST, me)
        raise AllReduceError(reason, whom, shard.reducer, str(error)) from error
    except UnreachableError as error:
        raise UnreachedError(Reason.REDUCER_LOST, me, shard.reducer, str(error)) from error
    except RemoteError as error:
        raise AllReduceError(Reason.REDUCER_LOST, me, shard.reducer, str(error)) from error
    return received


async def _opened(stream: FrameStream, limit_s: float) -> None:
    """Until the reducer answers. A connection that was kept from an earlier round may be dead without either side knowing."""
    try:
        kind, _ = await asyncio.wait_for(stream.header(), limit_s)
    except asyncio.TimeoutError as error:
        raise UnreachableError(f"{stream.peer[:8]} does not answer within {limit_s:.1f} s") from error
    if kind is not Kind.OPENED:
        raise BadMessageError(f"{kind.name} where OPENED belongs")


async def _receive(stream: FrameStream, received: _Received) -> None:
    while received.result is None:
        kind, length = await stream.header()
        if kind is Kind.CHUNK:
            await stream.receive_into(received.place(length))
            received.placed()
        elif kind is Kind.AVERAGED and not received.contributions:
            received.contributions = (await stream.record(Averaged, length)).contributions
        elif kind is Kind.DONE:
            received.finish(await stream.record(ShardResult, length))
        else:
            raise BadMessageError(f"{kind.name} where averages belong")
