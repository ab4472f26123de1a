"""What a peer needs of the network: streams of records, bulk connections, a directory of peers.

In production these are gRPC, TLS sockets and hivemind's DHT (network.py); in a simulation they are events in virtual time
(peer/simulation). Everything above speaks records: protobuf stays below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from protocols.ban_list import SignedBanList
from protocols.errors import BadMessageError, RefusedError, UnreachableError
from protocols.observations import Evaluation
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello, Standing
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.frames import FrameStream, Kind

# A busy home computer may need some time for a TLS handshake.
DIAL_S = 10.0


class Stream(Protocol):
    """One call: records in order, both ways.

    `receive` raises UnreachableError when the way to the other side breaks, RefusedError when it says no, and BadMessageError
    when what it sent breaks the protocol.
    """

    peer: str  # who is at the other end, by its certificate

    async def send(self, record: Any) -> None:
        """Returns when the stream can take more. Raises as `receive` does, also when the other side takes nothing for long."""

    def post(self, record: Any) -> bool:
        """Send a small record without waiting. It is dropped when the stream has ended.

        False once too much waits to be sent: the other side does not read, and gets nothing more on this stream.
        """

    async def receive(self) -> Any | None:
        """The next record; None when the other side has ended the call."""


class Service(Protocol):
    """What a peer answers to others."""

    async def serve(self, stream: Stream, opening: Any) -> None:
        """One call, which `opening` began; it ends when this returns. Raises RefusedError to say no."""

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        """One request on a bulk connection, whose frame has this kind and length."""


class Transport(Protocol):
    """The way to other peers. Whoever answers has proved to be the peer that was asked for."""

    bandwidth: Bandwidth

    def open(self, peer: Candidate, opening: Any) -> AbstractAsyncContextManager[Stream]:
        """A call to `peer` that `opening` begins. Leaving the block ends the call."""

    def bulk(self, peer: str, address: str, dial_s: float = DIAL_S) -> AbstractAsyncContextManager[FrameStream]:
        """A bulk connection of one's own, kept for the next request when the block ends well. A new one may take `dial_s`
        seconds. Raises UnreachableError."""

    async def dial(self, peer: Candidate, dial_s: float = DIAL_S) -> None:
        """Try whether a new connection for calls can be made now. Raises UnreachableError."""

    async def dial_bulk(self, peer: str, address: str, dial_s: float = DIAL_S) -> None:
        """Try whether a new bulk connection can be made now. Raises UnreachableError."""


@dataclass(frozen=True)
class News:
    """What a peer hears in reply when it says where it is."""

    peers: tuple[Candidate, ...] = ()
    """Some that can be reached."""
    held_out: Evaluation | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """What peers call themselves, by their ids."""
    standing: Standing | None = None
    """Where the coordinator's own auxiliary peer stands."""
    certificate: bytes = b""
    """A new one for this peer (PEM), when its own is old."""
    bans: SignedBanList | None = None
    """Its ban list, when that is newer than the last one that it sent. The signature is not checked."""


class Directory(Protocol):
    """Where peers say that they are, and find each other."""

    async def announce(self, hello: Hello) -> News:
        """Say where this peer is. Raises RemoteError or LocalError."""

    async def peers(self) -> list[Candidate]:
        """Reachable peers, as far as they can be found now. Raises RemoteError or LocalError."""

    def bar(self, peers: frozenset[str]) -> None:
        """From now on, what these announce is dropped."""


async def call(transport: Transport, peer: Candidate, request: Any, limit_s: float) -> Any:
    """The one record that answers `request`. Raises RemoteError; UnreachableError after `limit_s` seconds."""

    async def reply() -> Any:
        async with transport.open(peer, request) as stream:
            return await stream.receive()

    try:
        record = await asyncio.wait_for(reply(), limit_s)
    except asyncio.TimeoutError as error:
        raise UnreachableError(f"peer {peer.peer[:8]} does not answer within {limit_s:g} s") from error
    if record is None:
        raise BadMessageError(f"peer {peer.peer[:8]} answered nothing")
    return record


async def receive_within(stream: Stream, limit_s: float) -> Any | None:
    """The next record. Raises RefusedError (reason silent) when none comes within `limit_s` seconds."""
    try:
        return await asyncio.wait_for(stream.receive(), limit_s)
    except asyncio.TimeoutError as error:
        whom = f"peer {stream.peer[:8]}"
        raise RefusedError(f"{whom} sent nothing for {limit_s:.0f} s", reason=Reason.SILENT.value) from error


def refusal(reason: Reason, sentence: str) -> RefusedError:
    """To be raised by whoever serves a call: the caller gets reason and sentence."""
    return RefusedError(sentence, reason=reason.value, sentence=sentence)
