"""Ports that the home's router forwards to this machine because it asked, by NAT-PMP or UPnP.

A mapping is leased, so that a router forgets it if this machine vanishes. Whoever holds one asks again long before that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from protocols.errors import RouterError
from protocols.transport import nat_pmp
from protocols.transport.addresses import default_gateway
from protocols.transport.upnp import Upnp

LEASE_S = 3600
RENEW_S = LEASE_S / 3
# The router may take so long to say that it is there, to forward both ports, and to forget them.
LOOK_S, FORWARD_S, FORGET_S = 5.0, 4.0, 2.0


@dataclass(frozen=True)
class Mapping:
    """Where the world reaches the two ports of this machine."""

    host: str  # the router's address on its other side
    port: int  # for calls
    bulk_port: int
    by: str  # the protocol that the router speaks


class Gateway(Protocol):
    """A router that forwards TCP ports on request. Methods raise RouterError."""

    @property
    def by(self) -> str:
        """The protocol that it speaks."""

    async def address(self) -> str:
        """The router's own, on its other side."""

    async def forward(self, port: int, wished: int, lease_s: int) -> int:
        """Forward a port to `port` of this machine for `lease_s` seconds: `wished`, or another one. Returns which."""

    async def forget(self, port: int, outside: int) -> None:
        """Forward `outside` to `port` no longer."""


class PortMapping:
    """The mapping of one machine's two ports. `open` it, and again every RENEW_S; `aclose` undoes it."""

    def __init__(self, own: str, gateway: str | None = None, nat_pmp_port: int = nat_pmp.PORT) -> None:
        """`own`: this machine's address on the home's network.

        `gateway`: the router's address there; None finds it. `nat_pmp_port`: where the router listens for NAT-PMP.
        """
        self._own = own
        self._router = gateway
        self._nat_pmp_port = nat_pmp_port
        self._looking: list[asyncio.Task[Gateway | None]] = []
        self._gateway: Gateway | None = None  # it forwards the ports now
        self._asked: dict[int, tuple[Gateway, int]] = {}  # a port of this machine: who was asked to forward which port to it
        self.problem = ""  # why the last `open` returned None

    def look(self) -> None:
        """Begin to look for a router that takes requests. `open` waits for what comes of it."""
        if not self._looking:
            loop = asyncio.get_running_loop()
            self._looking = [loop.create_task(_within(LOOK_S, looking)) for looking in (self._nat_pmp(), self._upnp())]

    async def open(self, port: int, bulk_port: int) -> Mapping | None:
        """Have both ports forwarded, or go on having them so. None, and a `problem`, if no router does it within seconds."""
        self.problem = "no router answers to NAT-PMP or UPnP"
        async with contextlib.aclosing(self._gateways()) as gateways:
            async for gateway in gateways:
                try:
                    mapping = await asyncio.wait_for(self._forward(gateway, port, bulk_port), FORWARD_S)
                except asyncio.TimeoutError:
                    self.problem = f"the router does not answer to {gateway.by} within {FORWARD_S:g} s"
                except (RouterError, OSError) as error:
                    self.problem = str(error)
                else:
                    self._gateway = gateway
                    return mapping
                await self._forget()
        return None

    async def _gateways(self) -> AsyncGenerator[Gateway, None]:
        """The one that forwards already; failing that, those that answer, as they do."""
        if self._gateway is not None:
            yield self._gateway
            self._gateway = None
        self.look()
        for answer in asyncio.as_completed(self._looking):
            if (gateway := await answer) is not None:
                yield gateway

    async def _forward(self, gateway: Gateway, port: int, bulk_port: int) -> Mapping:
        host = await gateway.address()
        outside = []
        for inside in (port, bulk_port):
            _, wished = self._asked.get(inside, (gateway, inside))
            self._asked[inside] = (gateway, wished)  # to be undone even if the answer gets lost
            forwarded = await gateway.forward(inside, wished, LEASE_S)
            self._asked[inside] = (gateway, forwarded)
            outside.append(forwarded)
        return Mapping(host, outside[0], outside[1], gateway.by)

    async def _nat_pmp(self) -> Gateway | None:
        host = self._router or await asyncio.to_thread(default_gateway)
        if host is None:
            return None
        gateway = nat_pmp.NatPmp(host, self._nat_pmp_port)
        await gateway.address()
        return gateway

    async def _upnp(self) -> Gateway | None:
        gateway = Upnp(self._own)
        await gateway.find()
        return gateway

    async def _forget(self) -> None:
        async def forget(gateway: Gateway, inside: int, outside: int) -> None:
            with contextlib.suppress(RouterError, OSError, asyncio.TimeoutError):  # its lease ends anyhow
                await asyncio.wait_for(gateway.forget(inside, outside), FORGET_S)

        asked, self._asked = self._asked, {}
        await asyncio.gather(*(forget(gateway, inside, outside) for inside, (gateway, outside) in asked.items()))

    async def aclose(self) -> None:
        """Undo what was asked for. Takes a few seconds at most, if the router is gone."""
        for looking in self._looking:
            looking.cancel()
        await self._forget()


async def _within(limit_s: float, looking: Coroutine[Any, Any, Gateway | None]) -> Gateway | None:
    try:
        return await asyncio.wait_for(looking, limit_s)
    except (RouterError, OSError, asyncio.TimeoutError):
        return None
