"""A reducer's side of a shard: how members' streams become one average, and what ends it. Members are streams of frames."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from peer.epoch.all_reduce import send_locally
from peer.epoch.shard_server import AllReduceError, ServedShard, serve_shard
from peer.simulation.transport import SimulatedBulk
from protocols.errors import BadMessageError, RefusedError, UnreachableError
from protocols.gradients.codecs import Bytes
from protocols.gradients.shard_average import WINDOW_CHUNKS
from protocols.messages import Averaged, ReduceOpen
from protocols.reasons import Reason
from protocols.round.plans import Plan
from protocols.round.records import Contribution, ShardResult
from protocols.transport.frames import FrameStream, Kind
from tests.peer.epoch.shards import CODEC, ELEMENTS, ENCODED, GIVEN, chunks, plan_of, result_of, served, whole_result
from tests.peer.virtual import Net

PLAN = plan_of(("eve",))  # eve reduces the whole vector and gives nothing
SHARD = PLAN.shards[0]
CHUNK_BYTES = len(chunks(ENCODED["ann"], SHARD)[0])


class Reducer:
    """Serves one shard."""

    def __init__(self, net: Net, plan: Plan = PLAN) -> None:
        self.node = net.node(plan.shards[0].reducer, self)
        self.shard: ServedShard = served(plan)

    async def serve(self, stream: Any, opening: Any) -> None:
        raise AssertionError("no calls are made")

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        opened = await stream.record(ReduceOpen, length)
        assert self.shard.admits(stream.peer)
        await serve_shard(self.shard, opened, stream)


class Member:
    """One connection to the reducer: what comes down it, and how it ends."""

    def __init__(
        self, net: Net, name: str, data: Iterable[Bytes] | None = None, contribution: Contribution | None = None
    ) -> None:
        """It gives `contribution` and sends `data` behind it: its own, unless they are said to be others."""
        self.name, self.node = name, net.node(name)
        self.contribution = contribution or GIVEN.get(name)
        self._data = list(data if data is not None else chunks(ENCODED.get(name, b""), SHARD))
        self._more = asyncio.Event()
        self.heard: list[Any] = []
        self.task = self.node.start(self._take_part())

    @property
    def averaged(self) -> bytes:
        return b"".join(it for it in self.heard if isinstance(it, bytes))

    @property
    def refusal(self) -> tuple[str, str]:
        """(reason, whom it names)"""
        error = self.task.exception()
        assert isinstance(error, RefusedError), error
        return error.reason, error.sentence

    def goes_on(self, data: Iterable[Bytes]) -> None:
        """It sends this, too."""
        self._data.extend(data)
        self.node.loop.call_soon(self._more.set)

    async def _take_part(self) -> None:
        async with self.node.transport.bulk("eve", "eve:1") as self.stream:
            await self.stream.send_record(Kind.OPEN, ReduceOpen(PLAN.digest, 0, self.contribution))
            sending = asyncio.get_running_loop().create_task(self._send())
            try:
                await self._hear()
            finally:
                sending.cancel()

    async def _send(self) -> None:
        while True:
            while self._data:
                await self.stream.write(memoryview(self._data.pop(0)))
            self._more.clear()
            await self._more.wait()

    async def _hear(self) -> None:
        while not (self.heard and isinstance(self.heard[-1], ShardResult)):
            kind, length = await self.stream.header()
            if kind is Kind.CHUNK:
                data = bytearray(length)
                await self.stream.receive_into(memoryview(data))
                self.heard.append(bytes(data))
            else:
                self.heard.append(await self.stream.record(Averaged if kind is Kind.AVERAGED else ShardResult, length))


def until(net: Net, *tasks: asyncio.Task[Any]) -> None:
    net.world.run_until(net.world.now + 60.0, lambda: all(task.done() for task in tasks))
    assert all(task.done() for task in tasks)


def for_s(net: Net, seconds: float) -> None:
    net.world.run_until(net.world.now + seconds)


def failure(reducer: Reducer) -> AllReduceError:
    """The error that its own process hears while it waits for the averages."""

    async def wait() -> None:
        async for _ in reducer.shard.averages():
            pass

    with pytest.raises(AllReduceError) as error:
        reducer.node.play(wait(), 60.0)
    return error.value


# -- averages --------------------------------------------------------------------------------------------------------------------


def test_members_hear_whose_contributions_are_averaged_then_the_average_then_its_digest(net: Net) -> None:
    Reducer(net)
    members = [Member(net, name) for name in ("ann", "bob", "cid", "dag")]
    until(net, *(member.task for member in members))
    for member in members:
        assert member.heard[0] == Averaged(tuple(GIVEN.values()))
        assert member.averaged == whole_result(PLAN)
        assert member.heard[-1] == result_of(SHARD)


def test_members_hear_whose_contributions_are_averaged_once_all_have_opened_and_not_before(net: Net) -> None:
    Reducer(net)
    members = [Member(net, name, ()) for name in ("ann", "bob", "dag")]
    for_s(net, 1.0)
    assert not any(member.heard for member in members)
    members.append(Member(net, "cid", ()))
    for_s(net, 1.0)
    assert all(member.heard == [Averaged(tuple(GIVEN.values()))] for member in members)


def test_a_chunk_goes_out_once_every_contributor_has_sent_its_piece(net: Net) -> None:
    Reducer(net)
    ann, cid = Member(net, "ann"), Member(net, "cid")
    bob = Member(net, "bob", chunks(ENCODED["bob"], SHARD)[:2])
    for_s(net, 1.0)
    for member in (ann, bob, cid):
        assert member.averaged == whole_result(PLAN)[: 2 * CHUNK_BYTES]
    bob.goes_on(chunks(ENCODED["bob"], SHARD)[2:])
    until(net, ann.task, bob.task, cid.task)
    assert bob.averaged == whole_result(PLAN)


def test_a_member_that_comes_when_all_is_averaged_still_gets_it(net: Net) -> None:
    Reducer(net)
    until(net, *(Member(net, name).task for name in GIVEN))
    dag = Member(net, "dag")
    until(net, dag.task)
    assert dag.averaged == whole_result(PLAN)


def test_a_fast_contributor_is_read_no_further_than_the_window_ahead_of_the_slowest(net: Net) -> None:
    """The rest waits on its connection, not in the reducer's memory."""
    reducer = Reducer(net)
    ann, bob, cid = Member(net, "ann"), Member(net, "bob"), Member(net, "cid", ())
    for_s(net, 5.0)
    read = reducer.node.transport.bandwidth.down.moved_bytes
    assert 0 <= read - 2 * WINDOW_CHUNKS * CHUNK_BYTES < CHUNK_BYTES, "two windows, and three requests"
    cid.goes_on(chunks(ENCODED["cid"], SHARD))
    until(net, ann.task, bob.task, cid.task)
    assert ann.averaged == whole_result(PLAN)


def test_the_reducers_own_contribution_waits_for_the_slowest_too(net: Net) -> None:
    plan = plan_of(("ann",))
    node, shard = net.node("ann"), served(plan)
    fed: list[memoryview] = []

    def pieces() -> Iterable[memoryview]:
        for chunk in chunks(ENCODED["ann"], SHARD):
            fed.append(chunk)
            yield chunk

    own = node.start(send_locally(shard, "ann", GIVEN["ann"], pieces()))
    for_s(net, 1.0)
    assert not own.done() and len(fed) == WINDOW_CHUNKS + 1, "the last waits for room"
    for peer in ("bob", "cid"):
        node.start(send_locally(shard, peer, GIVEN[peer], chunks(ENCODED[peer], SHARD)))
    until(net, own)
    assert shard.average.result == result_of(plan.shards[0])
    assert b"".join(shard.average.averaged) == whole_result(plan)


def test_the_averages_are_paced_over_the_time_that_the_plan_takes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float | None] = []
    monkeypatch.setattr(SimulatedBulk, "set_rate", lambda stream, bytes_s: rates.append(bytes_s))
    Reducer(net, plan_of(("eve",), planned_s=2.0))
    Member(net, "dag")
    for_s(net, 1.0)
    assert rates == [CODEC.encoded_bytes(ELEMENTS) / 2.0]


# -- what ends it ----------------------------------------------------------------------------------------------------------------


def test_a_contributor_that_breaks_off_inside_a_shard_ends_it_and_every_member_hears_who_it_was(net: Net) -> None:
    reducer = Reducer(net)
    ann, cid, dag = Member(net, "ann"), Member(net, "cid"), Member(net, "dag")
    bob = Member(net, "bob", chunks(ENCODED["bob"], SHARD)[:2])
    for_s(net, 1.0)
    bob.node.die()
    until(net, ann.task, cid.task, dag.task)
    assert ann.refusal == cid.refusal == dag.refusal == (Reason.CONTRIBUTOR_LOST.value, "bob")
    error = failure(reducer)
    assert (error.reason, error.member, error.reducer) == (Reason.CONTRIBUTOR_LOST, "bob", "eve")


def test_a_contributor_that_breaks_off_behind_its_last_chunk_ends_nothing(net: Net) -> None:
    Reducer(net)
    bob, ann = Member(net, "bob"), Member(net, "ann")
    data = chunks(ENCODED["cid"], SHARD)
    cid = Member(net, "cid", data[:-2])
    for_s(net, 1.0)
    bob.node.die()
    for chunk in data[-2:]:  # the first of them finds that bob is gone
        cid.goes_on([chunk])
        for_s(net, 1.0)
    until(net, ann.task, cid.task)
    assert ann.averaged == whole_result(PLAN)


def test_a_member_that_only_fetches_may_go_at_any_time(net: Net) -> None:
    Reducer(net)
    dag, ann, bob, cid = Member(net, "dag"), Member(net, "ann"), Member(net, "bob"), Member(net, "cid", ())
    for_s(net, 1.0)
    dag.node.die()
    for_s(net, 1.0)
    cid.goes_on(chunks(ENCODED["cid"], SHARD))
    until(net, ann.task, bob.task, cid.task)
    assert ann.averaged == whole_result(PLAN)


NOT_A_NUMBER = chunks(CODEC.encode(np.full(ELEMENTS, np.nan, np.float32)), SHARD)


@pytest.mark.parametrize(
    ("data", "contribution"),
    [
        pytest.param(NOT_A_NUMBER, GIVEN["bob"], id="not finite"),
        pytest.param((), GIVEN["ann"], id="of another peer"),
    ],
)
def test_a_contribution_that_breaks_the_protocol_is_named_to_every_member(
    net: Net, data: Iterable[Bytes], contribution: Contribution
) -> None:
    reducer = Reducer(net)
    ann, bob = Member(net, "ann"), Member(net, "bob", data, contribution)
    until(net, ann.task, bob.task)
    assert ann.refusal == bob.refusal == (Reason.BAD_CHUNK.value, "bob")
    error = failure(reducer)
    assert (error.reason, error.member, error.reducer) == (Reason.BAD_CHUNK, "bob", "eve")


def test_a_contributor_that_opens_without_a_contribution_is_named(net: Net) -> None:
    """It would be waited for without an end."""
    Reducer(net)
    ann = Member(net, "ann")
    bob = net.node("bob")

    async def fetch() -> None:
        async with bob.transport.bulk("eve", "eve:1") as stream:
            await stream.send_record(Kind.OPEN, ReduceOpen(PLAN.digest, 0, None))
            await stream.header()

    bob.start(fetch())
    until(net, ann.task)
    assert ann.refusal == (Reason.BAD_CHUNK.value, "bob")


@pytest.mark.parametrize("size", [CHUNK_BYTES - 2, CHUNK_BYTES + 2, 0])
def test_a_chunk_of_the_wrong_size_is_a_bad_chunk(net: Net, size: int) -> None:
    """Sizes on a connection are the reducer's, so that only its own process can be wrong about them."""
    reducer = Reducer(net)
    dag = Member(net, "dag")
    sends = send_locally(reducer.shard, "bob", GIVEN["bob"], [memoryview(bytes(size))])
    with pytest.raises(BadMessageError, match=f"a chunk of {size} bytes, not {CHUNK_BYTES}"):
        reducer.node.play(sends)
    until(net, dag.task)
    assert dag.refusal == (Reason.BAD_CHUNK.value, "bob")


def test_the_first_failure_stands(net: Net) -> None:
    reducer = Reducer(net)
    bob = Member(net, "bob", ())
    for_s(net, 1.0)
    bob.node.die()
    for_s(net, 1.0)
    cid = Member(net, "cid", NOT_A_NUMBER)
    until(net, cid.task)
    assert cid.refusal == (Reason.CONTRIBUTOR_LOST.value, "bob"), "one that comes later hears of it at once"
    assert failure(reducer).member == "bob"


def test_the_reducers_own_contribution_ends_with_the_failure_that_came_before(net: Net) -> None:
    node, shard = net.node("ann"), served(plan_of(("ann",)))
    own = node.start(send_locally(shard, "ann", GIVEN["ann"], chunks(ENCODED["ann"], SHARD)))
    for_s(net, 1.0)
    assert not own.done(), "it waits for room"
    shard.fail(Reason.CONTRIBUTOR_LOST, "bob", "its stream broke")
    until(net, own)
    error = own.exception()
    assert isinstance(error, AllReduceError) and (error.reason, error.member) == (Reason.CONTRIBUTOR_LOST, "bob")


# -- who is served ---------------------------------------------------------------------------------------------------------------


async def asks(shard: ServedShard, peer: str) -> bool:
    return shard.admits(peer)


def test_a_member_opens_a_shard_once(net: Net) -> None:
    node, shard = net.node("eve"), served(PLAN)
    assert [node.play(asks(shard, peer)) for peer in ("ann", "ann", "bob")] == [True, False, True]


def test_a_member_that_has_not_taken_its_averages_is_let_go_when_nobody_needs_the_shard(net: Net) -> None:
    reducer = Reducer(net)
    until(net, *(Member(net, name).task for name in GIVEN))
    reducer.node.machine.up_bytes_s = 1e5
    dag = Member(net, "dag")
    for_s(net, 0.3)
    reducer.shard.close()
    until(net, dag.task)
    assert isinstance(dag.task.exception(), UnreachableError)
    assert 0 < len(dag.averaged) < len(whole_result(PLAN)) / 2
    assert not reducer.node.errors
