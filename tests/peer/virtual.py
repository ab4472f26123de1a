"""Parts of peers in virtual time: on the simulator's loop and network, for tests of one part at a time.

A Node is a process that does what the test says; a SmallSwarm has whole peers. Both can share a network.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from types import TracebackType
from typing import Any, TypeVar

from peer.environment import Environment
from peer.simulation.clock import Clock
from peer.simulation.loop import VirtualLoop
from peer.simulation.network import Machine, Network
from peer.simulation.network import Stream as NetworkStream
from peer.simulation.process import SIZES, SimulatedPeer
from peer.simulation.swarm import Swarm
from peer.simulation.transport import SimulatedSigner, SimulatedTransport
from peer.simulation.world import World
from peer.training.job_queue import JobQueue
from protocols.round.records import Candidate, Hello
from protocols.transport.bandwidth import Bandwidth, Direction, RateLimiter
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import News, Service, Stream

T = TypeVar("T")
LATENCY_S = 0.01
LINE_BYTES_S = 1e9  # of a node's line, which is nobody's bottleneck
SWARM_BYTES_S = 1e7  # of a whole peer's: it is measured by sending, and fast lines take many events


class TrueClock(Clock):
    """Runs as the world does."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._own_rate = self._rate = 1.0
        self._read_s, self._at = 0.0, 0.0


def machine_of(world: World, name: str, *, reachable: bool = True, line_bytes_s: float = LINE_BYTES_S) -> Machine:
    return Machine(name, reachable, LATENCY_S, 0.0, line_bytes_s, line_bytes_s, TrueClock(world), listens=reachable)


class JobsAtOnce(JobQueue):
    """A training thread that has nothing else to do: every job is done when it is put."""

    def put(self, act: Callable[[], Any]) -> Any:
        done = super().put(act)
        job = self.next(wait_s=0.0)
        assert job is not None
        job.run()
        return done


class NobodyElse:
    """A directory of nobody."""

    async def announce(self, hello: Hello) -> News:
        return News()

    async def peers(self) -> list[Candidate]:
        return []

    def bar(self, peers: frozenset[str]) -> None:
        """It names nobody anyway."""


class Node:
    """A process on a machine of its own. It calls others, and answers them with `service`."""

    def __init__(
        self,
        network: Network,
        name: str,
        service: Service | None = None,
        *,
        reachable: bool = True,
        bandwidth: Callable[[Callable[[], float]], Bandwidth] = lambda clock: Bandwidth(clock=clock),
    ) -> None:
        """`bandwidth` makes the line's limits from its clock."""
        self.network, self.world, self.name = network, network.world, name
        self.machine = network.machines[name] = machine_of(network.world, name, reachable=reachable)
        network.processes[name] = self
        self.alive, self.stopped_until = True, 0.0
        self.died_at: float | None = None
        self.errors: list[BaseException] = []  # of tasks that nobody waits for
        self.loop = VirtualLoop(network.world, self, self.machine.clock, self.errors.append)  # type: ignore[abstract]
        self.transport = SimulatedTransport(network, self, bandwidth(self.loop.time))
        self.transport.service = service
        self.candidate = Candidate(name, f"{name}:1" if reachable else "")
        self.events: list[tuple[str, dict[str, Any]]] = []

    def run_ready(self) -> None:
        self.loop.run_ready()

    def accept(self, stream: NetworkStream, opening: Any) -> None:
        with self.loop.running():
            self.transport.accept(stream, opening)

    def environment(self, **change: Any) -> Environment:
        options: dict[str, Any] = {
            "directory": NobodyElse(),
            "signer": SimulatedSigner(self.name),
            "clock": self.loop.time,
            "random": Random(self.world.random.getrandbits(64)),
            "sizes": SIZES,
            "events": self.told,
        }
        return Environment(self.name, self.transport, **{**options, **change})

    def told(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    def told_of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Also from within another process."""
        return self.loop.create_task(work)

    def play(self, work: Coroutine[Any, Any, T], limit_s: float = 3600.0) -> T:
        """Run the world until `work` is done; its result."""
        task = self.start(work)
        self.world.at(limit_s, None, _nothing)  # so that the world's time stays where the work ends
        self.world.run_until(self.world.now + limit_s, task.done)
        assert task.done(), f"not done after {limit_s:g} s"
        return task.result()

    def die(self, *, tell: bool = True) -> None:
        """The process is killed. `tell`: its operating system closes its connections."""
        self.alive, self.died_at = False, self.world.now
        self.machine.powered = tell
        if tell:
            for stream in self.network.streams_of(self.name):
                if self in (stream.client, stream.up.target):
                    stream.reset_by(self)


def _nothing() -> None:
    """Something to wait for."""


class Net:
    """A network of nodes. Leaving the block ends all that runs on them."""

    def __init__(self, seed: int = 0) -> None:
        print(f"seed {seed}")
        self.world = World(seed)
        self.network = Network(self.world, [])
        self._nodes: list[Node] = []

    def node(self, name: str, service: Service | None = None, **options: Any) -> Node:
        node = Node(self.network, name, service, **options)
        self._nodes.append(node)
        return node

    def __enter__(self) -> Net:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in self._nodes:
            node.alive = False
            node.loop.dispose()


def in_virtual_time(work: Callable[[Node], Coroutine[Any, Any, T]]) -> T:
    """The result of `work` on a node that is alone."""
    with Net() as net:
        node = net.node("ann")
        return node.play(work(node))


class Answers:
    """A service that answers by the kind of opening. Each answer is an async generator of records, which may raise to say no."""

    def __init__(self, **answers: Callable[[Stream, Any], AsyncIterator[Any]]) -> None:
        """By the name of the opening's class."""
        self.answers = answers
        self.asked: list[Any] = []

    async def serve(self, stream: Stream, opening: Any) -> None:
        self.asked.append(opening)
        async for record in self.answers[type(opening).__name__](stream, opening):
            await stream.send(record)

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        raise AssertionError("no bulk request was expected")


# -- whole peers -----------------------------------------------------------------------------------------------------------------


class ToldPeer(SimulatedPeer):
    """A peer that keeps what its engine told."""

    def __init__(self, *arguments: Any) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        super().__init__(*arguments)

    def _happened(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))
        super()._happened(event, **fields)

    def told_of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


class SmallSwarm(Swarm):
    """Peers p0, p1, ... on good lines, all reachable but `hidden`; p0 is auxiliary. None starts by itself or after its end."""

    processes: dict[str, ToldPeer]  # type: ignore[assignment]

    def __init__(self, peers: int, *, hidden: tuple[str, ...] = (), seed: int = 0, **options: Any) -> None:
        print(f"seed {seed}")
        self._hidden = hidden
        super().__init__(World(seed), peers, ToldPeer, **{"codec": "fp64", **options})
        self.restarts = False
        self._nodes: list[Node] = []

    def _machine(self, index: int, reachable: bool) -> Machine:
        name = f"p{index}"
        return machine_of(self.world, name, reachable=name not in self._hidden, line_bytes_s=SWARM_BYTES_S)

    def node(self, name: str, service: Service | None = None, **options: Any) -> Node:
        """Somebody else on the same network."""
        node = Node(self.network, name, service, **options)
        self._nodes.append(node)
        return node

    def start_all(self, *names: str) -> None:
        for name in names or self.names:
            self.start(name)

    def until(self, condition: Callable[[], object], limit_s: float = 120.0) -> None:
        self.world.run_until(self.world.now + limit_s, lambda: bool(condition()))
        assert condition(), f"not so after {limit_s:g} s"

    def for_s(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def epoch(self, name: str) -> int:
        tip = self.processes[name].engine.member.tip
        return tip.epoch if tip is not None else -1

    @property
    def leaders(self) -> list[str]:
        return [process.name for process in self.alive if process.engine.leader.active]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        for node in self._nodes:
            node.alive = False
            node.loop.dispose()


def limit(direction: Direction, bytes_s: float, clock: Callable[[], float]) -> None:
    """As if the volunteer had set this limit from the start."""
    direction._limit = RateLimiter(bytes_s, clock)
