"""The ways in that a peer offers to be dialled at, in virtual time. The addresses and the router are what each test says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from peer.listening import WaysIn
from protocols.round.records import Hello
from protocols.transport import addresses
from protocols.transport.port_mapping import RENEW_S, Mapping
from tests.peer.virtual import Net, Node

HELLO = Hello(1, False, "unset:1", "unset:2", "me")
MAPPED = Mapping("203.0.113.9", 7001, 7002, "UPnP")
IN_THE_WORLD, AT_HOME = "5.9.5.9:4000", "192.168.1.2:4000"


class Router:
    """In the place of a PortMapping: gives `mapping`."""

    def __init__(self) -> None:
        self.mapping: Mapping | None = MAPPED
        self.problem = ""
        self.asked: list[str] = []

    def of(self, own: str) -> Any:
        self.asked.append(f"for {own}")
        return self

    def look(self) -> None:
        self.asked.append("look")

    async def open(self, port: int, bulk_port: int) -> Mapping | None:
        self.asked.append(f"open {port} {bulk_port}")
        self.problem = "" if self.mapping else "it refuses"
        return self.mapping

    async def aclose(self) -> None:
        self.asked.append("close")


class Computer:
    """This machine's addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.own: str | None = "192.168.1.7"
        self.ipv6 = ""
        monkeypatch.setattr(addresses, "way_towards", self._way_towards)
        monkeypatch.setattr(addresses, "own_global_ipv6", lambda: self.ipv6)

    def _way_towards(self, host: str, port: int) -> tuple[str, str]:
        if self.own is None:
            raise OSError("no network")
        return self.own, host


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Computer:
    return Computer(monkeypatch)


@pytest.fixture
def me(net: Net) -> Node:
    return net.node("me")


def ways_in(me: Node, router: Router, coordinator: str = IN_THE_WORLD, **options: Any) -> WaysIn:
    ways = WaysIn(coordinator, me.told, mapping=router.of, **options)
    ways.listening(4242, 4243)
    return ways


def tried(me: Node, ways: WaysIn, works: Callable[[Hello], bool] = lambda hello: False) -> list[str]:
    """The addresses that are dialled until one works."""

    async def go() -> list[str]:
        found = []
        async for hello in ways.find(HELLO):
            found.append(f"{hello.address} {hello.bulk_address}")
            if works(hello):
                break
        return found

    return me.play(go())


OWN, OUTSIDE, IPV6 = "192.168.1.7:4242 192.168.1.7:4243", "203.0.113.9:7001 203.0.113.9:7002", "[2a00::7]:4242 [2a00::7]:4243"


def test_at_home_with_the_coordinator_in_the_world_the_router_comes_first(me: Node, computer: Computer) -> None:
    computer.ipv6 = "2a00::7"
    assert tried(me, ways_in(me, Router())) == [OUTSIDE, OWN, IPV6]


def test_in_a_network_with_the_coordinator_the_router_is_asked_only_if_the_own_address_does_not_work(
    me: Node, computer: Computer
) -> None:
    router = Router()
    assert tried(me, ways_in(me, router, AT_HOME), lambda hello: True) == [OWN]
    assert not [asked for asked in router.asked if asked.startswith("open")]
    assert tried(me, ways_in(me, Router(), AT_HOME)) == [OWN, OUTSIDE]


@pytest.mark.parametrize("own", ["5.9.5.10", "127.0.0.1", "2a00::7"])
def test_no_router_is_asked_for_an_address_that_is_in_the_world_or_nowhere(me: Node, computer: Computer, own: str) -> None:
    computer.own = own
    router = Router()
    ways = ways_in(me, router)
    me.play(ways.look())
    assert len(tried(me, ways)) == 1
    assert router.asked == []


@pytest.mark.parametrize("options", [{"port_mapping": False}, {"announce": "example.org:99"}])
def test_a_volunteer_who_forbids_it_or_forwards_a_port_alone_has_no_router_asked(
    me: Node, computer: Computer, options: dict[str, Any]
) -> None:
    router = Router()
    ways = ways_in(me, router, **options)
    me.play(ways.look())
    (way,) = tried(me, ways)
    assert way == (OWN if "announce" not in options else "example.org:99 example.org:100")
    assert router.asked == []


def test_a_mapping_that_does_not_work_is_undone_and_one_that_works_is_kept_until_the_peer_leaves(
    me: Node, computer: Computer
) -> None:
    router = Router()
    ways = ways_in(me, router)
    tried(me, ways)
    assert router.asked[-1] == "close"
    tried(me, ways, lambda hello: hello.address == "203.0.113.9:7001")
    assert router.asked[-1] == "open 4242 4243"
    me.play(ways.aclose())
    assert router.asked[-1] == "close"


def test_what_came_of_it_is_told_once(me: Node, computer: Computer) -> None:
    router = Router()
    ways = ways_in(me, router)
    for _ in range(3):
        tried(me, ways, lambda hello: True)
    assert me.told_of("port_mapping") == [dataclasses.asdict(MAPPED)]
    router.mapping = None
    for _ in range(3):
        tried(me, ways, lambda hello: True)
    assert me.told_of("port_mapping")[1:] == [{"problem": "it refuses"}]


class Watched:
    def __init__(self, net: Net, me: Node, ways: WaysIn) -> None:
        self.heard: list[str] = []
        me.start(ways.watch(self._moved, lambda: self.heard.append("suspect")))

    async def _moved(self) -> None:
        self.heard.append("moved")


def test_a_move_is_noticed_within_seconds_and_the_ways_in_are_the_new_ones(net: Net, me: Node, computer: Computer) -> None:
    router = Router()
    ways = ways_in(me, router)
    tried(me, ways, lambda hello: True)
    watched = Watched(net, me, ways)
    net.world.run_until(net.world.now + 60)
    assert watched.heard == []
    computer.own = None
    net.world.run_until(net.world.now + 60)
    assert watched.heard == [], "without a network there is nothing to say"
    computer.own = "10.0.0.3"
    net.world.run_until(net.world.now + 5)
    assert watched.heard == ["moved", "suspect"]
    assert me.told_of("moved") == [{"address": "10.0.0.3"}]
    assert router.asked[-1] == "close", "the lease of before is given back"
    assert tried(me, ways)[1] == "10.0.0.3:4242 10.0.0.3:4243"
    assert "for 10.0.0.3" in router.asked


def test_a_new_temporary_address_of_ipv6_is_tried_and_is_no_move(net: Net, me: Node, computer: Computer) -> None:
    computer.ipv6 = "2a00::7"
    ways = ways_in(me, Router(), AT_HOME)
    watched = Watched(net, me, ways)
    computer.ipv6 = "2a00::8"
    net.world.run_until(net.world.now + 5)
    assert watched.heard == ["suspect"] and not me.told_of("moved")
    assert tried(me, ways)[-1] == "[2a00::8]:4242 [2a00::8]:4243"


def test_a_mapping_is_renewed_in_time_and_another_one_is_tried_by_the_others(net: Net, me: Node, computer: Computer) -> None:
    router = Router()
    ways = ways_in(me, router)
    tried(me, ways, lambda hello: True)
    watched = Watched(net, me, ways)
    net.world.run_until(net.world.now + 2.5 * RENEW_S)
    assert router.asked.count("open 4242 4243") == 3 and watched.heard == []
    router.mapping = dataclasses.replace(MAPPED, host="203.0.113.77")
    net.world.run_until(net.world.now + RENEW_S)
    assert watched.heard == ["suspect"]
