"""The real network: gRPC for calls, TLS sockets for bulk, the DHT and the coordinator as a directory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc.aio

from protocols.errors import LocalError, PortInUseError, RefusedError, RemoteError
from protocols.identity import Credentials
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello
from protocols.transport.addresses import is_own, split
from protocols.transport.announcements import Announcement, expiry_ms, printable, sign_announcement
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.bulk import BulkConnections, BulkServer
from protocols.transport.channels import Channels, peer_server
from protocols.transport.discovery import Discovery, DiscoveryConfig
from protocols.transport.enrolling import announce_to
from protocols.transport.frames import FrameStream
from protocols.transport.freshness import Freshness
from protocols.transport.grpc_streams import answers, opened
from protocols.transport.interface import DIAL_S, News, Service, Stream

STOP_S = 0.5
_log = logging.getLogger(__name__)


class NetworkTransport:
    """This process's way to other peers, and theirs to it once it listens and serves."""

    def __init__(self, credentials: Credentials, run_digest: str, bandwidth: Bandwidth | None = None) -> None:
        """`bandwidth`: has the limits that the machine's owner set; without one there are none."""
        self.bandwidth = bandwidth or Bandwidth()
        self._channels = Channels(credentials, run_digest)
        self._connections = BulkConnections(credentials, run_digest, self.bandwidth)
        self.credentials = credentials
        self.freshness = Freshness()
        self._run_digest = run_digest
        self._server: grpc.aio.Server | None = None
        self._bulk_server: BulkServer | None = None

    def open(self, peer: Candidate, opening: Any) -> AbstractAsyncContextManager[Stream]:
        return opened(self._channels, peer, opening)

    def bulk(self, peer: str, address: str, dial_s: float = DIAL_S) -> AbstractAsyncContextManager[FrameStream]:
        return self._connections.to(peer, address, dial_s)

    async def dial(self, peer: Candidate, dial_s: float = DIAL_S) -> None:
        await self._channels.dial(peer.peer, peer.address, dial_s)

    async def dial_bulk(self, peer: str, address: str, dial_s: float = DIAL_S) -> None:
        await self._connections.dial(peer, address, dial_s)

    def listen(self, host: str, port: int) -> tuple[int, int]:
        """(port for calls, port for bulk): `port` and the next, or free ones if it is 0. Raises PortInUseError."""
        self._server, port_of_calls = peer_server(self.credentials, host, port)
        bulk_port = port and port + 1
        self._bulk_server = BulkServer(self.credentials, self._run_digest, self.bandwidth, host, bulk_port, self.freshness)
        return port_of_calls, self._bulk_server.port

    async def serve(self, service: Service) -> None:
        """Answer on the ports of `listen` from here on; without those, nobody is answered."""
        if self._server is not None and self._bulk_server is not None:
            self._server.add_generic_rpc_handlers((answers(service, self._run_digest, self.freshness),))
            await self._server.start()
            self._bulk_server.start(service.serve_bulk)

    async def moved(self) -> None:
        """This machine has another address, and packets of its old connections may vanish: make new ones from now on."""
        await self._channels.renew()
        self._connections.renew()

    async def renew(self, certificate: bytes) -> None:
        """New connections, both ways, show this certificate (PEM) from now on; those under way go on.

        Raises BadMessageError unless it is the authority's, for this process.
        """
        self.credentials.renew(certificate)
        await self._channels.renew()
        self._connections.renew()
        if self._bulk_server is not None:
            self._bulk_server.renew()  # the server for calls looks by itself

    async def aclose(self) -> None:
        if self._server is not None:
            await self._server.stop(STOP_S)
        if self._bulk_server is not None:
            await self._bulk_server.aclose()
        self._connections.close()
        await self._channels.aclose()


class SwarmDirectory:
    """Peers found in the DHT, and through the coordinator while that is there."""

    def __init__(
        self,
        config: DiscoveryConfig,
        network: NetworkTransport,
        coordinator: str,
        log_file: Path,
        launched: asyncio.subprocess.Process | None = None,
    ) -> None:
        """`coordinator`: host:port of its enrolment endpoint. `launched`: as for `Discovery`."""
        self._discovery = Discovery(config, network.credentials, log_file, launched)
        self._network = network
        self._announced = 0
        self._credentials = network.credentials
        self._coordinator = coordinator
        self._bans_version = 0  # of the last list that the coordinator sent

    async def start(self, hello: Hello) -> None:
        """Raises UnreachableError when no DHT node answers, PortInUseError when the port is taken."""
        await self._discovery.start(client_mode=await _in_client_mode(hello))

    def moved(self) -> None:
        """This machine has another address: the next `announce` starts the DHT node again."""
        self._discovery.moved()

    async def aclose(self) -> None:
        await self._discovery.aclose()

    async def announce(self, hello: Hello) -> News:
        """Tell the coordinator where this peer is, and the DHT if it can be reached; what the coordinator says.

        Raises RefusedError if it says that this peer is banned.
        """
        me = self._credentials.peer_id
        await _tried(self._discovery.be(client_mode=await _in_client_mode(hello)))
        self._announced += 1
        announcement = Announcement(
            me,
            hello.incarnation,
            hello.address,
            printable(hello.name),
            hello.auxiliary,
            self._discovery.addresses,
            self._announced,
            expiry_ms(),
        )
        if hello.reachable:
            await _tried(self._discovery.announce(announcement))
        signed = sign_announcement(announcement, self._credentials)
        try:
            news = await announce_to(self._coordinator, self._credentials.authority, signed, self._bans_version)
        except RemoteError as error:
            if isinstance(error, RefusedError) and error.reason == Reason.BANNED.value:
                raise
            self._network.freshness.answered(by_coordinator=False)
            return News()  # it is away; training does not need it
        self._network.freshness.answered(by_coordinator=True)
        if news.certificate:
            await self._network.renew(news.certificate)
            _log.info("the coordinator has renewed this peer's certificate")
        if news.bans is not None:
            self._bans_version = news.bans.bans.version
        return news

    async def peers(self) -> list[Candidate]:
        return [Candidate(item.peer, item.address) for item in await self._discovery.peers()]

    def bar(self, peers: frozenset[str]) -> None:
        self._discovery.bar(peers)


async def _tried(work: Coroutine[Any, Any, None]) -> None:
    """The DHT may fail: the coordinator is told all the same."""
    try:
        await work
    except (RemoteError, LocalError, PortInUseError) as error:
        _log.warning("discovery: %s", error)
    except Exception:  # noqa: BLE001  others may have caused it
        _log.warning("discovery failed in a way that no check foresaw; it is tried again", exc_info=True)


async def _in_client_mode(hello: Hello) -> bool:
    """Whether the DHT node takes no connections: its port is not forwarded, so others must reach this machine itself."""
    return not hello.reachable or not await asyncio.to_thread(is_own, split(hello.address)[0])
