"""What a peer asks of the home's router, and that it takes it back. The router is a real one on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest

from protocols.errors import RouterError
from protocols.transport import port_mapping
from protocols.transport.addresses import linux_gateway, macos_gateway
from protocols.transport.port_mapping import LEASE_S, Mapping, PortMapping
from protocols.transport.upnp import Upnp
from tests.home_router import HOST, Entry, HomeRouter

BOTH = {4242: Entry(HOST, 4242, LEASE_S), 4243: Entry(HOST, 4243, LEASE_S)}


@pytest.fixture
def router() -> Iterator[HomeRouter]:
    with HomeRouter("NAT-PMP") as it:
        yield it


@pytest.fixture(scope="module")
def upnp() -> Iterator[tuple[HomeRouter, Upnp]]:
    """A router, and what finds it once for all: a search takes a second."""
    with HomeRouter("UPnP") as it:
        gateway = Upnp(HOST)
        asyncio.run(gateway.find())
        yield it, gateway


def play(router: HomeRouter, work: Callable[[PortMapping], Awaitable[None]]) -> None:
    async def run() -> None:
        await work(PortMapping(HOST, HOST, router.nat_pmp_port))

    asyncio.run(run())


async def opened(mapping: PortMapping) -> Mapping:
    found = await mapping.open(4242, 4243)
    assert found is not None, mapping.problem
    return found


@pytest.mark.parametrize("speaks", ["NAT-PMP", "UPnP"])
def test_both_ports_are_forwarded_for_an_hour_and_forgotten_at_leaving(speaks: str) -> None:
    async def work(mapping: PortMapping) -> None:
        assert await opened(mapping) == Mapping(router.outside, 4242, 4243, router.speaks)
        assert router.table == BOTH
        await mapping.aclose()
        assert router.table == {}

    with HomeRouter(speaks) as router:
        play(router, work)


def test_a_port_that_the_router_forwards_for_somebody_else_is_left_alone(router: HomeRouter) -> None:
    others = Entry("192.168.1.99", 4242, None)
    router.table[4242] = others

    async def work(mapping: PortMapping) -> None:
        found = await opened(mapping)
        assert found.port != 4242 and found.bulk_port == 4243
        assert router.table[found.port] == Entry(HOST, 4242, LEASE_S)
        assert await opened(mapping) == found, "a renewal asks for the same port again"
        await mapping.aclose()
        assert router.table == {4242: others}

    play(router, work)


def test_a_router_that_forgot_everything_is_asked_again_at_renewal(router: HomeRouter) -> None:
    async def work(mapping: PortMapping) -> None:
        await opened(mapping)
        router.table.clear()
        router.outside = "203.0.113.77"
        assert (await opened(mapping)).host == "203.0.113.77"
        assert router.table == BOTH
        await mapping.aclose()

    play(router, work)


def test_a_router_that_refuses_says_so_and_nothing_stays_behind(router: HomeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_mapping, "LOOK_S", 0.2)
    router.refuses.add(4243)

    async def work(mapping: PortMapping) -> None:
        assert await mapping.open(4242, 4243) is None
        assert router.speaks in mapping.problem
        assert router.table == {}
        await mapping.aclose()

    play(router, work)


def test_who_leaves_while_the_router_is_asked_leaves_nothing_behind(router: HomeRouter) -> None:
    async def work(mapping: PortMapping) -> None:
        asked = asyncio.create_task(mapping.open(4242, 4243))
        while 4242 not in router.table:  # noqa: ASYNC110  the router is on another thread
            await asyncio.sleep(0.001)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await mapping.aclose()
        assert router.table == {}

    play(router, work)


def test_a_upnp_router_that_knows_no_leases_forwards_until_it_is_told_to_stop(upnp: tuple[HomeRouter, Upnp]) -> None:
    router, gateway = upnp
    router.only_for_ever = True
    assert asyncio.run(gateway.forward(4242, 4242, LEASE_S)) == 4242
    assert router.table == {4242: Entry(HOST, 4242, None)}
    asyncio.run(gateway.forget(4242, 4242))
    assert router.table == {}
    router.only_for_ever = False


def test_a_upnp_router_gives_another_port_where_one_is_taken(upnp: tuple[HomeRouter, Upnp]) -> None:
    router, gateway = upnp
    router.table[4242] = others = Entry("192.168.1.99", 4242, None)
    outside = asyncio.run(gateway.forward(4242, 4242, LEASE_S))
    assert router.table == {4242: others, outside: Entry(HOST, 4242, LEASE_S)}
    router.table.clear()


def test_a_upnp_router_that_refuses_is_not_asked_for_other_ports(upnp: tuple[HomeRouter, Upnp]) -> None:
    router, gateway = upnp
    router.refuses.add(4242)
    with pytest.raises(RouterError, match="not authorized"):
        asyncio.run(gateway.forward(4242, 4242, LEASE_S))
    assert router.refusals == 1
    router.refuses.clear()


def test_a_router_that_answers_nothing_costs_no_more_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_mapping, "LOOK_S", 0.1)

    async def run(silent_port: int) -> None:
        mapping = PortMapping(HOST, HOST, silent_port)
        began = asyncio.get_running_loop().time()
        assert await mapping.open(4242, 4243) is None
        assert asyncio.get_running_loop().time() - began < 2.0
        assert "no router answers" in mapping.problem
        await mapping.aclose()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        asyncio.run(run(silent.getsockname()[1]))


def test_answers_that_are_cut_short_or_to_other_questions_are_passed_over(router: HomeRouter) -> None:
    async def work(mapping: PortMapping) -> None:
        await opened(mapping)
        await mapping.aclose()

    router.noise = [b"", b"\0", b"\0\x80\0\0", b"\0\x82" + bytes(6), b"\0\x85" + bytes(10)]
    play(router, work)


ROUTES = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
wlan0 00000000 0102A8C0 0003 0 0 600 00000000 0 0 0
eth0 00000000 FE01A8C0 0003 0 0 100 00000000 0 0 0
eth0 0001A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0
"""


def test_the_gateway_is_read_off_what_the_system_says() -> None:
    assert linux_gateway(ROUTES) == "192.168.1.254"
    assert linux_gateway(ROUTES.splitlines()[0]) is None
    assert (
        macos_gateway("   route to: default\ndestination: default\n    gateway: 192.168.1.1\n  interface: en0\n") == "192.168.1.1"
    )
    assert macos_gateway("route: writing to routing socket: not in table") is None
