"""What a peer holds of the attempts at an epoch: whatever it was ready for, until a commit. Two peers average over a
simulated line; what they train is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from peer.epoch.round_traffic import PLAN_ARRIVES_S, DriftedError, RoundTraffic
from peer.epoch.shard_server import AllReduceError, serve_shard
from protocols.errors import BadMessageError
from protocols.gradients.codecs import CODECS
from protocols.gradients.slices import ResultLayout, Slices
from protocols.messages import ReduceOpen
from protocols.reasons import Reason
from protocols.round.planner import GRID
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import Averages, Ballot, Contribution, Shard
from protocols.transport.frames import FrameStream, Kind, refuse
from tests.peer.virtual import JobsAtOnce, Net

PARENT, ELEMENTS, EPOCH = "a" * 64, 8 * GRID, 2
LAYOUT = ResultLayout(Slices.of(ELEMENTS), EPOCH, CODECS["fp32"], value_bytes=4)
VALUES = bytes(LAYOUT.total_bytes - LAYOUT.averaged_bytes)  # canonical, of both, unless a test says otherwise
OFF = b"\x01" * len(VALUES)
GIVEN = {name: Contribution(name, 1, 0, 4, PARENT, 2.0, 1e6) for name in ("ann", "bob")}


class Training:
    """A training side at the round's parent. `excess` is what it finds of canonical values other than its own."""

    def __init__(self) -> None:
        self.values = VALUES
        self.excess: Callable[[], dict[str, float]] = dict
        self.jobs = JobsAtOnce()
        self.replica = SimpleNamespace(
            slice_values=lambda parent: self.values,
            layout=lambda epoch: LAYOUT,
            refused=lambda plan, result: self.excess(),
        )


class Peer:
    """The bulk traffic of one peer, which answers others as its service does."""

    def __init__(self, net: Net, name: str) -> None:
        self.name, self.training = name, Training()
        self.node = net.node(name, self)
        training: Any = self.training
        settings: Any = SimpleNamespace(rule="mean", max_share=1.0)
        self.traffic = RoundTraffic(self.node.environment(), training, settings)

    async def serve(self, stream: Any, opening: Any) -> None:
        raise AssertionError("no calls are made")

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        opened = await stream.record(ReduceOpen, length)
        await stream.send(Kind.OPENED)
        shard = await self.traffic.served(opened.plan_digest, opened.shard)
        if shard is None:
            await refuse(stream, Reason.SUPERSEDED, "too late")
        elif shard.admits(stream.peer):
            await serve_shard(shard, opened, stream)

    def part(self, plan: Plan) -> Coroutine[Any, Any, Averages]:
        value = float(plan.ballot.attempt)
        encoded = CODECS["fp32"].encode(np.full(ELEMENTS, value, np.float32))
        sends = self.name in plan.contributors and plan.finishes is None
        return self.traffic.run(member_plan_of(plan, self.name), GIVEN[self.name] if sends else None, encoded if sends else b"")

    def begin(self, plan: Plan) -> asyncio.Task[Averages]:
        task = self.node.start(self.part(plan))
        self.traffic.began(plan.digest, task)
        return task

    def held(self, averages: Averages) -> float:
        """The first value of the result that it holds of these averages."""
        return float(CODECS["fp32"].decode(self.traffic.result(averages)[: LAYOUT.averaged_bytes], ELEMENTS)[0])


def attempt(number: int, *, reducers: tuple[str, ...] = ("bob",), **change: Any) -> Plan:
    size = ELEMENTS // len(reducers)
    shards = tuple(Shard(peer, f"{peer}:1", at * size, (at + 1) * size) for at, peer in enumerate(reducers))
    plan = Plan("b" * 64, Ballot(EPOCH, PARENT, number, "bob"), ("ann", "bob"), ("ann", "bob"), shards, "fp32", 10.0, 1)
    return replace(plan, **change)


@pytest.fixture
def peers(net: Net) -> tuple[Peer, Peer]:
    return Peer(net, "ann"), Peer(net, "bob")


def averaged(ann: Peer, bob: Peer, plan: Plan) -> Averages:
    bobs = bob.begin(plan)
    averages = ann.node.play(ann.part(plan))
    ann.node.world.run_until(ann.node.world.now + 60, bobs.done)
    assert bobs.result() == averages
    return averages


@pytest.mark.parametrize("reducers", [("bob",), ("ann",), ("ann", "bob")])
def test_members_come_to_the_same_averages_and_hold_them(peers: tuple[Peer, Peer], reducers: tuple[str, ...]) -> None:
    ann, bob = peers
    averages = averaged(ann, bob, attempt(3, reducers=reducers))
    assert averages.contributions == (GIVEN["ann"], GIVEN["bob"])
    assert ann.held(averages) == bob.held(averages) == 3.0
    assert bytes(ann.traffic.result(averages)) == bytes(bob.traffic.result(averages))


def test_an_attempt_that_drifted_does_not_cost_what_an_earlier_one_came_to(peers: tuple[Peer, Peer]) -> None:
    """Its averages may yet be finished by a third, or a commit of them be on its way."""
    ann, bob = peers
    first = averaged(ann, bob, attempt(1))
    bob.training.values = OFF
    ann.training.excess = lambda: {"bob": 7.0}
    bob.begin(attempt(2))
    with pytest.raises(DriftedError) as drifted:
        ann.node.play(ann.part(attempt(2)))
    assert drifted.value.reducers == ("bob",)
    assert ann.held(first) == 1.0


def test_values_that_are_off_by_rounding_only_are_no_drift(peers: tuple[Peer, Peer]) -> None:
    ann, bob = peers
    bob.training.values = OFF
    averages = averaged(ann, bob, attempt(1))
    assert bytes(ann.traffic.result(averages)[LAYOUT.averaged_bytes :]) == OFF, "the reducer's are the canonical ones"


def test_neither_does_one_that_is_stopped_once_all_is_there(peers: tuple[Peer, Peer]) -> None:
    """The canonical values are off by rounding: they are looked at on the training thread, and the attempt ends meanwhile."""
    ann, bob = peers
    first = averaged(ann, bob, attempt(1))
    bob.training.values = OFF
    ann.training.excess = lambda: ann.traffic.stop(attempt(2).digest) or {}  # type: ignore[func-returns-value]
    bob.begin(attempt(2))
    task = ann.begin(attempt(2))
    ann.node.world.run_until(60, task.done)
    assert task.cancelled()
    assert ann.held(first) == 1.0


def test_an_attempt_that_is_over_before_its_exchange_began_never_begins(peers: tuple[Peer, Peer]) -> None:
    ann, bob = peers
    bobs, task = bob.begin(attempt(1)), ann.begin(attempt(1))
    ann.traffic.stop(attempt(1).digest)
    ann.node.world.run_until(60, task.done)
    assert task.cancelled() and not bobs.done()
    assert ann.node.transport.bandwidth.moved_bytes == 0


def test_what_was_committed_is_held_no_longer(peers: tuple[Peer, Peer]) -> None:
    """Kept state has it: here it would be one vector more while the next round runs."""
    ann, bob = peers
    averages = averaged(ann, bob, attempt(1))
    assert ann.held(averages) == 1.0
    ann.traffic.committed(attempt(1).digest)
    with pytest.raises(BadMessageError, match="another plan"):
        ann.traffic.result(averages)


def test_members_that_wait_for_a_shard_are_told_when_its_reducer_stops(peers: tuple[Peer, Peer]) -> None:
    ann, bob = peers
    plan = attempt(1, contributors=("ann", "bob"))
    task = ann.begin(plan)
    bob.node.start(bob.traffic._completed(member_plan_of(plan, "bob"), None, b"", LAYOUT, VALUES))  # it gives nothing
    ann.node.world.run_until(1.0)
    assert not task.done()
    bob.traffic.stop(plan.digest)
    ann.node.world.run_until(5.0, task.done)
    error = task.exception()
    assert isinstance(error, AllReduceError)
    assert (error.reason, error.member, error.reducer) == (Reason.REDUCER_LOST, "ann", "bob")


def test_a_stream_that_overtakes_the_plan_waits_for_it(peers: tuple[Peer, Peer]) -> None:
    ann, bob = peers
    task = ann.begin(attempt(1))
    ann.node.world.run_until(PLAN_ARRIVES_S / 2)
    assert not task.done()
    bob.begin(attempt(1))
    ann.node.world.run_until(60, task.done)
    assert ann.held(task.result()) == 1.0


def test_a_plan_that_never_comes_is_not_waited_for_for_long(peers: tuple[Peer, Peer]) -> None:
    ann, _ = peers
    with pytest.raises(AllReduceError) as lost:
        ann.node.play(ann.part(attempt(1)))
    assert lost.value.reason is Reason.REDUCER_LOST
    assert PLAN_ARRIVES_S <= ann.node.world.now < PLAN_ARRIVES_S + 1


def test_a_member_that_gives_another_vector_than_the_shard_has_is_named(peers: tuple[Peer, Peer]) -> None:
    ann, bob = peers
    bobs = bob.begin(attempt(1))
    short = CODECS["fp32"].encode(np.full(ELEMENTS, np.nan, np.float32))
    plan = member_plan_of(attempt(1), "ann")
    with pytest.raises(AllReduceError) as named:
        ann.node.play(ann.traffic.run(plan, GIVEN["ann"], short))
    assert (named.value.reason, named.value.member) == (Reason.BAD_CHUNK, "ann")
    error = bobs.exception()
    assert isinstance(error, AllReduceError) and (error.reason, error.member) == (Reason.BAD_CHUNK, "ann")


def test_averages_that_the_reducer_holds_are_passed_on_without_anybody_giving_again(peers: tuple[Peer, Peer]) -> None:
    ann, bob = peers
    first = averaged(ann, bob, attempt(1))
    ann.traffic._held = (None, memoryview(b""))  # ann was not ready
    moved = ann.node.transport.bandwidth.up.moved_bytes
    finishing = attempt(2, contributors=(), finishes=first)
    assert averaged(ann, bob, finishing) == first
    assert ann.held(first) == 1.0
    assert ann.node.transport.bandwidth.up.moved_bytes - moved < 1000, "a request, and no shard"


def test_a_reducer_that_does_not_hold_them_any_more_says_that_it_is_lost(peers: tuple[Peer, Peer]) -> None:
    ann, bob = peers
    first = averaged(ann, bob, attempt(1))
    bob.traffic._held = (None, memoryview(b""))
    with pytest.raises(AllReduceError, match="not here any more") as lost:
        bob.node.play(bob.part(attempt(2, contributors=(), finishes=first)))
    assert (lost.value.reason, lost.value.reducer) == (Reason.REDUCER_LOST, "bob")


def test_a_plan_on_another_parent_is_refused_before_any_byte(peers: tuple[Peer, Peer]) -> None:
    ann, _ = peers

    def elsewhere(parent: str) -> bytes:
        raise BadMessageError("this peer's state is not at the plan's parent")

    ann.training.replica.slice_values = elsewhere
    with pytest.raises(AllReduceError) as error:
        ann.node.play(ann.part(attempt(1)))
    assert error.value.reason is Reason.OTHER_LINEAGE
    assert ann.node.transport.bandwidth.moved_bytes == 0
