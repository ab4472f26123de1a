"""Asking others, within a time: in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import pytest

from protocols.errors import BadMessageError, RefusedError, UnreachableError
from protocols.messages import NOBODY, AskReply, AskRequest
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, Standing
from protocols.transport.interface import Stream, call, receive_within, refusal
from protocols.transport.whereabouts import ask, ask_all
from tests.peer.virtual import Answers, Net, Node


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as made:
        yield made


def standing(samples: int, lineage: str = "c") -> Standing:
    return Standing(3, lineage * 64, samples)


def at(net: Net, name: str, where: Standing, *, caught_up: bool = True) -> Candidate:
    async def answer(stream: Stream, request: AskRequest) -> AsyncIterator[Any]:
        yield AskReply(where, caught_up, NOBODY, "")

    return net.node(name, Answers(AskRequest=answer)).candidate


def refusing(net: Net, name: str, reason: Reason) -> Candidate:
    async def answer(stream: Stream, request: AskRequest) -> AsyncIterator[Any]:
        raise refusal(reason, "no")
        yield

    return net.node(name, Answers(AskRequest=answer)).candidate


def silent(net: Net, name: str) -> Candidate:
    async def answer(stream: Stream, request: AskRequest) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    return net.node(name, Answers(AskRequest=answer)).candidate


def found(me: Node, *peers: Candidate, seed: int = 0) -> list[str]:
    return [there.peer.peer for there in me.play(ask_all(me.transport, peers, Random(seed)))]


def test_those_that_answer_and_are_caught_up_come_the_furthest_first(net: Net) -> None:
    me = net.node("me")
    peers = [
        at(net, "near", standing(10)),
        at(net, "far", standing(30)),
        at(net, "lost", standing(99), caught_up=False),
        at(net, "middle", standing(20)),
        refusing(net, "new", Reason.NOT_CAUGHT_UP),
        silent(net, "busy"),
        Candidate("gone", "gone:1"),
    ]
    assert found(me, *peers) == ["far", "middle", "near"]


def test_of_equal_weights_the_smaller_lineage_comes_first(net: Net) -> None:
    me = net.node("me")
    assert found(me, at(net, "ann", standing(10, "d")), at(net, "bob", standing(10, "c"))) == ["bob", "ann"]


def test_those_that_stand_equal_come_in_random_order_so_that_they_share_the_load(net: Net) -> None:
    me = net.node("me")
    peers = [at(net, name, standing(10)) for name in ("ann", "bob", "cid", "dag")]
    first = {found(me, *peers, seed=seed)[0] for seed in range(20)}
    assert first == {"ann", "bob", "cid", "dag"}


def test_all_are_asked_at_once_and_silence_is_waited_for_once(net: Net) -> None:
    me = net.node("me")
    assert found(me, *(silent(net, f"s{index}") for index in range(5))) == []
    assert net.world.now == pytest.approx(DETECTION_S)


@pytest.mark.parametrize("reason", [Reason.OTHER_RUN, Reason.OTHER_VERSION])
def test_with_nobody_left_a_peer_of_another_swarm_says_why(net: Net, reason: Reason) -> None:
    me, foreign = net.node("me"), refusing(net, "foreign", reason)
    with pytest.raises(RefusedError) as error:
        found(me, foreign, Candidate("gone", "gone:1"))
    assert error.value.reason == reason.value
    assert found(me, foreign, at(net, "ann", standing(10))) == ["ann"], "one of another run does no harm beside others"


def test_one_that_does_not_answer_is_unreachable_after_the_time_that_it_was_given(net: Net) -> None:
    me = net.node("me")
    with pytest.raises(UnreachableError, match="within 3 s"):
        me.play(ask(me.transport, silent(net, "busy"), limit_s=3.0))
    assert net.world.now == pytest.approx(3.0)


def test_an_answer_is_due_once_and_an_end_is_none(net: Net) -> None:
    async def nothing(stream: Stream, request: AskRequest) -> AsyncIterator[Any]:
        return
        yield

    me, ann = net.node("me"), net.node("ann", Answers(AskRequest=nothing)).candidate
    with pytest.raises(BadMessageError, match="answered nothing"):
        me.play(call(me.transport, ann, AskRequest(), 5.0))


def test_a_stream_that_falls_silent_is_told_apart_from_one_that_ends(net: Net) -> None:
    async def once(stream: Stream, request: AskRequest) -> AsyncIterator[Any]:
        yield AskReply(standing(1), True, NOBODY, "")
        await asyncio.sleep(8.0)

    me, ann = net.node("me"), net.node("ann", Answers(AskRequest=once)).candidate

    async def listen(limit_s: float) -> Any:
        async with me.transport.open(ann, AskRequest()) as stream:
            assert isinstance(await receive_within(stream, limit_s), AskReply)
            return await receive_within(stream, limit_s)

    assert me.play(listen(10.0)) is None
    with pytest.raises(RefusedError) as error:
        me.play(listen(2.0))
    assert error.value.reason == Reason.SILENT.value
