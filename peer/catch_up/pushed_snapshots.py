"""State that client-mode peers push to a leader: nobody can open a connection to them to fetch it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from peer.catch_up.kept_state import KeptState
from peer.environment import Environment
from protocols.errors import BadMessageError, RemoteError, UnreachableError
from protocols.messages import Chunk, Manifest, PushReply
from protocols.round.records import Candidate, Standing
from protocols.snapshot.chunks import Download
from protocols.snapshot.fetch import IDLE_S
from protocols.transport.interface import Stream

# A snapshot holds at most the parameters, this many numbers of 8 bytes for each of them, and a header.
_SLOTS, _HEADER_BYTES = 16, 64 << 20
_log = logging.getLogger(__name__)


def max_snapshot_bytes(elements: int) -> int:
    """No snapshot of a model with so many elements is larger."""
    return _SLOTS * elements * 8 + _HEADER_BYTES


async def push_state(environment: Environment, kept: KeptState, to: Candidate, at_least: Standing) -> None:
    """Push a snapshot that is not lighter than `at_least` to a leader that asked for it. If it fails, the leader asks again."""
    try:
        manifest = await kept.offer("", at_least)
        held = kept.fetched(to.peer, manifest.digest) if manifest is not None else None
        if held is None:
            return
        async with environment.transport.open(to, held.manifest) as stream:
            for chunk in _distinct_chunks(held.manifest, held.snapshot):
                await environment.transport.bandwidth.up.turn(len(chunk.data))
                await stream.send(chunk)
            await stream.receive()
    except RemoteError as error:
        _log.warning("state could not be pushed to %s: %s", to.peer[:8], error)


def chunk_at(manifest: Manifest, snapshot: bytes, index: int) -> Chunk:
    at = index * manifest.chunk_bytes
    return Chunk(at, snapshot[at : at + manifest.chunk_bytes])


def _distinct_chunks(manifest: Manifest, snapshot: bytes) -> Iterator[Chunk]:
    """Every chunk in order; those that come more than once, once."""
    first_places = {digest: index for index, digest in reversed(list(enumerate(manifest.chunk_sha256)))}
    for index in sorted(first_places.values()):
        yield chunk_at(manifest, snapshot, index)


class PushedSnapshots:
    """The snapshots that this peer has asked for, by the peer that is to push it."""

    def __init__(self, max_bytes: int, environment: Environment) -> None:
        """`max_bytes`: larger ones are refused."""
        self._max_bytes = max_bytes
        self._environment = environment
        self._wanted: dict[str, asyncio.Future[bytes]] = {}
        self._moving = asyncio.Event()

    async def request(self, peer: str, ask: Callable[[], None]) -> bytes:
        """Call `ask`, which tells `peer` to push its state, and wait for it. Raises UnreachableError when nothing comes."""
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

    async def receive(self, stream: Stream, manifest: Manifest) -> None:
        """A snapshot that `stream.peer` pushes. Raises BadMessageError unless it was asked for and its chunks fit together."""
        wanted = self._wanted.get(stream.peer)
        if wanted is None:
            raise BadMessageError("nobody asked for this state")
        try:
            snapshot = await self._snapshot(stream, manifest)
        except BadMessageError as error:
            if not wanted.done():
                wanted.set_exception(error)
            raise
        if not wanted.done():
            wanted.set_result(snapshot)
        stream.post(PushReply())

    async def _snapshot(self, stream: Stream, manifest: Manifest) -> bytes:
        peer, download, line = stream.peer, Download(), self._environment.transport.bandwidth.down
        if manifest.total_bytes > self._max_bytes:
            raise BadMessageError(f"a snapshot of {manifest.total_bytes} bytes, more than this model can have")
        download.aim(manifest)
        while not download.done:
            chunk = await stream.receive()
            if not isinstance(chunk, Chunk):
                raise BadMessageError(f"peer {peer[:8]}'s snapshot ended early, at {download.bytes_done} bytes")
            if not download.owes(peer):
                download.next(peer)
            download.received(peer, chunk.offset // manifest.chunk_bytes, chunk.data)
            self._environment.progress(download.bytes_done, manifest.total_bytes)
            self._moving.set()
            await line.turn(len(chunk.data))
            self._moving.set()
        return download.snapshot()
