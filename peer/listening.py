"""Where a peer listens, and under which addresses it says so."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocols.errors import UsageError
from protocols.round.records import Hello
from protocols.transport import addresses
from protocols.transport.port_mapping import RENEW_S, Mapping, PortMapping

if TYPE_CHECKING:  # arrival.py looks at ports before torch is imported
    from peer.environment import EventSink

LOOK_S = 1.0  # between two looks at this machine's own addresses; they send nothing


def hosts(host: str | None, coordinator: str) -> tuple[str, str]:
    """(address to listen on, host to announce): towards the coordinator (host:port), unless the volunteer gives `host`."""
    if host is not None:
        listen = addresses.host_to_listen_on(host)
        return listen, addresses.own_address(addresses.family_of(listen)) if addresses.is_everywhere(listen) else listen
    own = addresses.own_address_towards(*addresses.split(coordinator))
    if ipaddress.ip_address(own).is_loopback:
        return own, own
    family = socket.AF_INET6 if addresses.own_global_ipv6() else addresses.family_of(own)
    return addresses.EVERYWHERE[family], own  # IPv6's takes IPv4 too


def announced(host: str, port: int, bulk_port: int) -> tuple[str, str]:
    """(address for calls, address for shards) under which others reach this peer; a forwarded port has the next beside it."""
    name, forwarded = addresses.host_and_port(host)
    if forwarded is not None:
        port, bulk_port = forwarded, forwarded + 1
    return addresses.joined(name, port), addresses.joined(name, bulk_port)


class WaysIn:
    """The addresses under which others may reach this peer. Some of them try one after the other (epoch/reachability.py)."""

    def __init__(
        self,
        coordinator: str,
        events: EventSink,
        *,
        host: str | None = None,
        announce: str | None = None,
        port_mapping: bool = True,
        mapping: Callable[[str], PortMapping] = PortMapping,
    ) -> None:
        """`coordinator`: host:port. `host`, `announce`, `port_mapping`: as the volunteer chose. `mapping`: makes that of an own
        address."""
        name, port = addresses.split(coordinator)
        there = addresses.way_towards(name, port)[1]
        self._coordinator = addresses.joined(there, port)  # by number: looking there from now on asks no name server
        self._is_far = ipaddress.ip_address(there).is_global
        self._events = events
        self._host = host
        self._announce = announce
        self._may_map = port_mapping and announce is None
        self._new_mapping = mapping
        self._ports = (0, 0)
        self._router: PortMapping | None = None
        self._mapped: Mapping | None = None
        self._lock = asyncio.Lock()  # the router is asked one thing at a time
        self._told: dict[str, Any] = {}
        self._own = self._own_addresses()
        self.listen_host = hosts(host, self._coordinator)[0]

    def listening(self, port: int, bulk_port: int) -> tuple[str, str]:
        """This peer listens on these ports now. Returns the addresses to begin with."""
        self._ports = (port, bulk_port)
        return announced(self._announce or self._own.host, port, bulk_port)

    async def look(self) -> None:
        """Begin to look for the router, if this machine seems to be behind one: it takes seconds. Returns at once."""
        if self._can_map:
            self._asked_router().look()

    async def find(self, hello: Hello) -> AsyncGenerator[Hello, None]:
        """`hello` at one address after the other; whoever asks for the next has found that the last did not work."""
        at_own = _at(hello, *announced(self._announce or self._own.host, *self._ports))
        can_map, router_first = self._can_map, self._is_far or self._mapped is not None
        if not (can_map and router_first):
            yield at_own
        if can_map:
            if mapped := await self._map():
                yield _at(hello, addresses.joined(mapped.host, mapped.port), addresses.joined(mapped.host, mapped.bulk_port))
                await self._unmap()
            if router_first:
                yield at_own
        if self._own.ipv6 and self._announce is None and addresses.is_everywhere(self.listen_host):
            yield _at(hello, *announced(self._own.ipv6, *self._ports))

    async def watch(self, moved: Callable[[], Awaitable[None]], suspect: Callable[[], None]) -> None:
        """For ever: renew the mapping in time; `moved` when this machine's addresses are other ones; `suspect` then, and when
        the router's are."""
        loop = asyncio.get_running_loop()
        renewed_at = loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                own = self._own_addresses()
            except (OSError, UsageError):  # no network at all, or not --host: what was known may come back
                continue
            if own != self._own:
                before, self._own = self._own.host, own
                if own.host != before:  # and not only a temporary address of IPv6
                    self._events("moved", address=own.host)
                    await moved()
                    await self._unmap()
                suspect()
            elif loop.time() - renewed_at >= RENEW_S:
                renewed_at, mapped = loop.time(), self._mapped
                if mapped is None:
                    await self._unmap()  # whoever tries the ways in next looks for a router again
                elif await self._map() != mapped:
                    suspect()

    async def aclose(self) -> None:
        """Have the router forget its mapping."""
        await self._unmap()

    @property
    def _can_map(self) -> bool:
        return self._may_map and addresses.is_behind_router(self._own.host)

    def _asked_router(self) -> PortMapping:
        if self._router is None:
            self._router = self._new_mapping(self._own.host)
        return self._router

    async def _map(self) -> Mapping | None:
        async with self._lock:
            router = self._asked_router()
            self._mapped = mapped = await router.open(*self._ports)
        told = dataclasses.asdict(mapped) if mapped is not None else {"problem": router.problem}
        if told != self._told:
            self._told = told
            self._events("port_mapping", **told)
        return mapped

    async def _unmap(self) -> None:
        async with self._lock:
            router, self._router, self._mapped = self._router, None, None
            if router is not None:
                await router.aclose()

    def _own_addresses(self) -> _Own:
        """Raises OSError without a network."""
        host = hosts(self._host, self._coordinator)[1]
        ipv6 = addresses.own_global_ipv6()
        return _Own(host, "" if ipv6 == host else ipv6)


@dataclass(frozen=True)
class _Own:
    host: str  # towards the coordinator
    ipv6: str  # in the world; '' without one, or if it is `host`


def _at(hello: Hello, address: str, bulk_address: str) -> Hello:
    return dataclasses.replace(hello, address=address, bulk_address=bulk_address)
