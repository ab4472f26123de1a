"""Fetching one snapshot from many donors at once: see chunks.py for who fetches what; here are the calls around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from protocols.errors import BadMessageError, RemoteError, UnreachableError
from protocols.round.records import Candidate, Standing
from protocols.snapshot.chunks import Download, Manifest, choose
from protocols.transport.channels import Channels, translated
from protocols.transport.state_transfer import IDLE_S, Progress, unless_idle
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire, to_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

# A donor that has no snapshot at hand finishes a micro-batch, captures one and hashes it.
OFFER_S = 30.0
# Once the first donor has offered, the others have this long to offer the same; later ones may still help if they do.
GRACE_S = 1.0

DonorFailed = Callable[[str, RemoteError], None]  # (peer, what it did)


class SnapshotFetch:
    """One peer's search for state. Chunks that were verified stay for the next `run`, from whichever donors."""

    def __init__(self, channels: Channels, max_bytes: int, progress: Progress, failed: DonorFailed) -> None:
        self.download = Download()
        self._channels = channels
        self._max_bytes = max_bytes
        self._progress = progress
        self._failed = failed
        self._changed = asyncio.Event()  # replaced whenever a chunk or a donor came or went

    async def run(self, sources: Sequence[Candidate], *, best: Collection[str] = (), at_least: Standing | None = None) -> bytes:
        """A snapshot that is not lighter than `at_least`, whole, every chunk checked against its manifest.

        `best`: the peers that are furthest; what one of them offers is taken rather than what only others do. Raises the
        last donor's RemoteError when none is left; what was fetched until then stays.
        """
        problems: list[RemoteError] = [UnreachableError("no peer offers a snapshot")]
        offers: dict[str, Manifest] = {}
        chosen = asyncio.Event()

        async def serve_from(kept_state: Candidate) -> None:
            try:
                offers[kept_state.peer] = offer = await self._offer(kept_state, at_least)
                self._change()
                await chosen.wait()
                if self.download.manifest is not None and offer.digest == self.download.manifest.digest:
                    await self._pull(kept_state)
            except RemoteError as problem:
                problems.append(problem)
                self._failed(kept_state.peer, problem)
            finally:
                self.download.leave(kept_state.peer)
                self._change()

        workers = [asyncio.create_task(serve_from(kept_state)) for kept_state in sources]
        try:
            await self._first_offers(workers, offers)
            if offers:
                self.download.aim(choose(offers, set(best), self.download.manifest))
                chosen.set()
                self._told()
            while not self.download.done and not all(worker.done() for worker in workers):
                await self._changed.wait()
            for worker in workers:
                if worker.done():
                    worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if not self.download.done:
            raise problems[-1]
        return self.download.snapshot()

    # -- choosing --------------------------------------------------------------------------------------------------------------

    async def _first_offers(self, workers: Sequence[asyncio.Task[None]], offers: dict[str, Manifest]) -> None:
        """Wait until every donor has offered or failed; not much longer than for the first."""

        def undecided() -> bool:
            return len(offers) + sum(worker.done() for worker in workers) < len(workers)

        async def wait(enough: Callable[[], bool]) -> None:
            while undecided() and not enough():
                await self._changed.wait()

        await wait(lambda: bool(offers))
        try:
            await asyncio.wait_for(wait(lambda: False), GRACE_S)
        except asyncio.TimeoutError:
            return

    async def _offer(self, kept_state: Candidate, at_least: Standing | None) -> Manifest:
        whom = f"donor {kept_state.peer[:8]}"
        target = self.download.manifest
        request = pb.OfferRequest(
            digest=target.digest if target is not None else "", at_least=to_wire(at_least) if at_least is not None else None
        )
        with translated(whom):
            stub = PeerStub(self._channels.to(kept_state.peer, kept_state.address))
            reply = await stub.Offer(request, metadata=self._channels.metadata, timeout=OFFER_S)
        manifest = from_wire(Manifest, reply)
        if manifest.total_bytes > self._max_bytes:
            raise BadMessageError(f"{whom} offers a snapshot of {manifest.total_bytes} bytes, more than this model can have")
        return manifest

    # -- fetching --------------------------------------------------------------------------------------------------------------

    async def _pull(self, kept_state: Candidate) -> None:
        """Fetch what this donor is given to fetch, until nothing is missing."""
        download = self.download
        download.join(kept_state.peer)
        while not download.done:
            wanted = download.next(kept_state.peer)
            if wanted is None:
                await self._changed.wait()  # until all is there, or a donor left and what it owed is free
                continue
            await self._pull_range(kept_state, wanted.first, wanted.count)

    async def _pull_range(self, kept_state: Candidate, first: int, count: int) -> None:
        download, whom = self.download, f"donor {kept_state.peer[:8]}"
        assert download.manifest is not None
        request = pb.SnapshotRequest(digest=download.manifest.digest, first_chunk=first, chunks=count)
        stub = PeerStub(self._channels.to(kept_state.peer, kept_state.address))
        call = stub.Snapshot(request, metadata=self._channels.metadata)
        try:
            # Donors share this peer's link: each may be silent for as long as it takes to hear of all the others.
            async for part in unless_idle(call, whom, lambda: IDLE_S * max(1, download.sources)):
                await self._channels.bandwidth.down.turn(len(part.chunk.data))
                index = part.chunk.offset // download.manifest.chunk_bytes
                try:
                    fresh = download.received(kept_state.peer, index, part.chunk.data)
                except BadMessageError as error:
                    raise BadMessageError(f"{whom}: {error}") from error
                if fresh:
                    self._told()
                    self._change()
                if not download.owes(kept_state.peer):
                    return
        finally:
            call.cancel()
        if download.owes(kept_state.peer):
            raise BadMessageError(f"{whom} sent fewer chunks than it was asked for")

    def _told(self) -> None:
        if self.download.manifest is not None:
            self._progress(self.download.bytes_done, self.download.manifest.total_bytes)

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
