"""Calls of the `Peer` service over gRPC: records in, records out, refusals and broken links translated.

Every call is a stream both ways, also one with a single request or reply: on the wire gRPC frames both alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport.bandwidth import RateLimiter
from protocols.transport.callers import BURST_S, BYTES_S_OF_PEER, CALL_BYTES, RECORD_BYTES, Callers
from protocols.transport.channels import Channels, admit, network, translated
from protocols.transport.freshness import Freshness
from protocols.transport.interface import Service, receive_within, refusal
from protocols.wire.calls import CALL_OF, CALLS, Call, Envelope, Single

SERVICE = "dugnad.v1.Peer"
# What waits to be sent on one stream: five of the largest records that a leader sends. A leader hears within two seconds that a
# follower is gone; so more waits only where somebody is there and does not read.
MAX_POSTED_BYTES = 4 << 20
# A record that the other side does not take for so long ends the stream. Joiners give each donor up to 80 s for a chunk.
SEND_S = 90.0
# Who opens a call says at once what for.
OPENING_S = 10.0
END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # what read() returns when the other side is done
_log = logging.getLogger(__name__)


class GrpcStream:
    """One side of a call."""

    def __init__(
        self,
        peer: str,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[Any]],
        *,
        incoming: Single | Envelope,
        outgoing: Single | Envelope,
        turn: Callable[[int], Awaitable[None]],
    ) -> None:
        """`turn`: returns when a record of so many bytes may be read."""
        self.peer = peer
        self._turn = turn
        self._read = read
        self._write = write
        self._incoming = incoming
        self._outgoing = outgoing
        self._posted: deque[bytes] = deque()
        self._posted_bytes = 0
        self._is_full = False
        self._posting: asyncio.Task[None] | None = None

    async def send(self, record: Any) -> None:
        try:
            await asyncio.wait_for(self._send(record), SEND_S)
        except asyncio.TimeoutError as error:
            self._give_up(f"nothing for {SEND_S:g} s")
            raise UnreachableError(f"peer {self.peer[:8]} takes nothing") from error

    async def _send(self, record: Any) -> None:
        await self.flush()  # records keep their order
        if self._is_full:
            raise UnreachableError(f"peer {self.peer[:8]} takes nothing")
        with translated(f"peer {self.peer[:8]}"):
            await self._write(self._outgoing.to_bytes(record))

    def post(self, record: Any) -> bool:
        if self._is_full:
            return False
        data = self._outgoing.to_bytes(record)
        if self._posted_bytes + len(data) > MAX_POSTED_BYTES:
            self._give_up(f"{len(self._posted)} records")
            return False
        self._posted.append(data)
        self._posted_bytes += len(data)
        if self._posting is None or self._posting.done():
            self._posting = asyncio.get_running_loop().create_task(self._post_all())
        return True

    def _give_up(self, what: str) -> None:
        _log.warning("%s does not read what it is sent (%s): its stream ends (%s)", self.peer[:8], what, Reason.UNREAD.value)
        self._is_full = True
        self._posted.clear()
        if self._posting is not None:
            self._posting.cancel()

    async def receive(self) -> Any | None:
        with translated(f"peer {self.peer[:8]}"):
            data = await self._read()
        if data is END:
            return None
        if not self._incoming.is_state:  # which has limits of its own, and takes little time
            await self._turn(len(data))
        return self._incoming.from_bytes(data)

    async def flush(self) -> None:
        """Returns when all that was posted is written, or the link is broken."""
        if self._posting is not None:
            await asyncio.gather(self._posting, return_exceptions=True)

    async def aclose(self) -> None:
        """Nothing more is written."""
        if self._posting is not None:
            self._posting.cancel()
            await self.flush()

    async def _post_all(self) -> None:
        with contextlib.suppress(
            grpc.RpcError, asyncio.InvalidStateError, grpc.aio.InternalError
        ):  # the reading side notices too, and says so
            while self._posted:
                await self._write(self._posted[0])
                self._posted_bytes -= len(self._posted.popleft())


@contextlib.asynccontextmanager
async def opened(channels: Channels, peer: Candidate, opening: Any) -> AsyncIterator[GrpcStream]:
    """A call to `peer`, begun with `opening`; it is cancelled when the block is left."""
    kind = CALL_OF[type(opening)]
    async with channels.to(peer.peer, peer.address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{kind.name}", bytes, bytes)(metadata=channels.metadata)  # type: ignore[call-arg]
        turn = RateLimiter(BYTES_S_OF_PEER, time.monotonic, BURST_S).turn
        stream = GrpcStream(
            peer.peer,
            call.read,
            call.write,
            incoming=kind.down,
            outgoing=kind.up,
            turn=lambda size: turn(size + RECORD_BYTES),
        )
        try:
            await stream.send(opening)
            yield stream
            await stream.flush()
        finally:
            await stream.aclose()
            call.cancel()


def answers(service: Service, run_digest: str, freshness: Freshness) -> grpc.GenericRpcHandler[Any, Any]:
    """For a gRPC server: answers the calls of other peers of the run with `service`."""
    callers = Callers(time.monotonic)
    handlers = {
        call.name: grpc.stream_stream_rpc_method_handler(_handler(service, run_digest, freshness, call, callers), bytes, bytes)
        for call in CALLS
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _handler(
    service: Service, run_digest: str, freshness: Freshness, call: Call, callers: Callers
) -> Callable[[Any, Any], Awaitable[None]]:
    async def handle(_requests: Any, context: Any) -> None:
        peer = await admit(context, run_digest, freshness)
        where = network(context)
        await callers.turn(peer, where, CALL_BYTES)
        turn = functools.partial(callers.turn, peer, where)
        stream = GrpcStream(peer, context.read, context.write, incoming=call.up, outgoing=call.down, turn=turn)
        try:
            with callers.calling(peer, where) as too_many:
                if too_many:
                    raise refusal(Reason.BUSY, too_many)
                opening = await receive_within(stream, OPENING_S)
                if not isinstance(opening, call.opening):
                    raise BadMessageError(f"{call.name} opens with {call.opening.__name__}")
                await service.serve(stream, opening)
                await stream.flush()
        except RefusedError as error:
            await _abort(context, error.reason, error.sentence)
        except BadMessageError as error:
            _log.warning("%s breaks the protocol in %s: %s", peer[:8], call.name, error)
            await _abort(context, Reason.BAD_MESSAGE.value, str(error))
        except RemoteError:
            pass  # the caller is gone; whoever waited for it has been told
        finally:
            await stream.aclose()

    return handle


async def _abort(context: Any, reason: str, sentence: str) -> None:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{reason}: {sentence}")
