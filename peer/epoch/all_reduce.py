"""A member's side of one plan: its contribution goes up to every reducer while the averaged shards come down into place.

One connection a shard; a shard that this peer reduces itself takes the same way without a network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import numpy as np
from blake3 import blake3

from peer.epoch.shard_server import AllReduceError, ServedShard
from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.gradients.codecs import Bytes, Codec
from protocols.gradients.shard_average import chunk_elements_of
from protocols.gradients.slices import ResultLayout
from protocols.reasons import Reason
from protocols.round.plans import MemberPlan
from protocols.round.records import Averages, Contribution, Shard, ShardResult
from protocols.transport.bulk import BulkConnections, BulkStream, Kind
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire, to_wire

# No shard's upload is further ahead of another's than this share of itself: averaging goes at the pace of whatever comes last, so
# the line is to be shared by size and not, as TCP does it, by connection.
AHEAD_SHARE = 1 / 16
AHEAD_CHUNKS = 2


async def all_reduce(
    plan: MemberPlan,
    me: str,
    contribution: Contribution | None,
    encoded: Bytes,
    own: dict[int, ServedShard],
    *,
    outcome: ResultLayout,
    channels: BulkConnections,
) -> tuple[Averages, memoryview]:
    """Take part in a plan: returns what it averages, and the bytes that it comes to, as `outcome` lays them out.

    `encoded` is the whole vector that this member gives (empty when it gives nothing; with the canonical values behind it when
    it brings what the plan finishes), `own` this peer's reductions by shard index. Raises ReduceError for the first shard that
    cannot be finished; the others are given up.
    """
    result = np.empty(outcome.total_bytes, np.uint8).data  # numpy's memory comes in large pages, unwritten
    ups = [list(outcome.chunks(encoded, shard.start, shard.stop, chunk_elements_of(shard))) for shard in plan.shards]
    abreast = _Abreast([len(up) for up in ups])
    tasks = []
    for index, shard in enumerate(plan.shards):
        taken = _Received(shard, outcome.codec, outcome.chunks(result, shard.start, shard.stop, chunk_elements_of(shard)))
        if index in own:
            work = _exchange_locally(own[index], me, contribution, ups[index], taken)
        else:
            work = _exchange_remotely(plan, index, me, contribution, ups[index], abreast, taken, channels)
        tasks.append(asyncio.create_task(work))
    try:
        shards = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    first = shards[0].contributions
    for received in shards:
        if received.contributions != first:
            raise AllReduceError(Reason.RESULTS_DIFFER, me, received.shard.reducer, "reducers average different contributions")
    if contribution is not None and contribution not in first:
        raise AllReduceError(Reason.RESULTS_DIFFER, me, plan.shards[0].reducer, "this peer's contribution is not in the average")
    try:
        averages = Averages(first, tuple(received.result for received in shards if received.result is not None))
    except ValueError as error:
        raise AllReduceError(Reason.RESULTS_DIFFER, me, plan.shards[0].reducer, str(error)) from error
    if plan.finishes not in (None, averages):
        raise AllReduceError(Reason.RESULTS_DIFFER, me, plan.shards[0].reducer, "these are not the averages to be finished")
    return averages, result


async def give_locally(reducing: ServedShard, me: str, contribution: Contribution | None, up: Iterable[memoryview]) -> None:
    """This peer's own part of a shard that it reduces itself. Raises BadMessageError, or the ReduceError that came before."""
    reducing.open(me, contribution)
    for chunk in up:
        await reducing.room(me)
        reducing.feed(me, chunk)
        await asyncio.sleep(0)  # let heartbeats through between two


class _Abreast:
    """Keeps the uploads of one contribution, one a shard, at about the same share of their lengths."""

    def __init__(self, totals: Sequence[int]) -> None:
        """`totals`: chunks of each shard."""
        self._totals = totals
        self._given = [0] * len(totals)
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

    def gave(self, index: int) -> None:
        self._given[index] += 1
        if self._given[index] == self._totals[index]:
            self._remote.discard(index)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _is_ahead(self, index: int) -> bool:
        least = min(self._given[other] / self._totals[other] for other in self._remote)
        return self._given[index] - AHEAD_CHUNKS > (least + AHEAD_SHARE) * self._totals[index]


class _Received:
    """A shard as it comes down, checked against what its reducer says at the end."""

    def __init__(self, shard: Shard, codec: Codec, into: Iterable[memoryview]) -> None:
        """`into`: where each chunk belongs."""
        self.shard = shard
        self.contributions: tuple[Contribution, ...] = ()
        self.result: ShardResult | None = None
        self._codec = codec
        self._into = list(into)
        self._averaged = shard.stop - shard.start  # elements of them that are still to come
        self._digest = blake3()
        self._next = 0

    def place(self, size: int) -> memoryview:
        """Where the next chunk, of `size` bytes, goes."""
        if self._next == len(self._into) or size != len(self._into[self._next]):
            raise BadMessageError(f"a chunk of {size} bytes, which the shard does not have")
        return self._into[self._next]

    def took(self) -> None:
        """The next chunk is in its place. Raises BadMessageError when a value is not finite."""
        chunk = self._into[self._next]
        self._next += 1
        self._digest.update(chunk)
        if self._averaged:
            elements = min(chunk_elements_of(self.shard), self._averaged)
            self._codec.check(chunk, elements)
            self._averaged -= elements

    def finish(self, result: ShardResult, *, ours: bool = False) -> None:
        if self._next != len(self._into) or (result.start, result.stop) != (self.shard.start, self.shard.stop):
            raise BadMessageError("the averaged shard is short, or another one")
        if not ours and self._digest.hexdigest() != result.digest:
            raise BadMessageError("the averaged shard does not match its digest")
        self.result = result

    def take_own(self, item: tuple[Contribution, ...] | bytes | ShardResult) -> None:
        """From this peer's own reduction, which needs no check."""
        if isinstance(item, tuple):
            self.contributions = item
        elif isinstance(item, ShardResult):
            self.finish(item, ours=True)
        else:
            self.place(len(item))[:] = item
            self._next += 1


async def _exchange_locally(
    reducing: ServedShard, me: str, contribution: Contribution | None, up: list[memoryview], received: _Received
) -> _Received:
    async def take() -> None:
        async for item in reducing.averages():
            received.take_own(item)

    try:
        if up:
            await asyncio.gather(give_locally(reducing, me, contribution, up), take())
        else:
            await take()
    except BadMessageError as error:
        raise AllReduceError(Reason.BAD_CHUNK, received.shard.reducer, received.shard.reducer, str(error)) from error
    return received


async def _exchange_remotely(
    plan: MemberPlan,
    index: int,
    me: str,
    contribution: Contribution | None,
    up: list[memoryview],
    abreast: _Abreast,
    received: _Received,
    channels: BulkConnections,
) -> _Received:
    shard = plan.shards[index]
    opened = pb.ReduceOpen(plan_digest=plan.digest, shard=index)
    if contribution is not None:
        opened.contribution.CopyFrom(to_wire(contribution))
    if up:
        abreast.begin(index)
    try:
        async with channels.to(shard.reducer, shard.address) as stream:
            stream.pace(plan.pace(sum(map(len, up))))
            await stream.send_record(Kind.OPEN, opened)
            giving = asyncio.create_task(_give(stream, index, up, abreast))
            try:
                await _take(stream, received)
                await giving
            finally:
                giving.cancel()
                await asyncio.gather(giving, return_exceptions=True)
    except RefusedError as error:
        # The reducer gave up because of some contributor: pass on whom it names, so that all members tell the leader the same.
        named = error.reason in (Reason.BAD_CHUNK.value, Reason.CONTRIBUTOR_LOST.value)
        reason, whom = (Reason(error.reason), error.sentence) if named else (Reason.REDUCER_LOST, me)
        raise AllReduceError(reason, whom, shard.reducer, str(error)) from error
    except RemoteError as error:
        raise AllReduceError(Reason.REDUCER_LOST, me, shard.reducer, str(error)) from error
    return received


async def _give(stream: BulkStream, index: int, up: list[memoryview], abreast: _Abreast) -> None:
    for chunk in up:
        await abreast.turn(index)
        await stream.write(chunk)
        abreast.gave(index)


async def _take(stream: BulkStream, received: _Received) -> None:
    while received.result is None:
        kind, length = await stream.header()
        if kind is Kind.CHUNK:
            await stream.receive_into(received.place(length))
            received.took()
        elif kind is Kind.AVERAGED and not received.contributions:
            averaged = await stream.record(pb.Averaged, length)
            received.contributions = tuple(from_wire(Contribution, item) for item in averaged.contributions)
        elif kind is Kind.DONE:
            received.finish(from_wire(ShardResult, await stream.record(pb.ShardResult, length)))
        else:
            raise BadMessageError(f"{kind.name} where averages belong")
