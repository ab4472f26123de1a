"""Frames on a bulk connection, which carries shards and probes. TLS moves the bytes, or a simulation does.

A frame is a kind (1 byte), a length (4 bytes, little-endian) and as many bytes. A connection opens with HELLO and is kept for the
next request. A contribution's chunks come without frames, since both sides know their sizes.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

from protocols.errors import BadMessageError, RefusedError, UnreachableError
from protocols.messages import Refused
from protocols.reasons import Reason
from protocols.wire.convert import from_bytes, to_bytes

RECORD_BYTES = 16 << 10  # of TLS: a frame's header rides in one with the payload's beginning
_HEADER = struct.Struct("<BI")
T = TypeVar("T")


class Kind(IntEnum):
    """What a frame carries."""

    HELLO = 1  # first on every connection, once
    OPEN = 2  # a request; its answer is OPENED, AVERAGED, CHUNK..., DONE. After OPENED the contribution's chunks follow, unframed
    CHUNK = 3
    AVERAGED = 4
    DONE = 5
    REFUSED = 6  # instead of anything else; then the connection ends
    PROBE = 7  # a request: how fast is the line?
    OPENED = 8  # whoever reduces has read OPEN, at once


# A frame is never larger, so that a length alone makes nobody allocate more.
MAX_BYTES = {
    Kind.HELLO: 1 << 10,
    Kind.OPEN: 4 << 10,
    Kind.CHUNK: 512 << 10,  # the largest chunk of a shard, in fp64
    Kind.AVERAGED: 256 << 10,  # MAX_PEERS contributions
    Kind.DONE: 4 << 10,
    Kind.REFUSED: 16 << 10,
    Kind.PROBE: 1 << 10,
    Kind.OPENED: 0,
}


class FrameStream(ABC):
    """One bulk connection. One task may send while another receives.

    Raises UnreachableError when the connection breaks, BadMessageError when the other side breaks the protocol, and RefusedError
    when it says no.
    """

    peer: str  # who is at the other end, by its certificate

    @abstractmethod
    async def write(self, view: memoryview) -> None:
        """Send bytes without a frame; returns when the connection has taken them all."""

    @abstractmethod
    async def read_some(self, view: memoryview) -> int:
        """Wait for bytes and put them at the beginning of `view`; how many they were."""

    @abstractmethod
    async def drain(self) -> None:
        """Read and forget until the other side closes."""

    @abstractmethod
    def set_rate(self, bytes_s: float | None) -> None:
        """Send no faster than this from now on, where the system can; None: as fast as the line takes it."""

    @abstractmethod
    def close(self) -> None:
        """End the connection, now."""

    async def send(self, kind: Kind, payload: bytes | bytearray | memoryview = b"") -> None:
        """One frame."""
        view = memoryview(payload).cast("B")
        first = RECORD_BYTES - _HEADER.size
        await self.write(memoryview(_HEADER.pack(kind, len(view)) + view[:first]))
        if len(view) > first:
            await self.write(view[first:])

    async def send_record(self, kind: Kind, record: Any) -> None:
        await self.send(kind, to_bytes(record))

    async def header(self) -> tuple[Kind, int]:
        """The next frame's kind and length in bytes. Raises RefusedError for a refusal."""
        header = bytearray(_HEADER.size)
        await self.receive_into(memoryview(header))
        number, length = _HEADER.unpack(header)
        try:
            kind = Kind(number)
        except ValueError as error:
            raise BadMessageError(f"a frame of an unknown kind {number}") from error
        if length > MAX_BYTES[kind]:
            raise BadMessageError(f"a frame {kind.name} of {length} bytes")
        if kind is Kind.REFUSED:
            refused = await self.record(Refused, length)
            raise RefusedError(f"{self.peer[:8]} refused: {refused.sentence}", reason=refused.reason, sentence=refused.sentence)
        return kind, length

    async def record(self, kind: type[T], length: int) -> T:
        """The record that the frame of `length` bytes holds."""
        data = bytearray(length)
        await self.receive_into(memoryview(data))
        return from_bytes(kind, bytes(data))

    async def expect(self, expected: Kind, record: type[T]) -> T:
        kind, length = await self.header()
        if kind is not expected:
            raise BadMessageError(f"{kind.name} where {expected.name} belongs")
        return await self.record(record, length)

    async def receive_into(self, view: memoryview) -> None:
        """Fills `view`."""
        while view:
            view = view[await self.read_some(view) :]


async def refuse(stream: FrameStream, reason: Reason, sentence: str) -> NoReturn:
    """Say no, and end the connection once the other side has heard. Raises UnreachableError always."""
    await stream.send_record(Kind.REFUSED, Refused(reason.value, sentence))
    await stream.drain()
    raise UnreachableError(f"{stream.peer[:8]} was refused: {sentence}")
