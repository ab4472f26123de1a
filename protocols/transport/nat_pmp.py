"""A router that forwards ports by NAT-PMP (RFC 6886): questions of up to 12 bytes to the gateway over UDP, answers up to 16."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from dataclasses import dataclass
from typing import Any

from protocols.errors import RouterError

PORT = 5351
_ADDRESS, _MAP_TCP, _ANSWER = 0, 2, 128  # the opcode of an answer is the question's plus 128
# A question is sent again after so many seconds without an answer.
_PATIENCE_S = (0.25, 0.5, 1.0)
_RESULTS = {
    1: "it speaks another version",
    2: "that is switched off",
    3: "it has no connection itself",
    4: "it has no port left",
    5: "it does not know how",
}


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes | OSError] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there."""
        self.received.put_nowait(exc if isinstance(exc, OSError) else OSError(str(exc)))


@dataclass(frozen=True)
class NatPmp:
    """The router at `host` of the home's network, which listens for NAT-PMP at `at_port`. A port_mapping.Gateway."""

    host: str
    at_port: int = PORT
    by: str = "NAT-PMP"

    async def address(self) -> str:
        (packed,) = struct.unpack("!4s", await self._ask(_ADDRESS, b"", 4))
        return str(ipaddress.IPv4Address(packed))

    async def forward(self, port: int, wished: int, lease_s: int) -> int:
        inside, outside = await self._map(port, wished, lease_s)
        if inside != port or outside == 0:
            raise RouterError(f"the router forwards port {outside} to {inside}, which nobody asked for")
        return outside

    async def forget(self, port: int, outside: int) -> None:
        await self._map(port, 0, 0)

    async def _map(self, port: int, wished: int, lease_s: int) -> tuple[int, int]:
        question = struct.pack("!HHHI", 0, port, wished, lease_s)
        inside, outside, _ = struct.unpack("!HHI", await self._ask(_MAP_TCP, question, 8))
        return inside, outside

    async def _ask(self, opcode: int, question: bytes, length: int) -> bytes:
        """What follows the head of the answer, `length` bytes. Raises RouterError."""
        loop = asyncio.get_running_loop()
        # The socket is connected, so that only what comes from the router itself is read.
        transport, datagrams = await loop.create_datagram_endpoint(_Datagrams, remote_addr=(self.host, self.at_port))
        try:
            for patience_s in _PATIENCE_S:
                transport.sendto(bytes((0, opcode)) + question)
                with contextlib.suppress(asyncio.TimeoutError):
                    return await asyncio.wait_for(_answer(datagrams.received, opcode, length), patience_s)
        finally:
            transport.close()
        raise RouterError(f"the router does not answer to NAT-PMP at {self.host}")


async def _answer(received: asyncio.Queue[bytes | OSError], opcode: int, length: int) -> bytes:
    while True:
        data = await received.get()
        if isinstance(data, OSError):
            raise RouterError(f"the router does not answer to NAT-PMP: {data.strerror}") from data
        if len(data) < 8 or data[1] != opcode + _ANSWER:
            continue
        (result,) = struct.unpack("!H", data[2:4])
        if result != 0:
            raise RouterError(f"the router forwards nothing by NAT-PMP: {_RESULTS.get(result, f'code {result}')}")
        if len(data) == 8 + length:
            return data[8:]
