"""Calls of the `Peer` service over gRPC: records in, records out, refusals and broken links translated.

Every call is a stream both ways, also one with a single request or reply: on the wire gRPC frames both alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport.channels import Channels, admit, translated
from protocols.transport.freshness import Freshness
from protocols.transport.interface import Service
from protocols.wire.calls import CALL_OF, CALLS, Call, Envelope, Single

SERVICE = "dugnad.v1.Peer"
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
    ) -> None:
        self.peer = peer
        self._read = read
        self._write = write
        self._incoming = incoming
        self._outgoing = outgoing
        self._posted: deque[bytes] = deque()
        self._posting: asyncio.Task[None] | None = None

    async def send(self, record: Any) -> None:
        await self.flush()  # records keep their order
        with translated(f"peer {self.peer[:8]}"):
            await self._write(self._outgoing.to_bytes(record))

    def post(self, record: Any) -> None:
        self._posted.append(self._outgoing.to_bytes(record))
        if self._posting is None or self._posting.done():
            self._posting = asyncio.get_running_loop().create_task(self._post_all())

    async def receive(self) -> Any | None:
        with translated(f"peer {self.peer[:8]}"):
            data = await self._read()
        return None if data is END else self._incoming.from_bytes(data)

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
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reading side notices too, and says so
            while self._posted:
                await self._write(self._posted[0])
                self._posted.popleft()


@contextlib.asynccontextmanager
async def opened(channels: Channels, peer: Candidate, opening: Any) -> AsyncIterator[GrpcStream]:
    """A call to `peer`, begun with `opening`; it is cancelled when the block is left."""
    kind = CALL_OF[type(opening)]
    async with channels.to(peer.peer, peer.address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{kind.name}", bytes, bytes)(metadata=channels.metadata)  # type: ignore[call-arg]
        stream = GrpcStream(peer.peer, call.read, call.write, incoming=kind.down, outgoing=kind.up)
        try:
            await stream.send(opening)
            yield stream
            await stream.flush()
        finally:
            await stream.aclose()
            call.cancel()


def answers(service: Service, run_digest: str, freshness: Freshness) -> grpc.GenericRpcHandler[Any, Any]:
    """For a gRPC server: answers the calls of other peers of the run with `service`."""
    handlers = {
        call.name: grpc.stream_stream_rpc_method_handler(_handler(service, run_digest, freshness, call), bytes, bytes)
        for call in CALLS
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _handler(service: Service, run_digest: str, freshness: Freshness, call: Call) -> Callable[[Any, Any], Awaitable[None]]:
    async def handle(_requests: Any, context: Any) -> None:
        peer = await admit(context, run_digest, freshness)
        stream = GrpcStream(peer, context.read, context.write, incoming=call.up, outgoing=call.down)
        try:
            opening = await stream.receive()
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
