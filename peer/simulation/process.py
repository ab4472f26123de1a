"""A simulated process: production's peer, put together as `dugnad peer` does it, on virtual time and a simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, cast

import torch

from peer.assembly import Peer
from peer.environment import Environment, Sizes
from peer.simulation.liars import forgiving, lie_of
from peer.simulation.loop import VirtualLoop
from peer.simulation.network import Machine
from peer.simulation.network import Stream as NetworkStream
from peer.simulation.observed import ObservedEngine, ObservedReplica
from peer.simulation.problem import State
from peer.simulation.training_thread import NotifyingJobQueue, TrainingThread
from peer.simulation.transport import SimulatedSigner, SimulatedTransport
from peer.training.gradient_pass import GradientPass
from peer.training.trainer import Trainer
from protocols.errors import RemoteError
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.gradients.shard_average import Chunking
from protocols.reasons import Reason
from protocols.round.planner import GRID
from protocols.round.records import Candidate, Hello
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.interface import News

if TYPE_CHECKING:
    from peer.simulation.swarm import Swarm

# Vectors are small, and so are these: an attempt can end between two chunks, some peers need a snapshot because few commits are
# kept, and a snapshot comes from several donors.
SIZES = Sizes(
    chunking=Chunking(max_elements=GRID // 2, min_elements=GRID // 2),
    kept_commits=4,
    snapshot_chunk_bytes=8 * GRID,
    probe_s=0.02,
)


@dataclass(eq=False)
class _Directory:
    """Where the process finds others."""

    process: SimulatedPeer
    barred: frozenset[str] = frozenset()

    async def announce(self, hello: Hello) -> News:
        return News()

    async def peers(self) -> list[Candidate]:
        return [other for other in self.process.swarm.look(self.process) if other.peer not in self.barred]

    def bar(self, peers: frozenset[str]) -> None:
        self.barred = peers


class SimulatedPeer:
    """One start of a peer on a machine. It lives until it is killed, gives up, or its machine loses power."""

    sizes = SIZES

    def __init__(self, swarm: Swarm, machine: Machine, incarnation: int, bootstrap: tuple[Candidate, ...]) -> None:
        self.swarm, self.world, self.observer = swarm, swarm.world, swarm.observer
        self.machine, self.name, self.incarnation = machine, machine.name, incarnation
        self.lie = lie_of(self, swarm.liars)
        if self.lie is not None:
            self.observer = forgiving(swarm.observer)
        self.alive, self.stopped_until = True, 0.0
        self.died_at: float | None = None
        self.candidate = Candidate(self.name, f"{self.name}:1" if machine.reachable else "")
        self.loop = VirtualLoop(self.world, self, machine.clock, self._crashed)  # type: ignore[abstract]
        random = Random(self.world.random.getrandbits(64))
        problem, (micro_batch, step_s) = swarm.problem, swarm.speeds[self.name]
        self.device = problem.device()
        self.transport = SimulatedTransport(swarm.network, self, Bandwidth(clock=self.loop.time))
        if self.lie is not None:
            self.transport.tamper, self.transport.tamper_bytes = self.lie.says, self.lie.writes
        signer = SimulatedSigner(self.name)
        with self.loop.running():
            self.replica = self._replica(signer)
            jobs = NotifyingJobQueue()
            self.thread = TrainingThread(self.world, self, random, jobs, step_s)
            draws = micro_batch > 0
            self.trainer = Trainer(
                self.replica,
                jobs,
                gradient_pass=GradientPass(problem.task, self.replica.model, torch.device("cpu")) if draws else None,
                batches=problem.batches(self.name, incarnation, micro_batch) if draws else None,
                progressed=self._progressed,
                clock=self.loop.time,
            )
            self._rate = (micro_batch / step_s, step_s)
            environment = Environment(
                self.name,
                self.transport,
                _Directory(self),
                signer,
                clock=self.loop.time,
                random=random,
                sizes=self.sizes,
                events=self._happened,
            )
            address = f"{self.name}:1" if machine.listens else ""
            hello = Hello(incarnation, not draws, address, address, self.name, machine.memory_bytes)
            peer = Peer(hello, environment, swarm.settings, self.trainer, bootstrap, engine=ObservedEngine)
        self.engine = cast(ObservedEngine, peer.engine)
        self.engine.observe(self)
        self.transport.service = peer.service

    def _replica(self, signer: SimulatedSigner) -> ObservedReplica:
        device, settings = self.device, self.swarm.settings
        strategy = device.strategy(settings)
        feedback = ErrorFeedback(self.name, self.incarnation)
        replica = ObservedReplica(device.model, strategy, settings, error_feedback=feedback, verify=signer.verify)
        replica.slices = self.swarm.problem.slices
        replica.process = self
        return replica

    @property
    def state(self) -> State:
        """The training state as it stands."""
        with self.replica.strategy.at_tip():
            return State.of(self.device)

    # -- life --------------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start all that runs in a peer, within one event of this process."""
        self.world.at(self.world.random.random() * 0.25, self, self._begin)

    def _begin(self) -> None:
        self.thread.start(self.trainer)
        with self.loop.running():
            running = self.loop.create_task(self._take_part())
        running.add_done_callback(self._ended)

    async def _take_part(self) -> None:
        await self.engine.find_reachability()
        await self.engine.run()

    def leave(self, then: Callable[[], None]) -> None:
        """The volunteer stops this peer; `then` is called when it has said goodbye."""

        async def leaving() -> None:
            await self.engine.leave()
            then()

        with self.loop.running():
            self.loop.create_task(leaving())

    def run_ready(self) -> None:
        self.loop.run_ready()

    def accept(self, stream: NetworkStream, opening: Any) -> None:
        with self.loop.running():
            self.transport.accept(stream, opening)

    def _ended(self, running: asyncio.Task[None]) -> None:
        error = None if running.cancelled() else running.exception()
        if isinstance(error, RemoteError):  # production's peer ends here with an error, and its volunteer starts it again
            self.swarm.kill(self, tell=True, reason="nobody gives state")
        elif error is not None:
            self._crashed(error)

    def _crashed(self, error: BaseException) -> None:
        if self.lie is not None:
            self.swarm.kill(self, tell=True, reason=f"its lie was too much for itself: {type(error).__name__}: {error}")
            return
        if self.alive and self.world.violation is None:
            self.world.violated("0 crash", f"{self.name}: {type(error).__name__}: {error}")

    # -- what the training thread and the engine tell ----------------------------------------------------------------------------

    def _progressed(self, first: int, end: int, samples_per_second: float, step_s: float) -> None:
        """In virtual time a micro-batch is measured to take none: it takes what the program says."""
        self.loop.call_soon_threadsafe(self.engine.progressed, first, end, *self._rate)

    def _happened(self, event: str, /, **fields: Any) -> None:
        if event == "applied":
            self.swarm.applied(self)
        elif event == "fetched":
            self.observer.downloaded(self, fields["chunks"])
        elif event == "leader_lost":
            self.observer.leader_lost(self, fields["peer"], fields["reason"])
        elif event == "fork_lost":
            self.observer.fork_lost(self, fields)
        elif event == "donor_failed":
            self.observer.distrusted(self, fields["peer"], fields["problem"])
        elif event == "strike" and self.alive and self.lie is None:
            self.world.violated("0 crash", f"{self.name}: {fields['problem']}")
        elif event == "given_up" and fields["reason"] is Reason.LEFT:
            self.observer.gave_up(self, Reason.LEFT, None, fields["samples"])
