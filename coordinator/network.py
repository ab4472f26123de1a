"""The coordinator's side of the network: the ports that it serves, the swarm that it watches, the state that it fetches.

All of it runs on the network's thread. The methods of Network are called from the main thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from coordinator.admission import EnrolmentService
from coordinator.ban_news import BanNews
from coordinator.config import CoordinatorConfig
from coordinator.genesis import RunFolder
from coordinator.invites import Admission, Invites
from coordinator.known_peers import KnownPeers
from coordinator.watching import watch
from protocols.errors import LocalError, PortInUseError, RemoteError, UnreachableError
from protocols.identity import Ticket
from protocols.observations import Evaluation, Observation
from protocols.round.records import Candidate, Standing
from protocols.snapshot.fetch import SnapshotFetch
from protocols.transport import addresses
from protocols.transport.channels import enrolment_server
from protocols.transport.discovery import Discovery, DiscoveryConfig
from protocols.transport.network import NetworkTransport
from protocols.transport.network_thread import NetworkThread
from protocols.transport.whereabouts import ask
from protocols.wire.dugnad_pb2_grpc import add_EnrolmentServicer_to_server

FETCH_S = 600.0
CLOSE_S = 15.0
MAX_SNAPSHOT_BYTES = 64 << 30
# We look around in the DHT this often: eagerly until we know a peer, then less often.
EAGER_S, DISCOVERY_S = 0.5, 3.0
_log = logging.getLogger(__name__)


class Network:
    """Serves newcomers, watches the swarm, and fetches its state. `thread` runs for longer than this object is used."""

    def __init__(self, config: CoordinatorConfig, folder: RunFolder, thread: NetworkThread) -> None:
        self._config = config
        self._folder = folder
        self._thread = thread
        self._transport = NetworkTransport(folder.credentials, folder.spec.digest)
        self._known = KnownPeers()
        self._standing: Standing | None = None  # of the auxiliary peer beside this coordinator

    @contextlib.contextmanager
    def serving(self, held_out: Callable[[], Evaluation | None], admitted: Callable[[Admission], None]) -> Iterator[Ticket]:
        """Serve enrolment and discovery. Gives the ticket by which newcomers find them. Raises PortInUseError.

        `held_out`: the newest evaluation, for those who take part. `admitted` is told of each newcomer.
        """
        stop = asyncio.Event()
        ready: concurrent.futures.Future[int] = concurrent.futures.Future()
        serving = self._thread.start(self._serve(ready, stop, held_out, admitted))
        waiting: list[concurrent.futures.Future[Any]] = [serving, ready]
        concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        port = ready.result()
        try:
            yield Ticket(announced_hosts(self._config), port, self._folder.authority.fingerprint, self._folder.secret)
        finally:
            self._thread.loop.call_soon_threadsafe(stop.set)
            done, _ = concurrent.futures.wait([serving], timeout=CLOSE_S)
            problem = serving.exception() if done and not serving.cancelled() else None
            if problem is not None:
                _log.error("the coordinator's ports were not closed in order: %s", problem)

    @contextlib.contextmanager
    def watching(self, tell: Callable[[Observation], None], epoch: Callable[[], int], lineage: str) -> Iterator[None]:
        """Pass all that the swarm's leader says to `tell`, on the network's thread. `epoch` and `lineage`: see `watch`."""

        async def forward() -> None:
            async for observation in watch(self._transport, self._known.candidates, epoch, lineage):
                tell(observation)

        forwarding = self._thread.start(forward())
        try:
            yield
        finally:
            forwarding.cancel()

    def fetch(self) -> bytes:
        """The newest snapshot of the auxiliary peer's state. Raises RemoteError."""
        return self._thread.call(self._fetch())

    # -- on the network's thread -----------------------------------------------------------------------------------------------

    async def _serve(
        self,
        ready: concurrent.futures.Future[int],
        stop: asyncio.Event,
        held_out: Callable[[], Evaluation | None],
        admitted: Callable[[Admission], None],
    ) -> None:
        config, folder = self._config, self._folder
        server, port = enrolment_server(folder.credentials, config.host, config.port)
        discovery = Discovery(
            DiscoveryConfig(
                run_digest=folder.spec.digest,
                initial_peers=(),  # the first node: peers of a swarm that went on without it announce themselves
                listen=(addresses.multiaddress(config.host, config.port + 1 if config.port else 0),),
                identity=str(folder.path / "identity" / "discovery.key"),
            ),
            folder.credentials,
            folder.path / "discovery.log",
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._transport.aclose)
            stack.push_async_callback(discovery.aclose)
            await discovery.start()
            invites = stack.enter_context(contextlib.closing(Invites(folder.path, admitted=admitted)))
            invites.open_to_all(folder.secret)

            def heed(banned: frozenset[str]) -> None:
                self._known.barred = banned
                discovery.bar(banned)

            bans = BanNews(invites, folder.authority, self._transport, self._known.candidates, heed)
            service = EnrolmentService(
                folder,
                invites,
                discovery=lambda: (*self._announced_as(discovery), *discovery.addresses, *self._known.discovery()),
                peers=self._known.candidates,
                announced=self._known.add,
                news=lambda: (held_out(), self._known.names()),
                standing=lambda: self._standing,
                bans=lambda: bans.newest,
            )
            add_EnrolmentServicer_to_server(service, server)
            await server.start()
            stack.push_async_callback(server.stop, 0.5)
            for work in (self._look_around(discovery), bans.run()):
                stack.callback(asyncio.create_task(work).cancel)
            ready.set_result(port)
            await stop.wait()

    def _announced_as(self, discovery: Discovery) -> list[str]:
        """The DHT node's address under each host that the organiser announces: the node cannot see what a router forwards."""
        return [addresses.seen_as(node, host) for host in self._config.announce for node in discovery.addresses[:1]]

    async def _look_around(self, discovery: Discovery) -> None:
        while True:
            try:
                for announcement in await discovery.peers():
                    self._known.add(announcement)
                if (own := self._own_peer()) is not None:
                    self._standing = (await ask(self._transport, own)).standing
            except (RemoteError, LocalError, PortInUseError) as error:
                _log.warning("discovery: %s", error)
            except Exception:  # noqa: BLE001  others may have caused it
                _log.warning("discovery failed in a way that no check foresaw; it is tried again", exc_info=True)
            await asyncio.sleep(DISCOVERY_S if self._known.candidates() else EAGER_S)

    async def _fetch(self) -> bytes:
        try:
            return await asyncio.wait_for(self._fetch_newest(), FETCH_S)
        except asyncio.TimeoutError as error:
            raise UnreachableError(f"the run's state did not arrive within {FETCH_S:.0f} s") from error

    async def _fetch_newest(self) -> bytes:
        """From this coordinator's own auxiliary peer alone: it has applied every commit itself, and belongs to the organiser."""
        own = self._own_peer()
        if own is None:
            raise UnreachableError("the coordinator's auxiliary peer is not there yet")
        there = await ask(self._transport, own)
        fetch = SnapshotFetch(self._transport, MAX_SNAPSHOT_BYTES, lambda done, total: None, _donor_failed)
        return await fetch.run([own], at_least=there.standing)

    def _own_peer(self) -> Candidate | None:
        own = self._folder.genesis.leader
        return next((peer for peer in self._known.candidates() if peer.peer == own), None)


def _donor_failed(peer: str, problem: RemoteError) -> None:
    _log.warning("the state could not be fetched from the auxiliary peer %s: %s", peer[:8], problem)


def announced_hosts(config: CoordinatorConfig) -> tuple[str, ...]:
    """The hosts under which others reach this machine."""
    if config.announce:
        return config.announce
    if addresses.is_everywhere(config.host):
        return (addresses.own_address(addresses.family_of(config.host)),)
    return (config.host,)
