"""Fetching one snapshot from many donors at once: chunks.py decides who fetches what, and here are the calls around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from protocols.errors import BadMessageError, RemoteError, UnreachableError
from protocols.messages import Chunk, Manifest, OfferRequest, SnapshotRequest
from protocols.round.records import Candidate, Standing
from protocols.snapshot.chunks import Download, choose
from protocols.transport.interface import Transport, call, receive_within

Progress = Callable[[int, int], None]  # (bytes done, bytes in total)
# A transfer in which no byte comes for this long is given up, and another donor is tried.
IDLE_S = 10.0
# A donor that has no snapshot at hand finishes a micro-batch, captures one and hashes it.
OFFER_S = 30.0
# Once the first donor has offered, the others have this long to offer the same; later ones may still help if they do.
GRACE_S = 1.0
# And so long, from the first offer on, until it can be told which of their states is right.
JUDGE_S = 10.0

DonorFailed = Callable[[str, RemoteError], None]  # (peer, what it did)


class Judge(Protocol):
    """Decides which of the offered snapshots to take. `asked`: the donors that may yet offer, or did."""

    def is_enough(self, offers: Mapping[str, Manifest], asked: Collection[str]) -> bool:
        """Whether nobody else needs to be waited for."""

    async def choose(
        self, offers: Mapping[str, Manifest], asked: Collection[str], best: Collection[str], target: Manifest | None
    ) -> Manifest | None:
        """None when it cannot be told now which one is right."""


class Anybody:
    """Believes every donor: for who asks one that it trusts."""

    def is_enough(self, offers: Mapping[str, Manifest], asked: Collection[str]) -> bool:
        return bool(offers)

    async def choose(
        self, offers: Mapping[str, Manifest], asked: Collection[str], best: Collection[str], target: Manifest | None
    ) -> Manifest | None:
        return choose(offers, best, target)


class SnapshotFetch:
    """One peer's search for state. Chunks that were verified stay for the next `run`, from whichever donors."""

    def __init__(
        self, transport: Transport, max_bytes: int, progress: Progress, failed: DonorFailed, judge: Judge | None = None
    ) -> None:
        """`judge`: without one every donor is believed."""
        self._judge = judge or Anybody()
        self.download = Download()
        self._transport = transport
        self._max_bytes = max_bytes
        self._progress = progress
        self._failed = failed
        self._changed = asyncio.Event()  # replaced whenever a chunk or a donor came or went

    async def run(
        self,
        donors: Sequence[Candidate],
        *,
        best: Collection[str] = (),
        at_least: Standing | None = None,
        strictly: bool = False,
    ) -> bytes:
        """A snapshot that is not lighter than `at_least` (with `strictly`: heavier), whole, every chunk checked against its
        manifest.

        `best`: the peers that are furthest; what one of them offers is taken rather than what only others do. Raises the
        last donor's RemoteError when none is left; what was fetched until then stays.
        """
        problems: list[RemoteError] = [UnreachableError("no peer offers a snapshot")]
        offers: dict[str, Manifest] = {}
        asked = {donor.peer for donor in donors}
        chosen = asyncio.Event()

        async def serve_from(donor: Candidate) -> None:
            try:
                offers[donor.peer] = offer = await self._offer(donor, at_least, strictly)
                self._change()
                await chosen.wait()
                if self.download.manifest is not None and offer.digest == self.download.manifest.digest:
                    await self._pull(donor)
            except RemoteError as problem:
                asked.discard(donor.peer)
                problems.append(problem)
                self._failed(donor.peer, problem)
            finally:
                self.download.leave(donor.peer)
                self._change()

        workers = [asyncio.create_task(serve_from(donor)) for donor in donors]
        try:
            await self._first_offers(workers, offers, asked)
            if offers:
                target = await self._judge.choose(offers, asked, set(best), self.download.manifest)
                if target is None:
                    raise UnreachableError("the donors' states are not the same, and too few have one of them")
                self.download.aim(target)
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

    async def _first_offers(
        self, workers: Sequence[asyncio.Task[None]], offers: dict[str, Manifest], asked: Collection[str]
    ) -> None:
        """Wait until every donor has offered or failed; not much longer than until they are enough."""

        def undecided() -> bool:
            return len(offers) + sum(worker.done() for worker in workers) < len(workers)

        async def wait(enough: Callable[[], bool]) -> None:
            while undecided() and not enough():
                await self._changed.wait()

        await wait(lambda: bool(offers))
        for enough, limit_s in ((lambda: self._judge.is_enough(offers, asked), JUDGE_S), (lambda: False, GRACE_S)):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(wait(enough), limit_s)

    async def _offer(self, donor: Candidate, at_least: Standing | None, strictly: bool) -> Manifest:
        target = self.download.manifest
        request = OfferRequest(target.digest if target is not None else "", at_least, strictly)
        manifest: Manifest = await call(self._transport, donor, request, OFFER_S)
        if manifest.total_bytes > self._max_bytes:
            whom = f"donor {donor.peer[:8]}"
            raise BadMessageError(f"{whom} offers a snapshot of {manifest.total_bytes} bytes, more than this model can have")
        return manifest

    # -- fetching --------------------------------------------------------------------------------------------------------------

    async def _pull(self, donor: Candidate) -> None:
        """Fetch what this donor is given to fetch, until nothing is missing."""
        download = self.download
        download.join(donor.peer)
        while not download.done:
            wanted = download.next(donor.peer)
            if wanted is None:
                await self._changed.wait()  # until all is there, or a donor left and what it owed is free
                continue
            await self._pull_range(donor, wanted.first, wanted.count)

    async def _pull_range(self, donor: Candidate, first: int, count: int) -> None:
        download, whom = self.download, f"donor {donor.peer[:8]}"
        assert download.manifest is not None
        request = SnapshotRequest(download.manifest.digest, first, count)
        async with self._transport.open(donor, request) as stream:
            while download.owes(donor.peer):
                # Donors share this peer's line: each may be silent for as long as it takes to hear of all the others.
                chunk = await receive_within(stream, IDLE_S * max(1, download.donors))
                if not isinstance(chunk, Chunk):
                    break
                await self._transport.bandwidth.down.turn(len(chunk.data))
                try:
                    fresh = download.received(donor.peer, chunk.offset // download.manifest.chunk_bytes, chunk.data)
                except BadMessageError as error:
                    raise BadMessageError(f"{whom}: {error}") from error
                if fresh:
                    self._told()
                    self._change()
        if download.owes(donor.peer):
            raise BadMessageError(f"{whom} sent fewer chunks than it was asked for")

    def _told(self) -> None:
        if self.download.manifest is not None:
            self._progress(self.download.bytes_done, self.download.manifest.total_bytes)

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
