"""The simulated network: streams between processes over lines with latency, jitter and bandwidth, partitions and broken links.

Within one direction of one stream the order is kept; between streams it is not. A line takes turns by packets between all that is
sent over it: what fits into one waits for nobody, and what is larger goes one after another. What is under way over a line that
is blocked waits, as TCP's retransmissions do, and arrives when the line is whole again, unless the stream was given up meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from protocols.simulation.clock import Clock
from protocols.simulation.world import World

SMALL_BYTES = 200  # a control message
PACKET_BYTES = 1500
CONNECT_TIMEOUT_S = 6.0


@dataclass
class Machine:
    """A computer and its line; it outlives the processes that run on it."""

    name: str
    reachable: bool
    latency_s: float
    jitter_s: float
    up_bytes_s: float
    down_bytes_s: float
    clock: Clock
    memory_bytes: int = 0  # 0: its process does not say
    up_free_at: float = 0.0
    down_free_at: float = 0.0
    powered: bool = True  # a machine without power answers nobody; one whose process died refuses at once


class Process(Protocol):
    machine: Machine
    alive: bool
    stopped_until: float
    died_at: float | None

    def accept(self, stream: Stream, opening: Any) -> None: ...


Receive = Callable[[Any], None]
Ended = Callable[[], None]


@dataclass(frozen=True)
class _End:
    """Travels behind the last message of a direction."""


@dataclass
class _Way:
    """One direction of a stream."""

    source: Process
    target: Process | None
    receive: Receive | None = None
    ended: Ended | None = None
    last_at: float = 0.0
    held: list[tuple[float, Any]] = field(default_factory=list)


class Stream:
    """`up` goes from the client to the server, `down` back."""

    def __init__(self, network: Network, client: Process, kind: str) -> None:
        self.network = network
        self.kind = kind
        self.client = client
        self.up = _Way(client, None)
        self.down: _Way | None = None  # once the connection stands
        self._outbox: list[tuple[Any, float]] = []
        self.open = True

    def connected(self, server: Process) -> None:
        self.up.target = server
        self.down = _Way(server, self.client, self.down_receive, self.down_ended)
        for message, size in self._outbox:
            self.network.transmit(self, self.up, message, size)
        self._outbox.clear()

    down_receive: Receive | None = None
    down_ended: Ended | None = None

    def serve(self, receive: Receive, ended: Ended) -> None:
        """Called by the server for what comes after the opening."""
        self.up.receive, self.up.ended = receive, ended

    def send(self, sender: Process, message: Any, size: float = SMALL_BYTES) -> None:
        if not self.open:
            return
        if sender is self.client:
            if self.down is None:
                self._outbox.append((message, size))
            else:
                self.network.transmit(self, self.up, message, size)
        elif self.down is not None:
            self.network.transmit(self, self.down, message, size)

    def close(self, sender: Process) -> None:
        """The other end learns of it behind what was sent; this end hears nothing more."""
        if sender is self.client:
            self.down_receive = self.down_ended = None
            if self.down is None:
                self.open = False
            else:
                self.down.receive = self.down.ended = None
                self.network.transmit(self, self.up, _End(), 0)
        else:
            self.up.receive = self.up.ended = None
            if self.down is not None:
                self.network.transmit(self, self.down, _End(), 0)

    def break_off(self) -> None:
        """The link is cut: what is under way is lost, and both ends notice."""
        if not self.open:
            return
        self.open = False
        self.network.forget(self)
        for way in (self.up, self.down):
            if way is not None and way.target is not None:
                self.network.world.at(way.source.machine.latency_s, way.target, lambda way=way: _end(way))  # type: ignore[misc]

    def reset_by(self, dead: Process) -> None:
        """The operating system of `dead` tells the other end; what had left for it before still arrives."""
        way = self.up if dead is self.client else self.down
        if self.open and way is not None and way.target is not None:
            self.network.transmit(self, way, _End(), 0, from_grave=True)
        else:
            self.open = False


def _end(way: _Way) -> None:
    ended, way.receive, way.ended = way.ended, None, None
    if ended is not None:
        ended()


class Network:
    def __init__(self, world: World, machines: list[Machine]) -> None:
        self.world = world
        self.machines = {machine.name: machine for machine in machines}
        self.processes: dict[str, Process] = {}  # the newest of each machine
        self.blocked: dict[tuple[str, str], int] = {}  # (from, to) -> how many faults block it
        self.overtaken = 0  # messages that one of another stream, sent later between the same machines, arrives before
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._streams: dict[Stream, None] = {}

    # -- connections -----------------------------------------------------------------------------------------------------------

    def dial(self, client: Process, server: str, kind: str, opening: Any, receive: Receive, ended: Ended) -> Stream:
        """`receive` is told of each message that comes back, `ended` once of the end, however it comes."""
        stream = Stream(self, client, kind)
        stream.down_receive, stream.down_ended = receive, ended
        stream.send(client, opening)
        self._streams[stream] = None
        there, here = self.machines.get(server), client.machine
        latency_s = self._latency(here, there) if there is not None else 0.0

        def connect() -> None:
            process = self.processes.get(server)
            if not stream.open or not client.alive:
                return
            if there is None or not there.reachable or self.is_blocked(here.name, server) or not there.powered:
                self.world.at(CONNECT_TIMEOUT_S, client, lambda: self._refused(stream))
            elif process is None or not process.alive:
                self.world.at(latency_s, client, lambda: self._refused(stream))
            else:
                stream.up.receive = lambda message: process.accept(stream, message)
                stream.connected(process)

        self.world.at(2 * latency_s, None, connect)
        return stream

    def _refused(self, stream: Stream) -> None:
        ended, stream.down_ended = stream.down_ended, None
        stream.open = False
        self.forget(stream)
        if ended is not None:
            ended()

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream, None)

    def streams_of(self, name: str, other: str = "") -> list[Stream]:
        def ends(stream: Stream) -> set[str]:
            target = stream.up.target
            return {stream.client.machine.name, target.machine.name if target is not None else ""}

        return [stream for stream in self._streams if ends(stream) >= ({name, other} if other else {name})]

    def _latency(self, source: Machine, target: Machine) -> float:
        return source.latency_s + target.latency_s + self.world.random.random() * (source.jitter_s + target.jitter_s)

    # -- messages --------------------------------------------------------------------------------------------------------------

    def transmit(self, stream: Stream, way: _Way, message: Any, size: float, *, from_grave: bool = False) -> None:
        source, target = way.source, way.target
        if target is None or not (source.alive or from_grave):
            return
        here, there = source.machine, target.machine
        now = self.world.now
        # Both lines are reserved in the order of sending; the way between them changes the order.
        up_free_at = here.up_free_at = max(now, here.up_free_at) + size / here.up_bytes_s
        departs = up_free_at if size > PACKET_BYTES else now + size / here.up_bytes_s
        down_free_at = there.down_free_at = max(departs, there.down_free_at) + size / there.down_bytes_s
        passed = down_free_at if size > PACKET_BYTES else departs + size / there.down_bytes_s
        arrives = max(passed + self._latency(here, there), way.last_at)
        way.last_at = arrives
        pair = (here.name, there.name)
        last = self._last_arrival.get(pair, 0.0)
        self.overtaken += arrives < last
        self._last_arrival[pair] = max(arrives, last)
        self.world.at(arrives - now, target, lambda: self._arrive(stream, way, departs, message))

    def _arrive(self, stream: Stream, way: _Way, departed: float, message: Any) -> None:
        assert way.target is not None
        if not stream.open:
            return
        end = isinstance(message, _End)
        if not end and way.source.died_at is not None and departed > way.source.died_at:
            return  # it was still in the sender's buffers when that died
        if way.held or self.is_blocked(way.source.machine.name, way.target.machine.name):
            way.held.append((departed, message))
            return
        self._deliver(stream, way, message)

    def _deliver(self, stream: Stream, way: _Way, message: Any) -> None:
        assert way.target is not None
        source, target = way.source.machine.name, way.target.machine.name
        if isinstance(message, _End):
            self.world.trace(f"{source}>{target} {stream.kind} end")
            _end(way)
            if way.source is stream.client or stream.down is None or stream.down.receive is None:
                self.forget(stream)
            return
        if way.receive is not None:
            self.world.trace(f"{source}>{target} {stream.kind} {type(message).__name__}")
            way.receive(message)

    # -- partitions ------------------------------------------------------------------------------------------------------------

    def is_blocked(self, source: str, target: str) -> bool:
        return bool(self.blocked) and source != target and (source, target) in self.blocked

    def block(self, source: str, target: str) -> None:
        self.blocked[source, target] = self.blocked.get((source, target), 0) + 1

    def unblock(self, source: str, target: str) -> None:
        self.blocked[source, target] -= 1
        if self.blocked[source, target]:
            return
        del self.blocked[source, target]
        for stream in self.streams_of(source, target):
            for way in (stream.up, stream.down):
                if way is not None and way.held and way.source.machine.name == source:
                    self.world.at(way.source.machine.latency_s, way.target, lambda s=stream, w=way: self._release(s, w))  # type: ignore[misc]

    def _release(self, stream: Stream, way: _Way) -> None:
        held, way.held = way.held, []
        for _, message in held:
            if stream.open:
                self._deliver(stream, way, message)
