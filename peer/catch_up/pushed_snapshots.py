"""State that client-mode peers bring, because nobody can open a connection to them to fetch it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from protocols.errors import BadMessageError, UnreachableError
from protocols.snapshot.chunks import Download, Manifest
from protocols.transport.bandwidth import Direction
from protocols.transport.state_transfer import IDLE_S, Progress
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire

# No snapshot holds more than parameters and this many numbers of 8 bytes for each of them, and a header.
_SLOTS, _HEADER_BYTES = 16, 64 << 20


def max_snapshot_bytes(elements: int) -> int:
    return _SLOTS * elements * 8 + _HEADER_BYTES


class PushedSnapshots:
    def __init__(self, max_bytes: int, progress: Progress, line: Direction) -> None:
        """`line`: what this machine may receive."""
        self._max_bytes = max_bytes
        self._progress = progress
        self._line = line
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
        """A stream of snapshot parts from `peer`, manifest first. Raises BadMessageError unless they were asked for and fit
        together."""
        wanted = self._wanted.get(peer)
        if wanted is None:
            raise BadMessageError("nobody asked for this state")
        download = Download()
        try:
            async for part in parts:
                self._take(download, peer, part)
                self._moving.set()
                await self._line.turn(len(part.chunk.data))
                self._moving.set()
            if not download.done:
                raise BadMessageError(f"peer {peer[:8]}'s snapshot ended early, at {download.bytes_done} bytes")
        except BadMessageError as error:
            if not wanted.done():
                wanted.set_exception(error)
            raise
        if not wanted.done():
            wanted.set_result(download.snapshot())

    def _take(self, download: Download, peer: str, part: pb.SnapshotPart) -> None:
        if part.WhichOneof("kind") == "manifest":
            manifest = from_wire(Manifest, part.manifest)
            if manifest.total_bytes > self._max_bytes:
                raise BadMessageError(f"a snapshot of {manifest.total_bytes} bytes, more than this model can have")
            download.aim(manifest)
        elif download.manifest is None:
            raise BadMessageError("a chunk came before its manifest")
        else:
            if not download.owes(peer):
                download.next(peer)
            download.received(peer, part.chunk.offset // download.manifest.chunk_bytes, part.chunk.data)
            self._progress(download.bytes_done, download.manifest.total_bytes)
