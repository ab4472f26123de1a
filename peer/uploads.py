"""State that client-mode peers bring, because nobody can open a connection to them to fetch it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from protocols.errors import BadMessageError, UnreachableError
from protocols.transport.state_transfer import IDLE_S, Progress, SnapshotAssembler

# No snapshot holds more than parameters and this many numbers of 8 bytes for each of them, and a header.
_SLOTS, _HEADER_BYTES = 16, 64 << 20


def most_snapshot_bytes(elements: int) -> int:
    return _SLOTS * elements * 8 + _HEADER_BYTES


class Uploads:
    def __init__(self, max_bytes: int, progress: Progress) -> None:
        self._max_bytes = max_bytes
        self._progress = progress
        self._wanted: dict[str, asyncio.Future[bytes]] = {}
        self._moving = asyncio.Event()

    async def request(self, peer: str, ask: Callable[[], None]) -> bytes:
        """Call `ask`, which tells `peer` to give its state, and wait for it. Raises UnreachableError when nothing comes."""
        wanted: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._wanted[peer] = wanted
        ask()
        try:
            while not wanted.done():
                self._moving.clear()
                moving = asyncio.ensure_future(self._moving.wait())
                either: list[asyncio.Future[Any]] = [wanted, moving]
                done, _ = await asyncio.wait(either, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                moving.cancel()
                if not done:
                    raise UnreachableError(f"peer {peer[:8]} was asked for its state and sent nothing for {IDLE_S:.0f} s")
            return await wanted
        finally:
            del self._wanted[peer]

    async def receive(self, peer: str, parts: AsyncIterator[Any]) -> None:
        """A stream of snapshot parts from `peer`. Raises BadMessageError unless they were asked for and fit together."""
        wanted = self._wanted.get(peer)
        if wanted is None:
            raise BadMessageError("nobody asked for this state")
        assembler = SnapshotAssembler(f"peer {peer[:8]}", self._max_bytes, self._progress)
        try:
            async for part in parts:
                assembler.take(part)
                self._moving.set()
            snapshot = assembler.finish()
        except BadMessageError as error:
            if not wanted.done():
                wanted.set_exception(error)
            raise
        if not wanted.done():
            wanted.set_result(snapshot)
