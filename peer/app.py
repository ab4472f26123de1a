"""One start of a peer, from the ticket to the exit code: puts the parts together and takes them apart again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import socket
import time
from typing import Any

import psutil
import torch

from peer import ranks
from peer.arrival import Arrival
from peer.assembly import Peer
from peer.config import PeerConfig
from peer.consent import Demands, ask_once
from peer.console import PeerConsole, PeerStatus
from peer.environment import Environment
from peer.epoch.engine import Engine
from peer.events import PeerEvents
from peer.guest.gpu import GpuUse
from peer.guest.machine import Guest, Naps, give_memory_back
from peer.guest.manners import Pause
from peer.guest.pausing import pausing_signals
from peer.listening import WaysIn
from peer.settings import RunSettings
from peer.training.devices import describe, pick_device
from peer.training.gradient_pass import GradientPass
from peer.training.job_queue import JobQueue
from peer.training.local_group import LocalGroup, Setup
from peer.training.replica import Replica
from peer.training.strategies import build_strategy
from peer.training.trainer import Progressed, Trainer
from peer.training.tuning import Choices, Memory, Trials, Way, find_way
from protocols.committed_rate import CommittedRate
from protocols.errors import DiskError, UnreachableError, UsageError
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.host.event_log import EventLog
from protocols.host.interrupts import EXIT_INTERRUPTED, Leaving, two_stage_interrupts
from protocols.host.readable_log import readable_log
from protocols.host.terminal import plural
from protocols.identity import new_incarnation
from protocols.optimization import build_optimizer, build_scheduler
from protocols.round import program
from protocols.round.records import Hello
from protocols.signing import CertificateSigner
from protocols.tasks.base import Batches, Task
from protocols.tasks.registry import open_task
from protocols.transport import addresses
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.discovery import DiscoveryConfig
from protocols.transport.kept_enrolment import keep as keep_enrolment
from protocols.transport.network import NetworkTransport, SwarmDirectory

SCREEN_S = 0.25
EVENTS_BYTES = 20_000_000  # in a volunteer's home, twice
LOOK_S = 1.0  # between two looks at whether the peer may work
KEEP_EVERY = 10  # looks: who could lead is then kept for `dugnad status`
# After the last epoch a peer stays this long, so that slower ones can still fetch what it reduced.
LINGER_S = 3.0
# At Ctrl-C the terminal tells torchrun and this process, and torchrun tells this process once more.
TORCHRUN_ECHO_S = 2.0
EXIT_DONE = 0


def run_peer(config: PeerConfig, arrival: Arrival) -> int:
    """Ask, train until the run ends or the volunteer stops it. Returns the exit code; raises DugnadError for what a person
    should read."""
    home, enrolment = arrival.home, arrival.enrolment
    arrival.milestones.reached("imported")
    task = open_task(enrolment.spec, home, data_paths=config.data if config.role == "contributor" else None)
    demands = Demands.of(enrolment.spec, task, home, enrolment.coordinator)
    if not ask_once(demands, enrolment.spec.digest, yes=config.yes):
        return EXIT_DONE
    arrival.milestones.reached("agreed")
    gpu = GpuUse(pick_device("cpu" if config.role == "auxiliary" else config.device))
    guest, leaving = Guest(config.manners, home, gpu_is_used=gpu.by_others), Leaving()
    with (
        readable_log(home / "peer.log"),
        EventLog(home / "events.jsonl", max_bytes=EVENTS_BYTES) as log,
        pausing_signals(home),
        PeerConsole() as console,
        two_stage_interrupts(leaving.ask, console.close, echo_s=TORCHRUN_ECHO_S if ranks.size() > 1 else 0.0),
    ):
        events = PeerEvents(enrolment.credentials.peer_id, log, console)
        while True:
            if (pause := guest.pause()) is not None:
                events("waiting", why=str(pause))
                if not _wait_out(guest, pause, console, leaving):
                    code, said = EXIT_INTERRUPTED, "Left the run"
                    break
            session = _Session(config, arrival, console, events, task, guest, leaving)
            code, said = session.run()
            if not session.paused:
                break
    console.say(f"{said}. {events.thanks}")
    return code


def _wait_out(guest: Guest, pause: Pause | None, console: PeerConsole, leaving: Leaving) -> bool:
    """Until the peer may work again; False when the volunteer has it leave instead."""
    with leaving.by(lambda: None):
        give_memory_back()
        while pause is not None:
            console.status(f"Paused: {pause}")
            if leaving.asked.wait(LOOK_S):
                return False
            pause = guest.pause()
    return True


def _free_memory_bytes() -> int:
    """What is free once the model is built; half of it may be used for what this peer reduces."""
    return int(psutil.virtual_memory().available) // 2


class _Session:
    def __init__(
        self,
        config: PeerConfig,
        arrival: Arrival,
        console: PeerConsole,
        events: PeerEvents,
        task: Task,
        guest: Guest,
        leaving: Leaving,
    ) -> None:
        self._config = config
        self._arrival = arrival
        self._home = arrival.home
        self._network = arrival.network
        self._console = console
        self._enrolment = enrolment = arrival.enrolment
        self._task = task
        self._spec = enrolment.spec
        self._settings = RunSettings.of(enrolment.spec, enrolment.genesis)
        self._incarnation = new_incarnation(time.time_ns())
        self._events = events
        self._guest = guest
        self._ways_in = WaysIn(
            enrolment.coordinator,
            self._events,
            host=config.host,
            announce=config.announce,
            port_mapping=config.port_mapping,
        )
        self._milestones = arrival.milestones
        self._leaving = leaving
        self.paused = False  # it left because it must not work now

    def run(self) -> tuple[int, str]:
        """(exit code, what happened). Raises what ended it otherwise."""
        engine: Engine | None = None

        def progressed(first: int, end: int, samples_per_second: float, step_s: float) -> None:
            if engine is not None:
                self._network.loop.call_soon_threadsafe(engine.progressed, first, end, samples_per_second, step_s)

        with contextlib.ExitStack() as stack:
            if not self._config.client_mode:
                self._network.call(self._ways_in.look())
            self._console.status("Building the model")
            trainer = self._build_trainer(progressed, stack)
            if not self._config.client_mode:
                program.prepare()  # it may come to lead
            self._console.status("Joining the swarm")
            ready: concurrent.futures.Future[Engine] = concurrent.futures.Future()
            swarm = self._network.start(self._take_part(trainer, ready))
            swarm.add_done_callback(lambda _: trainer.stop())
            stack.enter_context(self._leaving.by(lambda: self._stop(engine, swarm)))
            waiting: list[concurrent.futures.Future[Any]] = [ready, swarm]
            concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            if ready.done():
                engine = ready.result()
            try:
                trainer.run()
            finally:
                if not swarm.done():
                    swarm.cancel()
                concurrent.futures.wait([swarm], timeout=20)
        if self._leaving.asked.is_set():
            return EXIT_INTERRUPTED, "Left the run"
        if not self.paused:
            swarm.result()  # raises what ended it
        return EXIT_DONE, "The run is complete"

    # -- before --------------------------------------------------------------------------------------------------------------

    def _build_trainer(self, progressed: Progressed, stack: contextlib.ExitStack) -> Trainer:
        """`stack` closes its batches."""
        config, spec, enrolment, task = self._config, self._spec, self._enrolment, self._task
        if ranks.size() > 1 and spec.training.strategy == "local-steps":
            raise UsageError(
                "torchrun does not go with local steps yet: the processes of a computer step together, at commits alone",
                remedy="Start one `dugnad peer` for each GPU, with --device cuda:0, cuda:1 and so on, and a --home of its own.",
            )
        device = pick_device("cpu" if config.role == "auxiliary" else config.device)
        model = task.build_model().to(device)
        optimizer = build_optimizer(spec, model)
        replica = Replica(
            model,
            build_strategy(self._settings, model, optimizer, build_scheduler(spec, optimizer)),
            self._settings,
            error_feedback=ErrorFeedback(enrolment.credentials.peer_id, self._incarnation),
            verify=CertificateSigner(enrolment.credentials).verify,
        )
        if config.start_from is not None:
            try:
                replica.restore(config.start_from.read_bytes())
            except OSError as error:
                raise DiskError(f"cannot read the snapshot {config.start_from}: {error.strerror}") from error
        self._milestones.reached("model_built")
        batches: Batches | None = None
        gradient_pass: GradientPass | None = None
        if config.role == "contributor":
            draws = f"{enrolment.credentials.peer_id}:{self._incarnation}"  # a peer that starts again draws other samples
            way = self._find_way(device, Trials(task, model, device, seed=spec.run.seed, peer=draws))
            replica.strategy.restart()  # the trials' gradients
            torch.set_num_threads(way.threads)
            self._milestones.reached("tuned")
            if ranks.size() > 1:
                setup = Setup(spec, self._home, config.data, device.type, draws, way)
                self._console.status("Waiting for the other processes of this computer")
                gradient_pass = stack.enter_context(LocalGroup(task, model, device, setup))
            else:
                gradient_pass = GradientPass(task, model, device, precision=way.precision, compiled=way.compiled)
            batches = stack.enter_context(task.batches(seed=spec.run.seed, peer=draws, micro_batch=way.micro_batch))
        return Trainer(
            replica, JobQueue(), gradient_pass=gradient_pass, batches=batches, progressed=progressed, load=config.load / 100
        )

    def _find_way(self, device: torch.device, trials: Trials) -> Way:
        config = self._config
        choices = Choices(
            micro_batch=config.micro_batch, precision=config.precision, threads=config.threads, compiled=config.compiled
        )
        memory = Memory(self._home / "tuning.json", device, self._spec.digest, choices)
        way = None if config.retune else memory.recall()
        if way is None:
            self._console.status("Trying out how this computer trains fastest")
            way = find_way(device, choices, self._spec.training.largest_micro_batch, trials.rate, time.monotonic)
            memory.keep(way)
        self._console.event(f"training on {describe(device)} with {plural(way.threads, 'thread')}, {way}")
        return way

    # -- on the network's thread -----------------------------------------------------------------------------------------------

    async def _take_part(self, trainer: Trainer, ready: concurrent.futures.Future[Engine]) -> None:
        config, credentials = self._config, self._enrolment.credentials
        ways_in = self._ways_in
        limits = Bandwidth.limited(config.max_upload, config.max_download)
        network = NetworkTransport(credentials, self._spec.digest, limits)
        directory = SwarmDirectory(
            self._discovery_config(ways_in.listen_host),
            network,
            self._enrolment.coordinator,
            self._arrival.discovery_log,
            self._arrival.discovery,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(directory.aclose)
            stack.push_async_callback(network.aclose)
            stack.push_async_callback(ways_in.aclose)
            address = bulk_address = ""
            if not config.client_mode:
                address, bulk_address = ways_in.listening(*network.listen(ways_in.listen_host, config.port))
            name = config.name or socket.gethostname()
            hello = Hello(self._incarnation, config.role == "auxiliary", address, bulk_address, name, _free_memory_bytes())
            environment = Environment(
                credentials.peer_id,
                network,
                directory,
                CertificateSigner(credentials),
                events=self._events,
                progress=lambda done, total: self._console.status("Downloading the state", done, total),
                ways_in=ways_in.find,
            )
            peer = Peer(hello, environment, self._settings, trainer, self._enrolment.peers, standing=self._enrolment.standing)
            await network.serve(peer.service)
            await self._find_reachability(peer.engine)
            self._milestones.reached("reachability_known")
            await directory.start(peer.engine.hello)
            self._milestones.reached("discovery_started")
            self._events("started", **self._milestones.times)
            screen = asyncio.create_task(self._show(peer.engine))
            stack.callback(screen.cancel)
            if not config.client_mode:

                async def moved() -> None:
                    directory.moved()
                    peer.engine.moved()
                    await network.moved()

                watching = asyncio.create_task(ways_in.watch(moved, peer.engine.reachability.suspect))
                stack.callback(watching.cancel)
            ready.set_result(peer.engine)
            await self._until_over(peer.engine)

    async def _find_reachability(self, engine: Engine) -> None:
        """Raises UnreachableError for an auxiliary peer that nobody reaches: it could do nothing."""
        self._console.status("Asking others whether they reach this computer")
        await engine.find_reachability()
        if self._config.role == "auxiliary" and not engine.hello.reachable:
            raise UnreachableError(
                f"nobody reaches this auxiliary peer: {engine.reachability.problem}",
                remedy="Open a port P and the next in the firewall, and give --port P; behind a router also --announce.",
            )

    async def _mind_manners(self, engine: Engine) -> None:
        """Returns when the peer has left because it must not work now. Says when the computer slept."""
        naps, counted, credentials = Naps(), 0, self._enrolment.credentials
        for look in itertools.count(1):
            await asyncio.sleep(LOOK_S)
            if look % KEEP_EVERY == 0:
                with contextlib.suppress(DiskError):
                    keep_enrolment(self._home, credentials, self._spec, engine.succession.order)
            if nap := naps.since(LOOK_S):
                self._events("slept", why=nap)
            self._guest.transferred(engine.bandwidth.moved_bytes - counted)
            counted = engine.bandwidth.moved_bytes
            if (pause := self._guest.pause()) is not None and not self._leaving.asked.is_set():
                self._console.event(f"pausing: {pause}")
                await engine.leave()
                self.paused = not self._leaving.asked.is_set()
                return

    async def _until_over(self, engine: Engine) -> None:
        running = asyncio.create_task(engine.run())
        finished = asyncio.create_task(engine.finished.wait())
        minding = asyncio.create_task(self._mind_manners(engine))
        try:
            await asyncio.wait([running, finished, minding], return_when=asyncio.FIRST_COMPLETED)
            if minding.done():
                minding.result()
            elif not running.done():
                if self._config.role == "auxiliary":
                    await running  # it holds the final state for the coordinator, and ends with it
                await asyncio.wait([running], timeout=LINGER_S)
            if running.done():
                running.result()
        finally:
            finished.cancel()
            minding.cancel()
            running.cancel()
            await asyncio.gather(running, minding, return_exceptions=True)

    async def _show(self, engine: Engine) -> None:
        pace = CommittedRate()
        while True:
            tip = engine.member.tip
            beat = engine.beat
            leader, self._events.names = engine.following, engine.news.names
            if tip is not None:
                pace.reached(tip.epoch, tip.total_samples)
                self._console.update(
                    PeerStatus(
                        epoch=tip.epoch,
                        my_samples=engine.samples,
                        swarm_samples=beat.samples if beat is not None else 0,
                        target_batch_size=self._spec.training.target_batch_size,
                        my_samples_per_second=engine.samples_per_second,
                        swarm_samples_per_second=pace.samples_per_second,
                        loss=self._events.loss,
                        peers=beat.peers if beat is not None else 0,
                        leader=self._events.name(leader.peer) if leader is not None else "",
                        held_out=engine.news.held_out,
                        contributions=self._events.contributions,
                        contributed_samples=self._events.contributed_samples,
                        share=self._events.share,
                        rank=self._events.rank,
                        phase=engine.activity,
                        run=self._spec.run.name,
                        max_epochs=self._spec.training.max_epochs,
                        left_s=pace.seconds_left(self._spec.training.max_epochs),
                    )
                )
            await asyncio.sleep(SCREEN_S)

    def _discovery_config(self, listen_host: str) -> DiscoveryConfig:
        return DiscoveryConfig(
            run_digest=self._spec.digest,
            initial_peers=self._enrolment.discovery,
            listen=tuple(addresses.multiaddress(host, 0) for host in addresses.hosts_of(listen_host)),
            identity=str(self._home / "discovery.key"),
        )

    # -- stopping --------------------------------------------------------------------------------------------------------------

    def _stop(self, engine: Engine | None, swarm: concurrent.futures.Future[None]) -> None:
        if engine is None:
            swarm.cancel()
            return
        self._console.event("leaving: finishing the round under way (Ctrl-C again to stop at once)")
        self._network.start(self._leave(engine, swarm))

    @staticmethod
    async def _leave(engine: Engine, swarm: concurrent.futures.Future[None]) -> None:
        await engine.leave()
        swarm.cancel()
