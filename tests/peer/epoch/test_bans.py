"""The ban list from peer to peer: a newer one replaces an older one, nobody makes one up, and doors close behind who is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from peer.epoch.bans import EXCHANGE_S, Bans
from peer.simulation.transport import ban_list_by_the_organiser
from protocols.ban_list import BanList, KnownBans, SignedBanList
from protocols.errors import BadMessageError, RefusedError
from protocols.reasons import Reason
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import Stream
from tests.peer.virtual import Answers, Net, Node, SmallSwarm

OLD, NEW = (ban_list_by_the_organiser(BanList(version, peers)) for version, peers in ((3, ("eve",)), (5, ("eve", "mallory"))))
FORGED = replace(NEW, bans=BanList(9, ("ann", "bob")))


class Peer:
    """A peer that does nothing but heed bans; it knows `others`."""

    def __init__(self, net: Net, name: str, *others: Node) -> None:
        self.node = net.node(name, self)
        self.bans = Bans(self.node.environment(), lambda: [other.candidate for other in others], self.node.told)

    async def serve(self, stream: Stream, opening: Any) -> None:
        await self.bans.serve(stream, opening)

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        raise AssertionError("no bulk request was expected")

    def runs_for(self, seconds: float) -> None:
        running = self.node.start(self.bans.run())
        self.node.play(asyncio.sleep(seconds))
        running.cancel()


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        yield net


def lists_of(*answers: Any) -> Answers:
    async def given(stream: Stream, opening: Any) -> AsyncIterator[Any]:
        for record in answers:
            yield record

    return Answers(KnownBans=given)


@pytest.mark.parametrize("caller_has_it", [True, False])
def test_whoever_has_the_newer_list_gives_it(net: Net, caller_has_it: bool) -> None:
    callee = Peer(net, "bob")
    caller = Peer(net, "ann", callee.node)
    for bans, signed in ((caller.bans, NEW if caller_has_it else OLD), (callee.bans, OLD if caller_has_it else NEW)):
        bans.hear(signed, "coordinator")
    caller.runs_for(EXCHANGE_S)
    assert caller.bans.newest == callee.bans.newest == NEW
    learnt = callee if caller_has_it else caller
    assert learnt.node.told_of("bans")[-1] == {"version": 5, "count": 2, "source": "ann" if caller_has_it else "bob"}
    assert not caller.node.told_of("bans_refused") and not callee.node.told_of("bans_refused")


def test_an_older_list_changes_nothing(net: Net) -> None:
    ann = Peer(net, "ann")
    for signed in (NEW, OLD):
        ann.bans.hear(signed, "coordinator")
    assert ann.bans.peers == {"eve", "mallory"}


def test_a_newer_list_may_let_a_peer_in_again(net: Net) -> None:
    ann = Peer(net, "ann")
    for signed in (NEW, ban_list_by_the_organiser(BanList(6, ("mallory",)))):
        ann.bans.hear(signed, "coordinator")

    async def enter() -> bool:
        with ann.bans.door("eve"):
            return True

    assert ann.node.play(enter())


@pytest.mark.parametrize("lie", [FORGED, OLD, NEW], ids=["forged", "replayed", "the same again"])
def test_a_forged_or_replayed_list_is_refused_and_its_sender_is_left_alone(net: Net, lie: SignedBanList) -> None:
    liar = net.node("mallory", lists_of(lie))
    ann = Peer(net, "ann", liar)
    ann.bans.hear(NEW, "coordinator")
    ann.runs_for(20 * EXCHANGE_S)
    assert ann.bans.newest == NEW
    assert ann.node.told_of("bans_refused")[0]["peer"] == "mallory"
    assert len(liar.transport.service.asked) <= 5  # type: ignore[union-attr]  # rests of 2, 4, 8, 16 s in 40 s


@pytest.mark.parametrize("lie", [FORGED, OLD], ids=["forged", "replayed"])
def test_a_caller_that_gives_a_forged_or_replayed_list_is_refused(net: Net, lie: SignedBanList) -> None:
    bob = Peer(net, "bob")
    bob.bans.hear(NEW, "coordinator")
    liar = net.node("mallory")

    async def lying() -> None:
        async with liar.transport.open(bob.node.candidate, KnownBans(9)) as stream:
            assert await stream.receive() == KnownBans(5)
            await stream.send(lie)
            await stream.receive()

    with pytest.raises(RefusedError) as refused:
        liar.play(lying())
    assert refused.value.reason == Reason.BAD_MESSAGE.value and bob.bans.newest == NEW
    assert bob.node.told_of("bans_refused")[0]["peer"] == "mallory"
    with pytest.raises(RefusedError) as rests:
        liar.play(lying())
    assert rests.value.reason == Reason.BUSY.value


def test_a_door_closes_behind_a_peer_that_is_inside(net: Net) -> None:
    ann = Peer(net, "ann")

    async def serving() -> None:
        with ann.bans.door("eve"):
            await asyncio.sleep(3600)

    serving_eve = ann.node.start(serving())
    ann.node.play(asyncio.sleep(1))
    with ann.node.loop.running():
        ann.bans.hear(NEW, "coordinator")
    with pytest.raises(RefusedError) as refused:
        ann.node.play(_result(serving_eve))
    assert refused.value.reason == Reason.BANNED.value and ann.node.world.now < 3


async def _result(task: asyncio.Task[None]) -> None:
    await task


def test_a_list_that_no_authority_signed_is_not_heard_from_the_coordinator_either(net: Net) -> None:
    ann = Peer(net, "ann")
    with pytest.raises(BadMessageError, match="not signed"):
        ann.bans.hear(FORGED, "coordinator")
    assert not ann.bans.peers


def test_a_list_reaches_every_peer_from_any_one_of_them_client_mode_or_not() -> None:
    with SmallSwarm(8, hidden=("p6", "p7"), seed=3) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= 1)
        first = swarm.processes["p7"]
        with first.loop.running():
            first.engine.bans.hear(NEW, "coordinator")
        began = swarm.world.now
        swarm.until(lambda: all(swarm.processes[name].engine.banned for name in swarm.names), 30.0)
        print(f"{swarm.world.now - began:.1f} s to eight peers")
        assert swarm.world.now - began < 10.0


def test_who_reads_of_its_own_ban_ends(net: Net) -> None:
    eve = Peer(net, "eve")
    eve.bans.hear(NEW, "bob")
    with pytest.raises(RefusedError, match="does not let this peer take part") as refused:
        eve.bans.check_self()
    assert refused.value.reason == Reason.BANNED.value
