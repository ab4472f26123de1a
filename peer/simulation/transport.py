"""Production's transport interface over the simulated network: calls and bulk connections in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from peer.simulation.network import BULK, SMALL_BYTES, Network, Process
from peer.simulation.network import Stream as NetworkStream
from protocols.ban_list import BanList, SignedBanList
from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.messages import AskRequest, Chunk
from protocols.reasons import Reason
from protocols.round.plans import MemberPlan
from protocols.round.records import Candidate, Commit, SignedCommit, Vote, digest_of, vote_message
from protocols.signing import voted_result
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import DIAL_S, Service

RECORD_BYTES = 1500.0  # a plan or a commit
DRAIN_S = 5.0


@dataclass(frozen=True)
class _Call:
    """Opens a call."""

    opening: Any


class _Bulk:
    """Opens a bulk connection."""


class _Over:
    """The server has ended the call in order, as distinct from a link that broke."""


@dataclass(frozen=True)
class _Refused:
    reason: str
    sentence: str


def size_of(record: Any) -> float:
    """Bytes that a record takes on the line, roughly."""
    if isinstance(record, Chunk):
        return SMALL_BYTES + len(record.data)
    return RECORD_BYTES if isinstance(record, MemberPlan | SignedCommit) else SMALL_BYTES


class _Link:
    """One end of a network stream: what came in, and tasks that wait for more or for what they sent to leave."""

    stream: NetworkStream

    def __init__(self, process: Process, peer: str) -> None:
        self.process, self.peer = process, peer
        self.incoming: deque[Any] = deque()
        self.error: RemoteError | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def take(self, message: Any) -> None:
        self.incoming.append(message)
        self._wake()

    def end(self) -> None:
        self.error = self.error or UnreachableError(f"the link to {self.peer} broke")
        self._wake()

    def close(self) -> None:
        self.error = self.error or UnreachableError(f"the stream to {self.peer} is closed")
        self.stream.close(self.process)
        self._wake()

    async def connected(self, limit_s: float) -> None:
        """Until the other machine has taken the connection."""

        async def stands() -> None:
            while not self.stream.stands:
                await self._wait()

        self.stream.when_it_stands = self._wake
        try:
            await asyncio.wait_for(stands(), limit_s)
        except asyncio.TimeoutError as error:
            raise UnreachableError(f"{self.peer} does not answer within {limit_s:g} s") from error

    async def next(self) -> Any:
        while not self.incoming:
            await self._wait()
        return self.incoming.popleft()

    async def send(self, message: Any, size: float) -> None:
        """Returns once the message has left this machine."""
        if self.error is not None:
            raise self.error
        left: list[bool] = []

        def departed() -> None:
            left.append(True)
            self._wake()

        self.stream.send(self.process, message, size, departed)
        while not left:
            await self._wait()

    async def _wait(self) -> None:
        if self.error is not None:
            raise self.error
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class SimulatedStream:
    """One side of a call."""

    def __init__(self, link: _Link, transport: SimulatedTransport) -> None:
        self.peer = link.peer
        self.link = link
        self._transport = transport

    async def send(self, record: Any) -> None:
        told = self._transport.tamper(record)
        if told is not None:
            await self.link.send(told, size_of(told))

    def post(self, record: Any) -> bool:
        told = self._transport.tamper(record)
        if told is not None and self.link.error is None:
            self.link.stream.send(self.link.process, told, size_of(told))
        return True

    async def receive(self) -> Any | None:
        message = await self.link.next()
        if isinstance(message, _Refused):
            self.link.error = RefusedError(
                f"{self.peer} refused: {message.sentence}", reason=message.reason, sentence=message.sentence
            )
            raise self.link.error
        return None if isinstance(message, _Over) else message


class SimulatedBulk(FrameStream):
    """Bytes over a network stream; a piece of them travels as it was written."""

    def __init__(self, link: _Link, transport: SimulatedTransport) -> None:
        self.peer = link.peer
        self._link = link
        self._transport, self._bandwidth = transport, transport.bandwidth
        self._rest = memoryview(b"")

    async def send(self, kind: Kind, payload: bytes | bytearray | memoryview = b"") -> None:
        if kind is Kind.CHUNK and payload:
            payload = self._transport.tamper_bytes(bytes(payload))
        await super().send(kind, payload)

    async def send_record(self, kind: Kind, record: Any) -> None:
        told = self._transport.tamper(record)
        if told is not None:
            await super().send_record(kind, told)

    async def write(self, view: memoryview) -> None:
        if self._link.error is not None:
            raise self._link.error
        await self._bandwidth.up.turn(len(view))
        try:
            await self._link.send(bytes(view), len(view))
        except asyncio.CancelledError:  # a part of it may be on its way: nothing that follows would be understood
            self.close()
            raise
        self._bandwidth.up.moved(len(view))

    async def read_some(self, view: memoryview) -> int:
        if not self._rest:
            data = await self._link.next()
            if not isinstance(data, bytes):
                raise BadMessageError("a record on a bulk connection")
            self._bandwidth.down.moved(len(data))
            await self._bandwidth.down.turn(len(data))
            self._rest = memoryview(data)
        size = min(len(view), len(self._rest))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    async def drain(self) -> None:
        async def forget_all() -> None:
            while True:
                await self._link.next()

        with contextlib.suppress(RemoteError, asyncio.TimeoutError):
            await asyncio.wait_for(forget_all(), DRAIN_S)

    def set_rate(self, bytes_s: float | None) -> None:
        """Simulated lines share themselves evenly."""

    def close(self) -> None:
        self._link.close()


class SimulatedTransport:
    """One process's way to the others, and theirs to it."""

    def __init__(self, network: Network, process: Process, bandwidth: Bandwidth) -> None:
        self.bandwidth = bandwidth
        self.service: Service | None = None
        self.tamper: Callable[[Any], Any] = lambda record: record  # what a liar makes of a record that it sends; None: nothing
        self.tamper_bytes: Callable[[bytes], bytes] = lambda data: data  # and of averages
        self._network, self._process = network, process

    @contextlib.asynccontextmanager
    async def open(self, peer: Candidate, opening: Any) -> AsyncIterator[SimulatedStream]:
        with contextlib.closing(self._dial(peer.peer, type(opening).__name__, _Call(self.tamper(opening)))) as link:
            yield SimulatedStream(link, self)

    @contextlib.asynccontextmanager
    async def bulk(self, peer: str, address: str, dial_s: float = DIAL_S) -> AsyncIterator[SimulatedBulk]:
        with contextlib.closing(self._dial(peer, BULK, _Bulk())) as link:
            await link.connected(dial_s)
            yield SimulatedBulk(link, self)

    async def dial(self, peer: Candidate, dial_s: float = DIAL_S) -> None:
        opening = AskRequest()  # there are no connections without a call here: the smallest one stands for it
        with contextlib.closing(self._dial(peer.peer, type(opening).__name__, _Call(opening))) as link:
            await link.connected(dial_s)

    async def dial_bulk(self, peer: str, address: str, dial_s: float = DIAL_S) -> None:
        async with self.bulk(peer, address, dial_s):
            pass

    def _dial(self, peer: str, kind: str, opening: Any) -> _Link:
        link = _Link(self._process, peer)
        link.stream = self._network.dial(self._process, peer, kind, opening, link.take, link.end)
        return link

    def accept(self, stream: NetworkStream, opening: Any) -> None:
        """A stream that another process opened here. Call within an event of this process."""
        link = _Link(self._process, stream.client.machine.name)
        link.stream = stream
        stream.serve(link.take, link.end)
        serve = self._serve(link, opening.opening) if isinstance(opening, _Call) else self._serve_bulk(link)
        asyncio.get_running_loop().create_task(serve)

    async def _serve(self, link: _Link, opening: Any) -> None:
        assert self.service is not None
        try:
            await self.service.serve(SimulatedStream(link, self), opening)
            link.stream.send(link.process, _Over())
        except RefusedError as error:
            link.stream.send(link.process, _Refused(error.reason, error.sentence))
        except BadMessageError as error:
            link.stream.send(link.process, _Refused(Reason.BAD_MESSAGE.value, str(error)))
        except RemoteError:
            pass  # the caller is gone
        finally:
            link.close()

    async def _serve_bulk(self, link: _Link) -> None:
        assert self.service is not None
        stream = SimulatedBulk(link, self)
        # The other side is gone, refused, or breaks the protocol.
        with contextlib.closing(link), contextlib.suppress(RemoteError, asyncio.TimeoutError):
            while True:
                kind, length = await stream.header()
                await self.service.serve_bulk(stream, kind, length)


STRANGER = "stranger"  # whom the organiser bans: nobody here


class SimulatedSigner:
    """Signatures that are cheap, deterministic, and nobody else's."""

    def __init__(self, me: str) -> None:
        self._me = me

    def sign(self, commit: Commit, votes: tuple[Vote, ...] = ()) -> SignedCommit:
        return SignedCommit(commit, _signature(self._me, commit.digest), self._me.encode(), votes)

    def vote(self, message: bytes) -> Vote:
        return Vote(self._me, b"", _signature(self._me, message.decode()))

    def check_vote(self, vote: Vote, message: bytes) -> None:
        if vote.signature != _signature(vote.peer, message.decode()):
            raise BadMessageError(f"a vote of {vote.peer} is not signed by it")

    def check_bans(self, signed: SignedBanList) -> None:
        if signed != ban_list_by_the_organiser(signed.bans):
            raise BadMessageError("a ban list that the organiser has not signed")

    def verify(self, signed: SignedCommit) -> SignedCommit:
        signer = signed.certificate.decode(errors="replace")
        if signer != signed.commit.leader.peer or signed.signature != _signature(signer, signed.commit.digest):
            raise BadMessageError(f"a commit of leader {signed.commit.leader.peer} is not signed by it")
        message = vote_message(voted_result(signed))
        for vote in signed.votes:
            self.check_vote(vote, message)
        return signed


def ban_list_by_the_organiser(bans: BanList) -> SignedBanList:
    return SignedBanList(bans, _signature("the organiser", digest_of(bans)))


def _signature(peer: str, digest: str) -> bytes:
    return hashlib.blake2b(digest.encode(), digest_size=16, key=f"secret of {peer}".encode()).digest()
