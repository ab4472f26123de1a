"""The simulated network: streams between processes over lines with latency, jitter and bandwidth, partitions and broken links.

Within one direction of one stream the order is kept; between streams it is not. A machine's upload takes turns between its
streams, and what fits into a packet waits for none of them. What a stream had yet to send when it was closed, it does not send.
What is under way over a line that is blocked waits, as TCP's retransmissions do, and arrives when the line is whole again, unless
the stream was given up meanwhile.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from peer.simulation.clock import Clock
from peer.simulation.world import Owner, World

SMALL_BYTES = 200  # a control message
PACKET_BYTES = 1500
TURN_BYTES = 4096
CONNECT_TIMEOUT_S = 6.0
BULK = "bulk"  # the kind of a stream for shards; the others are calls


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
    down_free_at: float = 0.0
    uploading: bool = False
    waiting: deque[_Way] = field(default_factory=deque)  # for their turns
    powered: bool = True  # a machine without power answers nobody; one whose process died refuses at once
    listens: bool = True  # its process takes itself for reachable until others dial it back
    shut_to: Counter[str] = field(default_factory=Counter)  # machines whose new bulk connections it does not take
    refuses: bool = False  # and says so at once, as a closed port does; a firewall drops them


class Process(Owner, Protocol):
    """What runs on a machine."""

    machine: Machine
    died_at: float | None

    def accept(self, stream: Stream, opening: Any) -> None: ...


Receive = Callable[[Any], None]
Ended = Callable[[], None]


class _End:
    """Travels behind the last message of a direction."""


@dataclass
class _Queued:
    message: Any
    size: float
    left: float  # of it
    from_grave: bool
    departed: Callable[[], None] | None


@dataclass(eq=False)
class _Way:
    """One direction of a stream."""

    stream: Stream
    source: Process
    target: Process | None
    receive: Receive | None = None
    ended: Ended | None = None
    last_at: float = 0.0
    held: list[Any] = field(default_factory=list)  # messages that wait for the line to be whole
    queue: deque[_Queued] = field(default_factory=deque)  # yet to be sent


class Stream:
    """`up` goes from the client to the server, `down` back."""

    def __init__(self, network: Network, client: Process, kind: str, receive: Receive, ended: Ended) -> None:
        self.network, self.client, self.kind = network, client, kind
        self.down_receive = receive
        self.down_ended: Ended | None = ended
        self.up = _Way(self, client, None)
        self.down: _Way | None = None  # once the connection stands
        self._outbox: list[tuple[Any, float, Callable[[], None] | None]] = []
        self.open = True
        self.stands = False  # as the client knows
        self.when_it_stands: Callable[[], None] = lambda: None

    def connected(self, server: Process) -> None:
        self.up.target = server
        self.down = _Way(self, server, self.client, self.down_receive, self.down_ended)
        for message, size, departed in self._outbox:
            self.network.transmit(self.up, message, size, departed)
        self._outbox.clear()

    def taken(self) -> None:
        """The client learns that the other machine has taken the connection."""
        self.stands = True
        self.when_it_stands()

    def serve(self, receive: Receive, ended: Ended) -> None:
        """Called by the server for what comes after the opening."""
        self.up.receive, self.up.ended = receive, ended

    def send(self, sender: Process, message: Any, size: float = SMALL_BYTES, departed: Callable[[], None] | None = None) -> None:
        """`departed` is called once the message has left the sender's machine, unless the stream ends before."""
        if not self.open:
            return
        if self.down is None:  # the server does not know of it yet
            self._outbox.append((message, size, departed))
        else:
            self.network.transmit(self.up if sender is self.client else self.down, message, size, departed)

    def close(self, sender: Process) -> None:
        """The other end learns of it behind what was sent; this end hears nothing more. A client that closes gives up what it has
        yet to send, a server does not."""
        if self.down is None:  # the server does not know of it yet
            self.open, self.down_ended = False, None
        elif sender is self.client:
            self.up.queue.clear()
            self.down.receive = self.down.ended = None
            self.network.transmit(self.up, _End(), 0)
        else:
            self.up.receive = self.up.ended = None
            self.network.transmit(self.down, _End(), 0)

    def break_off(self) -> None:
        """The link is cut: what is under way is lost, and both ends notice."""
        if not self.open:
            return
        self.open = False
        self.network.forget(self)
        for way in (self.up, self.down):
            if way is not None and way.target is not None:
                self.network.world.at(way.source.machine.latency_s, way.target, partial(_end, way))

    def reset_by(self, dead: Process) -> None:
        """The operating system of `dead` tells the other end; what had left for it before still arrives."""
        way = self.up if dead is self.client else self.down
        if self.open and way is not None and way.target is not None:
            self.network.transmit(way, _End(), 0, from_grave=True)
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
        self.blocked: Counter[tuple[str, str]] = Counter()  # (from, to) -> how many faults block it
        self._reached_at: dict[tuple[str, str], float] = {}  # (from, to) -> the newest bulk connection that stood
        self.overtaken = 0  # messages that one of another stream, sent later between the same machines, arrives before
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._streams: dict[Stream, None] = {}

    # -- connections -----------------------------------------------------------------------------------------------------------

    def dial(self, client: Process, server: str, kind: str, opening: Any, receive: Receive, ended: Ended) -> Stream:
        """`receive` is told of each message that comes back, `ended` once of the end, however it comes."""
        stream = Stream(self, client, kind, receive, ended)
        stream.send(client, opening)
        self._streams[stream] = None
        there, here = self.machines.get(server), client.machine
        latency_s = self._latency(here, there) if there is not None else 0.0

        def connect() -> None:
            process = self.processes.get(server)
            if not client.alive:
                return
            if not stream.open:  # it was cut meanwhile, or given up: then nobody listens
                self._refused(stream)
            elif there is None or not there.reachable or not there.powered or self._is_cut(here.name, server):
                self.world.at(CONNECT_TIMEOUT_S, client, lambda: self._refused(stream))
            elif kind == BULK and there.shut_to[here.name]:
                self.world.at(latency_s if there.refuses else CONNECT_TIMEOUT_S, client, lambda: self._refused(stream))
            elif process is None or not process.alive:
                self.world.at(latency_s, client, lambda: self._refused(stream))
            else:
                stream.up.receive = lambda message: process.accept(stream, message)
                stream.connected(process)
                self.world.at(0.0, client, stream.taken)
                if kind == BULK:
                    self._reached_at[here.name, server] = self.world.now

        self.world.at(2 * latency_s, None, connect)
        return stream

    def reached_at(self, source: str, target: str) -> float:
        """When the newest bulk connection from one machine to the other stood."""
        return self._reached_at.get((source, target), -math.inf)

    def _is_cut(self, one: str, other: str) -> bool:
        return self.is_blocked(one, other) or self.is_blocked(other, one)

    def _refused(self, stream: Stream) -> None:
        stream.open = False
        self.forget(stream)
        if stream.down_ended is not None:
            stream.down_ended()

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

    def transmit(
        self, way: _Way, message: Any, size: float, departed: Callable[[], None] | None = None, *, from_grave: bool = False
    ) -> None:
        machine = way.source.machine
        if way.target is None or not (way.source.alive or from_grave):
            return
        if size <= PACKET_BYTES and not way.queue:
            self._depart(way, message, size, size / machine.up_bytes_s)
            if departed is not None:
                departed()
            return
        way.queue.append(_Queued(message, size, size, from_grave, departed))
        if len(way.queue) == 1:
            machine.waiting.append(way)
        if not machine.uploading:
            self._upload_next(machine)

    def _upload_next(self, machine: Machine) -> None:
        machine.uploading = False
        while machine.waiting and not machine.uploading:
            way = machine.waiting.popleft()
            while way.queue and not (way.stream.open and (way.source.alive or way.queue[0].from_grave)):
                way.queue.popleft()
            if way.queue:
                machine.uploading = True
                part = min(way.queue[0].left, TURN_BYTES)
                self.world.at(part / machine.up_bytes_s, None, partial(self._uploaded, machine, way, way.queue[0], part))

    def _uploaded(self, machine: Machine, way: _Way, item: _Queued, part: float) -> None:
        item.left -= part
        if way.queue and way.queue[0] is item:  # it was not given up meanwhile
            if item.left <= 0:
                way.queue.popleft()
                self._depart(way, item.message, item.size, 0.0)
                if item.departed is not None and way.source.alive:
                    self.world.at(0.0, way.source, item.departed)
            if way.queue:
                machine.waiting.append(way)
        self._upload_next(machine)

    def _depart(self, way: _Way, message: Any, size: float, after_s: float) -> None:
        assert way.target is not None
        here, there, now = way.source.machine, way.target.machine, self.world.now
        departs = passed = now + after_s
        if size > PACKET_BYTES:
            passed = there.down_free_at = max(departs, there.down_free_at) + size / there.down_bytes_s
        elif size:
            passed += size / there.down_bytes_s
        arrives = max(passed + self._latency(here, there), way.last_at)
        way.last_at = arrives
        pair = (here.name, there.name)
        last = self._last_arrival.get(pair, 0.0)
        self.overtaken += arrives < last
        self._last_arrival[pair] = max(arrives, last)
        self.world.at(arrives - now, way.target, partial(self._arrive, way, departs, message))

    def _arrive(self, way: _Way, departed: float, message: Any) -> None:
        assert way.target is not None
        if not way.stream.open:
            return
        if not isinstance(message, _End) and way.source.died_at is not None and departed > way.source.died_at:
            return  # it was still in the sender's buffers when that died
        if way.held or self.is_blocked(way.source.machine.name, way.target.machine.name):
            way.held.append(message)
            return
        self._deliver(way, message)

    def _deliver(self, way: _Way, message: Any) -> None:
        assert way.target is not None
        stream, source, target = way.stream, way.source.machine.name, way.target.machine.name
        if isinstance(message, _End):
            self.world.trace(f"{source}>{target} {stream.kind} end")
            _end(way)
            back = stream.down if way is stream.up else stream.up
            if back is not None:
                back.queue.clear()  # nobody is there any more to take it
            if way.source is stream.client or stream.down is None or stream.down.receive is None:
                self.forget(stream)
            return
        if way.receive is not None:
            self.world.trace(f"{source}>{target} {stream.kind} {type(message).__name__}")
            way.receive(message)

    # -- partitions ------------------------------------------------------------------------------------------------------------

    def is_blocked(self, source: str, target: str) -> bool:
        return self.blocked[source, target] > 0

    def block(self, source: str, target: str) -> None:
        self.blocked[source, target] += 1

    def unblock(self, source: str, target: str) -> None:
        self.blocked[source, target] -= 1
        if self.is_blocked(source, target):
            return
        for stream in self.streams_of(source, target):
            for way in (stream.up, stream.down):
                if way is not None and way.held and way.source.machine.name == source:
                    self.world.at(way.source.machine.latency_s, way.target, partial(self._release, way))

    def _release(self, way: _Way) -> None:
        held, way.held = way.held, []
        for message in held:
            if way.stream.open:
                self._deliver(way, message)
