"""One start of a coordinator, from the run file to the exit code: puts the parts together and takes them apart again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import json
import logging
import queue
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator.admission import EnrolmentService, make_ticket
from coordinator.auxiliary import AuxiliaryPeer
from coordinator.checkpoints.facts import SNAPSHOT
from coordinator.checkpoints.store import Checkpoints
from coordinator.config import CoordinatorConfig
from coordinator.genesis import RunFolder, open_run
from coordinator.known_peers import KnownPeers
from coordinator.monitor import Monitor, Run
from coordinator.sinks.base import Sinks
from coordinator.sinks.console import Console
from coordinator.sinks.history import History
from coordinator.swarm_view import SwarmView
from coordinator.watching import watch
from protocols.errors import LocalError, PortInUseError, RemoteError, UnreachableError
from protocols.host.files import write_durably
from protocols.host.home import Home
from protocols.host.interrupts import EXIT_INTERRUPTED, two_stage_interrupts
from protocols.identity import Ticket
from protocols.observations import Observation, Swarm
from protocols.optimization import build_optimizer, build_scheduler
from protocols.run_spec import RunSpec
from protocols.snapshot.fetch import SnapshotFetch
from protocols.tasks.registry import open_task
from protocols.transport import addresses
from protocols.transport.channels import Channels, enrolment_server, listen
from protocols.transport.discovery import Discovery, DiscoveryConfig
from protocols.transport.network_thread import NetworkThread
from protocols.transport.state_transfer import ask_all
from protocols.wire.dugnad_pb2_grpc import add_EnrolmentServicer_to_server

EXIT_DONE = 0
FETCH_S = 600.0
CLOSE_S = 15.0
_log = logging.getLogger(__name__)
PORTS = 4  # enrolment, discovery, the auxiliary peer's two
MAX_SNAPSHOT_BYTES = 64 << 30
# Discovery is asked this often until the auxiliary peer shows up, then less often.
EAGER_S, DISCOVERY_S = 0.5, 3.0


def run_coordinator(config: CoordinatorConfig) -> int:
    """Start or resume a run and watch it to its end. Returns the exit code; raises DugnadError for what a person should read."""
    announce = tuple(addresses.host_alone(host) for host in config.announce)
    config = replace(config, host=addresses.host_to_listen_on(config.host), announce=announce)
    author = RunSpec.load(config.run_file)
    path = config.directory or Path("runs") / author.run.name
    _check_ports(config)
    with Home.claim(path):
        with Console() as console:
            checkpoints = Checkpoints(path / "checkpoints", keep=author.checkpoint.keep)
            folder = open_run(author, path, checkpoints, console.status)
            with Sinks([History(path), console]) as sinks, NetworkThread() as network:
                session = _Session(config, folder, checkpoints, sinks, console, network)
                code = session.run()
        console.say(session.closing_line)
    return code


class _Session:
    def __init__(
        self,
        config: CoordinatorConfig,
        folder: RunFolder,
        checkpoints: Checkpoints,
        sinks: Sinks,
        console: Console,
        network: NetworkThread,
    ) -> None:
        self._config = config
        self._folder = folder
        self._sinks = sinks
        self._console = console
        self._network = network
        self._channels = Channels(folder.credentials, folder.spec.digest)
        self._known = KnownPeers()
        self._inbox: queue.SimpleQueue[Observation] = queue.SimpleQueue()
        self._interrupted = False
        self.closing_line = ""  # for after the screen has closed
        console.status("Loading the task")
        task = open_task(folder.spec, folder.path)
        model = task.build_model()
        run = Run(
            spec=folder.spec,
            task=task,
            model=model,
            schedule=build_scheduler(folder.spec, build_optimizer(folder.spec, model)),
            authority=folder.credentials.authority,
            pipeline_tag="text-generation" if folder.spec.task.kind == "causal-lm" else "fill-mask",
        )
        self._monitor = Monitor(run, sinks, checkpoints, self._inbox, self._fetch, console.status)

    def run(self) -> int:
        folder, monitor = self._folder, self._monitor
        with contextlib.ExitStack() as stack:
            self._console.status("Opening the ports")
            ticket = stack.enter_context(self._serving())
            monitor.start(folder.snapshot.read_bytes(), resumed=folder.resumed)
            auxiliary = self._auxiliary(ticket)
            stack.callback(auxiliary.stop)
            auxiliary.start(folder.snapshot)
            self._say_how_to_join(ticket)
            stack.enter_context(two_stage_interrupts(self._stop, self._console.close))
            watching = self._network.start(self._watch())
            stack.callback(watching.cancel)
            while not self._interrupted and not monitor.finished:
                monitor.step()
                why = auxiliary.restarted(self._newest_snapshot())
                if why:
                    monitor.auxiliary_restarted(why)
            if self._interrupted:
                self._console.say("Stopping: writing a last checkpoint (Ctrl-C again to stop at once)")
                monitor.keep(checkpoint=True)
                self.closing_line = f"Stopped; the peers go on. Checkpoint: {monitor.last_checkpoint}"
                return EXIT_INTERRUPTED
            monitor.finish()
        self.closing_line = f"The run is complete. Checkpoint: {monitor.last_checkpoint}"
        return EXIT_DONE

    def _newest_snapshot(self) -> Path:
        newest = self._monitor.last_checkpoint
        return newest / SNAPSHOT if newest is not None else self._folder.snapshot

    def _auxiliary(self, ticket: Ticket) -> AuxiliaryPeer:
        port = self._config.port + 2 if self._config.port else 0
        # The child reaches this process on the machine itself; only what it announces is for others.
        local = Ticket((_reachable(self._config.host),), ticket.port, ticket.fingerprint, ticket.secret)
        home = self._folder.path / "auxiliary"
        return AuxiliaryPeer(str(local), home, host=self._config.host, announce=self._hosts()[0], port=port)

    def _say_how_to_join(self, ticket: Ticket) -> None:
        write_durably(self._folder.path / "ticket.txt", f"{ticket}\n".encode())
        command = f"dugnad peer {ticket}"
        self._console.say("Volunteers join with this line:\n\n" + command + "\n")
        if self._config.json:
            print(json.dumps({"ticket": str(ticket), "join": command, "directory": str(self._folder.path)}), flush=True)

    def _hosts(self) -> tuple[str, ...]:
        if self._config.announce:
            return self._config.announce
        host = self._config.host
        return (addresses.own_address(addresses.family_of(host)),) if addresses.is_everywhere(host) else (host,)

    # -- on the network's thread -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _serving(self) -> Iterator[Ticket]:
        """Discovery and enrolment, from here on; the ticket under which newcomers find them."""
        stop = asyncio.Event()
        ready: asyncio.Future[int] = self._network.loop.create_future()
        serving = self._network.start(self._serve(ready, stop))

        async def port() -> int:
            ended: asyncio.Future[Any] = asyncio.wrap_future(serving)
            waiting: list[asyncio.Future[Any]] = [ended, ready]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
            return ready.result()

        bound = self._network.call(port())
        try:
            yield make_ticket(self._folder.authority, self._folder.secret, self._hosts(), bound)
        finally:
            self._network.loop.call_soon_threadsafe(stop.set)
            ended, _ = concurrent.futures.wait([serving], timeout=CLOSE_S)
            problem = serving.exception() if ended and not serving.cancelled() else None
            if problem is not None:
                _log.error("the coordinator's ports were not closed in order: %s", problem)

    async def _serve(self, ready: asyncio.Future[int], stop: asyncio.Event) -> None:
        config, folder = self._config, self._folder
        authority = folder.authority
        server, tls = enrolment_server(authority.key_pem, authority.pem)
        port = listen(server, tls, config.host, config.port)
        discovery = Discovery(
            DiscoveryConfig(
                run_digest=folder.spec.digest,
                authority=authority.pem.decode(),
                initial_peers=(),  # the first node; peers of a swarm that went on without it announce themselves
                listen=(addresses.multiaddress(config.host, config.port + 1 if config.port else 0),),
                announce=(),
                identity=str(folder.path / "identity" / "discovery.key"),
                client_mode=False,
            ),
            folder.credentials,
            folder.path / "discovery.log",
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._channels.aclose)
            stack.push_async_callback(discovery.aclose)
            await discovery.start()
            service = EnrolmentService(
                authority,
                folder.secret,
                folder.spec,
                folder.path,
                folder.genesis,
                discovery=lambda: (*self._announced_as(discovery), *discovery.addresses, *self._known.discovery()),
                peers=self._known.candidates,
                announced=self._known.add,
            )
            add_EnrolmentServicer_to_server(service, server)
            await server.start()
            stack.push_async_callback(server.stop, 0.5)
            looking = asyncio.create_task(self._look_around(discovery))
            stack.callback(looking.cancel)
            ready.set_result(port)
            await stop.wait()

    def _announced_as(self, discovery: Discovery) -> list[str]:
        """The DHT node's address under each host that the organiser announces: a router may forward what the node cannot see."""
        return [addresses.seen_as(node, host) for host in self._config.announce for node in discovery.addresses[:1]]

    async def _look_around(self, discovery: Discovery) -> None:
        while True:
            with contextlib.suppress(RemoteError, LocalError):
                for announcement in await discovery.peers():
                    self._known.add(announcement)
            await asyncio.sleep(DISCOVERY_S if self._known.candidates() else EAGER_S)

    async def _watch(self) -> None:
        async for observation in watch(
            self._channels, self._known.candidates, lambda: self._monitor.epoch, self._monitor.lineage
        ):
            if isinstance(observation, Swarm):
                # Not by way of the main thread: the view goes on while that one measures or writes a checkpoint.
                self._sinks.swarm(SwarmView.of(observation, self._folder.spec))
            self._inbox.put(observation)

    def _fetch(self) -> bytes:
        return self._network.call(asyncio.wait_for(self._fetch_newest(), FETCH_S))

    async def _fetch_newest(self) -> bytes:
        """From those who are furthest, auxiliary peers rather than those that train. Raises RemoteError."""
        found = await ask_all(self._channels, self._known.candidates())
        if not found:
            raise UnreachableError("no peer answers that holds the run's state")
        newest = found[0].standing
        best = [there.peer for there in found if there.standing == newest]
        auxiliary = [peer for peer in best if self._known.is_auxiliary(peer.peer)]
        fetch = SnapshotFetch(self._channels, MAX_SNAPSHOT_BYTES, lambda done, total: None, self._donor_failed)
        if auxiliary:
            with contextlib.suppress(RemoteError):  # said by _donor_failed
                return await fetch.run(auxiliary, at_least=newest)
        return await fetch.run(best, at_least=newest)

    @staticmethod
    def _donor_failed(peer: str, problem: RemoteError) -> None:
        _log.warning("the state could not be fetched from %s: %s", peer[:8], problem)

    # -- stopping --------------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._interrupted = True


def _check_ports(config: CoordinatorConfig) -> None:
    """Raises PortInUseError before minutes go into corpus and tokenizer."""
    for port in range(config.port, config.port + PORTS) if config.port else ():
        with socket.socket(addresses.family_of(config.host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.host, port))
            except OSError as error:
                cause = "the port is in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
                raise PortInUseError(
                    f"cannot listen on {addresses.joined(config.host, port)}: {cause}", remedy="Choose another --port."
                ) from error


def _reachable(host: str) -> str:
    return addresses.LOOPBACK[addresses.family_of(host)] if addresses.is_everywhere(host) else host
