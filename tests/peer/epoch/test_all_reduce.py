"""One member's side of an all-reduce: what it comes to with honest reducers, and what it says of others.

Reducers are the product's own where a test is about the average, and scripts of frames where it is about a reducer's faults.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from peer.epoch.all_reduce import AHEAD_CHUNKS, AHEAD_SHARE, Participation, all_reduce
from peer.epoch.shard_server import AllReduceError, ServedShard, UnreachedError, serve_shard
from peer.simulation.transport import SimulatedBulk
from protocols.gradients.codecs import Bytes
from protocols.gradients.slices import ResultLayout, Slices
from protocols.messages import Averaged, ReduceOpen
from protocols.reasons import Reason
from protocols.round.planner import GRID
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import Averages, Contribution, Shard
from protocols.transport.frames import FrameStream, Kind, refuse
from protocols.wire.convert import to_wire
from tests.peer.epoch.shards import (
    CHUNKING,
    CODEC,
    ENCODED,
    GIVEN,
    LAYOUT,
    canonical,
    chunks,
    plan_of,
    result_of,
    served,
    whole_result,
)
from tests.peer.virtual import Net

PLAN = plan_of()
CONTRIBUTIONS = tuple(GIVEN.values())
AVERAGES = Averages(CONTRIBUTIONS, tuple(map(result_of, PLAN.shards)))
Outcome = tuple[Averages, memoryview]


class Member:
    """Takes part in a plan, and reduces its shards of it for the others."""

    def __init__(self, net: Net, name: str, plan: Plan = PLAN) -> None:
        self.name, self.plan, self.node = name, plan, net.node(name, self)
        self.own: dict[int, ServedShard] = {
            index: served(plan, index) for index, shard in enumerate(plan.shards) if shard.reducer == name
        }

    def part(self, encoded: Bytes | None = None) -> Coroutine[Any, Any, Outcome]:
        """`encoded`: the vector that it sends, in place of its own."""
        sends = self.name in self.plan.contributors
        participation = Participation(
            self.name,
            member_plan_of(self.plan, self.name),
            GIVEN[self.name] if sends else None,
            encoded if encoded is not None else ENCODED.get(self.name, b""),
            self.own,
            LAYOUT,
            CHUNKING,
        )
        return all_reduce(participation, self.node.transport)

    async def serve(self, stream: Any, opening: Any) -> None:
        raise AssertionError("no calls are made")

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        opened = await stream.record(ReduceOpen, length)
        await stream.send(Kind.OPENED)
        shard = self.own[opened.shard]
        assert shard.admits(stream.peer)
        await serve_shard(shard, opened, stream)


Frames = list[tuple[Kind, Any]]


class Script:
    """A reducer that says what a test wants, whatever it is sent."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.opened: list[ReduceOpen] = []
        self.ended = 0  # requests whose connection the member has closed

    async def serve(self, stream: Any, opening: Any) -> None:
        raise AssertionError("no calls are made")

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        self.opened.append(await stream.record(ReduceOpen, length))
        await stream.send(Kind.OPENED)
        try:
            for answer, payload in self.frames:
                data = payload if isinstance(payload, bytes | memoryview) else to_wire(payload).SerializeToString()
                await stream.send(answer, data)
            await stream.drain()
        finally:
            self.ended += 1


class Refuses(Script):
    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__([])
        self.reason, self.sentence = reason, sentence

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        await stream.record(ReduceOpen, length)
        await refuse(stream, self.reason, self.sentence)


def honest(plan: Plan, index: int = 0, contributions: tuple[Contribution, ...] = CONTRIBUTIONS) -> Frames:
    """The frames of a reducer that is not at fault."""
    shard = plan.shards[index]
    parts: Frames = [(Kind.CHUNK, chunk) for chunk in chunks(whole_result(plan), shard)]
    return [(Kind.AVERAGED, Averaged(contributions)), *parts, (Kind.DONE, result_of(shard))]


def lost(member: Member, encoded: Bytes | None = None) -> AllReduceError:
    """The error that ends its part."""
    with pytest.raises(AllReduceError) as error:
        member.node.play(member.part(encoded), 60.0)
    return error.value


# -- what it comes to -----------------------------------------------------------------------------------------------------------


def test_every_member_comes_to_the_mean_over_all_samples_as_the_codec_rounds_it(net: Net) -> None:
    """Two members reduce, of which each has its own part of the other's shard and of its own; one sends, and one fetches."""
    members = [Member(net, name) for name in PLAN.members]
    tasks = [member.node.start(member.part()) for member in members]
    net.world.run_until(60.0, lambda: all(task.done() for task in tasks))
    for task in tasks:
        averages, result = task.result()
        assert averages == AVERAGES and averages.samples == 32
        assert bytes(result) == whole_result(PLAN), "averages, and the canonical values of each shard's reducer"


def test_a_member_that_contributes_nothing_fetches_the_result_and_sends_a_request_to_each_reducer(net: Net) -> None:
    scripts = [Script(honest(PLAN, index)) for index in range(2)]
    for shard, script in zip(PLAN.shards, scripts, strict=True):
        net.node(shard.reducer, script)
    dag = Member(net, "dag")
    averages, result = dag.node.play(dag.part())
    assert averages == AVERAGES and bytes(result) == whole_result(PLAN)
    assert [script.opened for script in scripts] == [[ReduceOpen(PLAN.digest, index, None)] for index in range(2)]
    assert dag.node.transport.bandwidth.up.moved_bytes < 300


def test_a_peer_that_reduces_what_it_alone_gives_needs_no_network(net: Net) -> None:
    plan = plan_of(("ann",), contributors=("ann",), members=("ann",))
    ann = Member(net, "ann", plan)
    averages, result = ann.node.play(ann.part())
    assert averages.contributions == (GIVEN["ann"],)
    assert bytes(result) == ENCODED["ann"] + canonical(plan.shards[0])
    assert averages.shards[0].digest == blake3(result).hexdigest()
    assert ann.node.transport.bandwidth.moved_bytes == 0


def test_a_contribution_goes_to_all_reducers_abreast(net: Net) -> None:
    """The line alone gives each connection as much: the small shard would be there before half of the large one."""
    size = 64 * GRID
    shards = (Shard("bob", "bob:1", 0, size // 4), Shard("eve", "eve:1", size // 4, size))
    plan = plan_of(members=("ann", "bob", "cid", "dag", "eve"), shards=shards)
    got: dict[str, int] = {}
    at_end: dict[str, int] = {}

    class Counts(Script):
        async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
            shard = shards[(await stream.record(ReduceOpen, length)).shard]
            await stream.send(Kind.OPENED)
            chunk = memoryview(bytearray(CODEC.encoded_bytes(GRID)))
            for count in range(1, (shard.stop - shard.start) // GRID + 1):
                await stream.receive_into(chunk)
                got[shard.reducer] = count
            at_end.update({} if at_end else got)
            await stream.receive_into(chunk)

    for shard in shards:
        net.node(shard.reducer, Counts([]))
    ann = Member(net, "ann", plan)
    ann.node.machine.up_bytes_s = 1e5
    layout = ResultLayout(Slices.of(size), 2, CODEC, value_bytes=4)
    contributed = bytes(CODEC.encoded_bytes(size))
    part = Participation("ann", member_plan_of(plan, "ann"), GIVEN["ann"], contributed, {}, layout, CHUNKING)
    ann.node.start(all_reduce(part, ann.node.transport))
    net.world.run_until(60.0, lambda: bool(at_end))
    assert at_end["bob"] == 16, "the small shard ends first"
    assert at_end["eve"] / 48 >= 1 - AHEAD_SHARE - (AHEAD_CHUNKS + 1) / 16


def test_a_transfer_is_paced_over_the_time_that_the_plan_takes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float | None] = []
    monkeypatch.setattr(SimulatedBulk, "set_rate", lambda stream, bytes_s: rates.append(bytes_s))
    plan = plan_of(("bob",), planned_s=2.0)
    net.node("bob", Script(honest(plan)))
    ann = Member(net, "ann", plan)
    ann.node.play(ann.part())
    assert rates == [len(ENCODED["ann"]) / 2.0]


# -- what it says of a reducer --------------------------------------------------------------------------------------------------

ALONE = plan_of(("bob",))
HONEST = honest(ALONE)
FIRST, LAST, DONE = HONEST[1], HONEST[-2], result_of(ALONE.shards[0])
INFINITE = CODEC.encode(np.full(GRID, np.inf, np.float32))


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        pytest.param([*HONEST[:-1], (Kind.DONE, replace(DONE, digest="c" * 64))], "does not match its digest", id="other digest"),
        pytest.param([*HONEST[:-2], HONEST[-1]], "is short, or another one", id="chunk left out"),
        pytest.param([*HONEST[:-1], (Kind.DONE, replace(DONE, stop=GRID))], "is short, or another one", id="other shard"),
        pytest.param([HONEST[0], (Kind.CHUNK, FIRST[1][:-2])], "a chunk of 2046 bytes", id="short chunk"),
        pytest.param([*HONEST[:-1], LAST], "which the shard does not have", id="chunk too many"),
        pytest.param([HONEST[0], (Kind.CHUNK, INFINITE)], "not finite", id="infinite average"),
        pytest.param([HONEST[0], HONEST[0]], "AVERAGED where averages belong", id="contributions twice"),
    ],
)
def test_a_reducer_that_breaks_the_protocol_is_lost_to_this_member(net: Net, frames: Frames, problem: str) -> None:
    net.node("bob", Script(frames))
    error = lost(Member(net, "ann", ALONE))
    assert (error.reason, error.member, error.reducer) == (Reason.REDUCER_LOST, "ann", "bob")
    assert problem in str(error)


def test_a_reducer_that_refuses_is_lost_to_this_member(net: Net) -> None:
    net.node("bob", Refuses(Reason.SUPERSEDED, "too late"))
    error = lost(Member(net, "ann", ALONE))
    assert (error.reason, error.member, error.reducer) == (Reason.REDUCER_LOST, "ann", "bob")


@pytest.mark.parametrize("reason", [Reason.CONTRIBUTOR_LOST, Reason.BAD_CHUNK])
def test_a_contributor_that_a_reducer_names_is_passed_on(net: Net, reason: Reason) -> None:
    """All members then tell the leader of the same pair."""
    net.node("bob", Refuses(reason, "cid"))
    error = lost(Member(net, "ann", ALONE))
    assert (error.reason, error.member, error.reducer) == (reason, "cid", "bob")


class Mute(Script):
    """Takes the connection, and never answers on it."""

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        await stream.drain()


@pytest.mark.parametrize("there", [False, True], ids=["no connection", "no answer"])
def test_a_reducer_that_cannot_be_reached_is_lost_to_this_member_before_the_leader_loses_patience(net: Net, there: bool) -> None:
    if there:
        net.node("bob", Mute([]))
    error = lost(Member(net, "ann", ALONE))
    assert (error.reason, error.member, error.reducer) == (Reason.REDUCER_LOST, "ann", "bob")
    assert isinstance(error, UnreachedError)
    assert net.world.now < ALONE.patience_s


def test_a_reducer_that_refuses_was_reached(net: Net) -> None:
    net.node("bob", Refuses(Reason.SUPERSEDED, "too late"))
    assert not isinstance(lost(Member(net, "ann", ALONE)), UnreachedError)


def test_one_shard_that_fails_gives_the_others_up(net: Net) -> None:
    plan, silent = plan_of(("bob", "eve")), Script([])
    net.node("bob", silent)
    net.node("eve", Refuses(Reason.SUPERSEDED, "too late"))
    error = lost(Member(net, "ann", plan))
    assert error.reducer == "eve"
    net.world.run_until(net.world.now + 1.0)
    assert (len(silent.opened), silent.ended) == (1, 1), "the connection to the other is closed"


def test_reducers_that_average_different_contributions_disagree(net: Net) -> None:
    plan = plan_of(("bob", "eve"))
    net.node("bob", Script(honest(plan, 0)))
    net.node("eve", Script(honest(plan, 1, CONTRIBUTIONS[:2])))
    error = lost(Member(net, "ann", plan))
    assert (error.reason, error.member, error.reducer) == (Reason.RESULTS_DIFFER, "ann", "eve")


def test_an_average_without_this_members_contribution_is_not_taken(net: Net) -> None:
    net.node("bob", Script(honest(ALONE, 0, CONTRIBUTIONS[1:])))
    error = lost(Member(net, "ann", ALONE))
    assert error.reason is Reason.RESULTS_DIFFER and "not in the average" in str(error)


def test_averages_other_than_those_to_be_finished_are_not_taken(net: Net) -> None:
    finished = Averages(CONTRIBUTIONS, (replace(DONE, sum_of_squares=1.0),))
    plan = plan_of(("bob",), contributors=(), finishes=finished)
    net.node("bob", Script(HONEST))
    error = lost(Member(net, "dag", plan))
    assert error.reason is Reason.RESULTS_DIFFER and "to be finished" in str(error)


def test_a_peers_own_vector_that_does_not_fit_its_shard_is_its_own_bad_chunk(net: Net) -> None:
    plan = plan_of(("ann",), contributors=("ann",))
    error = lost(Member(net, "ann", plan), ENCODED["ann"][:-2])
    assert (error.reason, error.member, error.reducer) == (Reason.BAD_CHUNK, "ann", "ann")
