"""Bulk connections in production: mutual TLS over TCP sockets, driven by the network thread's loop without threads of their own.

Large data travels as views: between a vector and its socket only TLS copies, one record at a time. One stream moves two to three
times what a stream of grpc.aio moves (benchmarks/README.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from cryptography import x509
from OpenSSL import SSL

from protocols.errors import BadMessageError, PortInUseError, RemoteError, UnreachableError
from protocols.identity import Credentials, holder_of
from protocols.messages import BulkHello
from protocols.reasons import Reason
from protocols.round.records import MAX_PEERS
from protocols.transport import tls
from protocols.transport.addresses import EVERYWHERE, family_of, joined
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.callers import Pace, network_of
from protocols.transport.channels import PROTOCOL_VERSION
from protocols.transport.frames import RECORD_BYTES, FrameStream, Kind, refuse
from protocols.transport.freshness import OLD_CERTIFICATE, Freshness
from protocols.transport.interface import DIAL_S
from protocols.transport.network_thread import cancel_all

# What is read or written between two looks at limits and at progress; only so much as a slow line takes in this time, too.
BURST_BYTES = 128 << 10
QUICK_S = 0.25
# What one stream moves before the loop's other work gets its turn.
TURN_BYTES = 512 << 10
# A refused caller is listened to for so long, since closing at once would take the refusal back from it.
DRAIN_S = 5.0
# One peer needs a connection for each shard that it gives to this one. Peers behind one router share an address. In all, a run's
# peers may have two each, so that descriptors are left.
MAX_CONNECTIONS_OF_PEER, MAX_CONNECTIONS_OF_ADDRESS, MAX_CONNECTIONS = 128, 1024, 2 * MAX_PEERS
# Callers that have not shown a certificate yet, from one address and in all. Beyond that the one that waits longest is let go.
MAX_STRANGERS_OF_ADDRESS, MAX_STRANGERS = 128, 512
# A handshake takes 1.5 ms of the network thread. All peers of a large run may come at once from behind one router, but not
# again and again.
HANDSHAKES_S, HANDSHAKES_BURST_S = 32.0, 8.0
SO_MAX_PACING_RATE = 47 if sys.platform == "linux" else 0  # Python has no name for it
UNPACED = (1 << 64) - 1
# Once the kernel has put off a packet, no later change of pace hastens it.
MIN_PACE_BYTES_S = 16 << 10
_log = logging.getLogger(__name__)
T = TypeVar("T")


class TlsStream(FrameStream):
    """One bulk connection over TLS."""

    def __init__(self, connection: SSL.Connection, peer: str, bandwidth: Bandwidth) -> None:
        self.peer = peer
        self._connection = connection
        self._bandwidth = bandwidth
        self._loop = asyncio.get_running_loop()
        self._in_turn = 0
        self._burst_bytes = RECORD_BYTES
        self._is_closed = False
        # TLS may have to read in order to send, and the other way round: so both tasks may wait for the same.
        self._readers: list[asyncio.Future[None]] = []
        self._writers: list[asyncio.Future[None]] = []

    @property
    def is_idle(self) -> bool:
        """Still open, and nothing unexpected came: fit for another request."""
        if self._is_closed:
            return False
        try:
            self._connection.recv(1)  # whatever it gives, even the end, nobody asked for
        except SSL.WantReadError:
            return True
        except (SSL.Error, OSError):
            pass
        return False

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        _wake([*self._readers, *self._writers])  # to hear that it is closed

    def set_rate(self, bytes_s: float | None) -> None:
        """Send no faster than this from now on (None: without a limit), where the system can: evenly, instead of in bursts that
        fill the receiver's line and are dropped before it."""
        if SO_MAX_PACING_RATE:
            rate = UNPACED if bytes_s is None else int(min(max(bytes_s, MIN_PACE_BYTES_S), UNPACED))
            with contextlib.suppress(OSError):  # a system without it, or a connection that is closed: it shows soon enough
                self._connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate.to_bytes(8, sys.byteorder))

    async def handshake(self) -> x509.Certificate:
        """The certificate of whoever is at the other end."""
        await self._until_done(self._connection.do_handshake)
        return tls.shown_by(self._connection)

    async def readable(self) -> None:
        """Returns when something came."""
        await self._wait(self._readers, self._loop.add_reader, self._loop.remove_reader)

    async def drain(self) -> None:
        """Read and forget until the other side closes."""
        with contextlib.suppress(RemoteError, asyncio.TimeoutError):
            await asyncio.wait_for(self._forget_all(), DRAIN_S)

    async def _forget_all(self) -> None:
        scratch = memoryview(bytearray(BURST_BYTES))
        while True:
            await self.read_some(scratch)

    async def read_some(self, view: memoryview) -> int:
        size = await self._until_done(lambda: self._recv(view[:BURST_BYTES]))
        self._bandwidth.down.moved(size)
        await self._bandwidth.down.turn(size)
        await self._moved(size)
        return size

    def _recv(self, view: memoryview) -> int:
        """What is there of `view`, which comes a TLS record at a time. Raises WantReadError when nothing is."""
        at = 0
        while at < len(view):
            try:
                at += self._connection.recv_into(view[at : at + RECORD_BYTES])
            except SSL.WantReadError:
                if at:
                    break
                raise
        return at

    async def write(self, view: memoryview) -> None:
        """Bytes without a frame, of which the other side knows how many come."""
        while view:
            burst = view[: self._burst_bytes]
            began = self._loop.time()
            await self._bandwidth.up.turn(len(burst))
            try:
                await self._until_done(lambda burst=burst: self._connection.send(burst))  # type: ignore[misc]
            except asyncio.CancelledError:  # a part of it may be on its way: nothing that follows would be understood
                self.close()
                raise
            is_quick = self._loop.time() - began < QUICK_S
            self._burst_bytes = min(2 * self._burst_bytes, BURST_BYTES) if is_quick else RECORD_BYTES
            self._bandwidth.up.moved(len(burst))
            view = view[len(burst) :]
            await self._moved(len(burst))

    async def _moved(self, size: int) -> None:
        self._in_turn += size
        if self._in_turn >= TURN_BYTES:
            self._in_turn = 0
            await asyncio.sleep(0)

    async def _until_done(self, act: Callable[[], T]) -> T:
        while True:
            if self._is_closed:  # OpenSSL would go on with whatever has its file descriptor now
                raise UnreachableError(f"the connection to {self.peer[:8]} is closed")
            try:
                return act()
            except SSL.WantReadError:
                await self._wait(self._readers, self._loop.add_reader, self._loop.remove_reader)
            except SSL.WantWriteError:
                await self._wait(self._writers, self._loop.add_writer, self._loop.remove_writer)
            except SSL.ZeroReturnError as error:
                raise UnreachableError(f"{self.peer[:8]} closed the connection") from error
            except (SSL.Error, OSError) as error:
                raise UnreachableError(f"the connection to {self.peer[:8]} broke ({error})") from error

    async def _wait(self, waiters: list[asyncio.Future[None]], add: Callable[..., None], remove: Callable[..., object]) -> None:
        self._in_turn = 0
        ready = self._loop.create_future()
        if not waiters:
            add(self._connection, _wake, waiters)
        waiters.append(ready)
        try:
            await ready
        finally:
            waiters.remove(ready)
            if not waiters:
                with contextlib.suppress(OSError, ValueError):
                    remove(self._connection)


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for ready in waiters:
        if not ready.done():
            ready.set_result(None)


class BulkConnections:
    """This process's connections to other peers, kept open between requests."""

    def __init__(self, credentials: Credentials, run_digest: str, bandwidth: Bandwidth) -> None:
        self.bandwidth = bandwidth
        self._credentials = credentials
        self._tls = tls.context(credentials)
        self._hello = BulkHello(PROTOCOL_VERSION, run_digest)
        self._idle: dict[tuple[str, str], list[TlsStream]] = defaultdict(list)

    @contextlib.asynccontextmanager
    async def to(self, peer: str, address: str, dial_s: float = DIAL_S) -> AsyncIterator[TlsStream]:
        """A connection of one's own, to whoever holds the certificate of `peer` at `address`. It is kept for the next request
        when the block ends well, and closed when it does not. Raises UnreachableError."""
        stream = self._kept(peer, address) or await self._dialled(peer, address, dial_s)
        stream.set_rate(None)
        try:
            yield stream
        except BaseException:
            stream.close()
            raise
        self._idle[peer, address].append(stream)

    async def dial(self, peer: str, address: str, dial_s: float) -> None:
        """Make a new connection and close it. Raises UnreachableError."""
        (await self._dialled(peer, address, dial_s)).close()

    def _kept(self, peer: str, address: str) -> TlsStream | None:
        idle = self._idle[peer, address]
        while idle:
            stream = idle.pop()
            if stream.is_idle:
                return stream
            stream.close()
        return None

    async def _dialled(self, peer: str, address: str, dial_s: float) -> TlsStream:
        try:
            return await asyncio.wait_for(self._dial(peer, address), dial_s)
        except asyncio.TimeoutError as error:
            raise UnreachableError(f"{peer[:8]} at {address} does not answer within {dial_s:.1f} s") from error

    async def _dial(self, peer: str, address: str) -> TlsStream:
        self._forget_broken()
        plain = await tls.connected_to(peer, address)
        connection = SSL.Connection(self._tls, plain)
        connection.set_connect_state()
        stream = TlsStream(connection, peer, self.bandwidth)
        try:
            if (answers := holder_of(await stream.handshake())) != peer:
                raise UnreachableError(f"{answers[:8]} answers at {address}, not {peer[:8]}")
            await stream.send_record(Kind.HELLO, self._hello)
        except BaseException:
            stream.close()
            raise
        return stream

    def _forget_broken(self) -> None:
        """Connections to those who left, or who listen elsewhere now."""
        for key, streams in list(self._idle.items()):
            for stream in [stream for stream in streams if not stream.is_idle]:
                stream.close()
                streams.remove(stream)
            if not streams:
                del self._idle[key]

    def renew(self) -> None:
        """Requests from now on go over new connections, which show the certificate of now."""
        self._tls = tls.context(self._credentials)
        self.close()

    def close(self) -> None:
        for streams in self._idle.values():
            for stream in streams:
                stream.close()
        self._idle.clear()


Serve = Callable[[FrameStream, Kind, int], Awaitable[None]]  # (stream, request's kind, its length)


class BulkServer:
    """Listens for other peers' connections, and answers one request after another on each."""

    def __init__(
        self,
        credentials: Credentials,
        run_digest: str,
        bandwidth: Bandwidth,
        host: str,
        port: int,
        freshness: Freshness | None = None,
    ) -> None:
        """Without `freshness` certificates are taken however old they are. Raises PortInUseError."""
        self._credentials = credentials
        self._freshness = freshness or Freshness()
        self._tls = tls.context(credentials)
        self._run_digest = run_digest
        self._bandwidth = bandwidth
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: Counter[str] = Counter()  # by peer, by network, and in all
        self._handshakes = Pace(HANDSHAKES_S, time.monotonic, HANDSHAKES_BURST_S)  # by network
        self._strangers: dict[asyncio.Task[None], str] = {}  # who serves one -> its address, the oldest first
        try:
            both = host == EVERYWHERE[socket.AF_INET6] and socket.has_dualstack_ipv6()  # as gRPC does it
            self._listener = socket.create_server((host, port), family=family_of(host), backlog=128, dualstack_ipv6=both)
        except OSError as error:
            where = joined(host, port)
            raise PortInUseError(f"cannot listen on {where}: {error.strerror}", remedy="Choose another --port.") from error
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]  # that of the argument unless that was 0

    def renew(self) -> None:
        """Show the certificate of now to whoever connects from now on."""
        self._tls = tls.context(self._credentials)

    def start(self, serve: Serve) -> None:
        self._spawn(self._accept(serve))

    async def aclose(self) -> None:
        await cancel_all(self._tasks)
        self._listener.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._strangers.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("serving a bulk connection failed", exc_info=error)

    async def _accept(self, serve: Serve) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                plain, (address, *_) = await loop.sock_accept(self._listener)
            except OSError as error:  # out of file descriptors, or the caller is gone already
                _log.warning("a bulk connection could not be accepted: %s", error)
                await asyncio.sleep(1.0)
                continue
            if self._handshakes.wait_s(network_of(address)) > DIAL_S:
                plain.close()
                continue
            self._let_wait(self._spawn(self._connected(plain, network_of(address), serve)), network_of(address))

    def _let_wait(self, stranger: asyncio.Task[None], address: str) -> None:
        """Until it has shown a certificate."""
        self._strangers[stranger] = address
        of_address = [task for task, other in self._strangers.items() if other == address]
        if len(of_address) > MAX_STRANGERS_OF_ADDRESS:
            of_address[0].cancel()
        elif len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).cancel()

    async def _connected(self, plain: socket.socket, network: str, serve: Serve) -> None:
        try:
            tls.tune(plain)
        except OSError:
            plain.close()
            return
        connection = SSL.Connection(self._tls, plain)
        connection.set_accept_state()
        stream = TlsStream(connection, "", self._bandwidth)
        try:
            await asyncio.wait_for(self._greeted(stream, network), DIAL_S)
            if (me := asyncio.current_task()) is not None:
                self._strangers.pop(me, None)
            with self._counted(stream.peer, network) as is_too_many:
                if is_too_many:
                    await refuse(stream, Reason.BUSY, "too many connections")
                while True:
                    kind, length = await stream.header()
                    stream.set_rate(None)
                    await serve(stream, kind, length)
        except BadMessageError as error:
            _log.warning("%s breaks the protocol on a bulk connection: %s", stream.peer[:8], error)
        except (RemoteError, asyncio.TimeoutError):
            pass  # the caller is gone, and whoever waited for its bytes has been told; a refusal is for answers alone
        finally:
            stream.close()

    @contextlib.contextmanager
    def _counted(self, peer: str, network: str) -> Iterator[bool]:
        """One more connection of `peer`, within: whether it is too many."""
        most = {peer: MAX_CONNECTIONS_OF_PEER, network: MAX_CONNECTIONS_OF_ADDRESS, "": MAX_CONNECTIONS}
        self._connections.update(most.keys())
        try:
            yield any(self._connections[name] > count for name, count in most.items())
        finally:
            self._connections.subtract(most.keys())
            self._connections += Counter()  # forgets those who have none

    async def _greeted(self, stream: TlsStream, network: str) -> None:
        await stream.readable()  # who says nothing costs no handshake
        await self._handshakes.turn(network, 1)
        certificate = await stream.handshake()
        stream.peer = holder_of(certificate)
        hello = await stream.expect(Kind.HELLO, BulkHello)
        if hello.protocol != PROTOCOL_VERSION:
            await refuse(stream, Reason.OTHER_VERSION, f"this peer speaks protocol {PROTOCOL_VERSION}")
        if self._freshness.refuses(certificate):
            await refuse(stream, Reason.OLD_CERTIFICATE, OLD_CERTIFICATE)
        if hello.run_digest != self._run_digest:
            await refuse(stream, Reason.OTHER_RUN, f"this peer trains run {self._run_digest[:12]}, not {hello.run_digest[:12]}")
