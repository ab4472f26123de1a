"""Which of the snapshots that donors offer to take: one whose weights the organiser's own peer, or a majority, has too.

Donors with the same digest have the same bits. Others of the same lineage, on unlike machines, have states that differ by
rounding: some blocks of both are fetched, drawn after both have named all of theirs, and compared value by value.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from random import Random

from protocols.errors import BadMessageError, RemoteError, UnreachableError
from protocols.messages import Chunk, Manifest, SnapshotRequest
from protocols.round.records import Candidate
from protocols.snapshot.blocks import Layout, differ
from protocols.snapshot.fetch import IDLE_S
from protocols.snapshot.jury import Jury, holders
from protocols.transport.interface import Transport, receive_within

# So many blocks of parameters, and as many of what the optimizer keeps. If one parameter in four is another, 97 of 100 newcomers
# notice. What is smaller shows within a rotation of slices.
BLOCKS = 12
# Donors that captured at different epochs cannot be compared. They capture at common ones from then on, and are asked again so
# often, as is one that is alone; then the snapshot that most of the votes are behind is taken.
UNDECIDED_TRIES = 4
# A donor has so long for all of its blocks: 24 MB, from a line of 2 Mbit/s.
COMPARE_S = 120.0
_log = logging.getLogger(__name__)
Failed = Callable[[str, RemoteError], None]


class _DonorError(Exception):
    def __init__(self, peer: str, problem: RemoteError) -> None:
        super().__init__(str(problem))
        self.peer, self.problem = peer, problem


class Witnesses:
    """Compares what donors offer, through one search for state."""

    def __init__(
        self,
        transport: Transport,
        random: Random,
        failed: Failed,
        *,
        anchor: str,
        parameters: Collection[str],
        steps: Callable[[int], int],
    ) -> None:
        """`anchor`: the organiser's auxiliary peer. `parameters`: their names. `steps`: epoch -> of how many steps rounding may
        have moved two machines apart. `failed` hears of donors whose state is another than that of the others."""
        self._transport = transport
        self._random = random
        self._failed = failed
        self.anchor = anchor
        self._parameters = parameters
        self._steps = steps
        self._donors: dict[str, Candidate] = {}
        self._votes: Mapping[str, float] = {}
        self._agreed: set[str] = set()  # digests of snapshots
        self._undecided = 0
        self._spent_s: dict[str, float] = defaultdict(float)  # by donor, in this run

    def ask(self, donors: Sequence[Candidate], votes: Mapping[str, float]) -> None:
        """From now on these donors are asked. `votes`: of all others, not only of them."""
        self._donors = {donor.peer: donor for donor in donors}
        self._votes = votes
        self._spent_s.clear()

    def is_enough(self, offers: Mapping[str, Manifest], asked: Collection[str]) -> bool:
        return self._jury(asked).is_enough(offers)

    async def choose(
        self, offers: Mapping[str, Manifest], asked: Collection[str], best: Collection[str], target: Manifest | None
    ) -> Manifest | None:
        """The snapshot to take; None when it cannot be told now which one is right.

        `offers`: by donor. `asked`: those that may yet offer, or did. `best`: the peers that are furthest.
        """
        jury, offers = self._jury(asked), dict(offers)
        while offers:
            manifest = jury.favourite(offers, best, target)
            try:
                is_right = await self._is_right(manifest, offers, jury)
            except _DonorError as error:
                self._failed(error.peer, error.problem)
                del offers[error.peer]
                continue
            if is_right:
                self._agreed.add(manifest.digest)
                return manifest
            if is_right is None:
                self._undecided += 1
                return None
            for donor in holders(offers, manifest.digest):
                self._failed(donor, BadMessageError(f"donor {donor[:8]} gives another state than others have at that lineage"))
                del offers[donor]
        return None

    def _jury(self, asked: Collection[str]) -> Jury:
        return Jury(self.anchor, self._votes, asked)

    async def _is_right(self, manifest: Manifest, offers: Mapping[str, Manifest], jury: Jury) -> bool | None:
        agree = holders(offers, manifest.digest)
        if manifest.digest in self._agreed or self.anchor in agree:
            return True
        donor = self._random.choice(sorted(agree))
        if self.anchor in offers:
            return await self._same(donor, manifest, self.anchor, offers[self.anchor])
        waits = self._undecided < UNDECIDED_TRIES
        if len(offers) == 1 and waits:
            return None  # others may turn up
        disagree = set[str]()
        others = {offer.digest for offer in offers.values() if offer.lineage == manifest.lineage} - {manifest.digest}
        for digest in sorted(others, key=lambda digest: -jury.share(holders(offers, digest))):
            if jury.is_carried(agree):
                break
            same = holders(offers, digest)
            witness = self._random.choice(sorted(same))
            is_same = await self._same(donor, manifest, witness, offers[witness])
            (agree if is_same else disagree).update(same)
        return jury.verdict(agree, disagree, waits=waits)

    # -- comparing -------------------------------------------------------------------------------------------------------------

    async def _same(self, donor: str, manifest: Manifest, witness: str, other: Manifest) -> bool:
        """Whether the state that `donor` gives is that of `witness` up to rounding, as far as some blocks tell. Raises
        _DonorError."""
        if (manifest.epoch, manifest.lineage) != (other.epoch, other.lineage):
            return False
        mine, theirs = await self._layout(donor, manifest), await self._layout(witness, other)
        sizes = {manifest.total_bytes - mine.data_start, other.total_bytes - theirs.data_start}
        if not mine.fits(theirs) or len(sizes) > 1:
            _log.warning("the states of %s and %s are not of one kind", donor[:8], witness[:8])
            return False
        steps = max(1, self._steps(manifest.epoch))
        for begin, end in self._blocks(mine, manifest):
            here = await self._bytes(donor, manifest, mine.data_start + begin, mine.data_start + end)
            there = await self._bytes(witness, other, theirs.data_start + begin, theirs.data_start + end)
            if name := differ(mine, begin, here, there, names=self._parameters, steps=steps):
                _log.warning("%s and %s have different values of %s", donor[:8], witness[:8], name[:100])
                return False
        return True

    def _blocks(self, layout: Layout, manifest: Manifest) -> list[tuple[int, int]]:
        """Where some chunks, drawn at random, begin and end in the data behind the header."""
        found, missing = list[tuple[int, int]](), {True: BLOCKS, False: BLOCKS}
        count = len(manifest.chunk_sha256)
        for index in self._random.sample(range(count), count):
            begin = index * manifest.chunk_bytes - layout.data_start
            begin, end = max(0, begin), begin + manifest.size_of(index)
            if begin < end and missing[holds := layout.holds_parameters(begin, end)]:
                missing[holds] -= 1
                found.append((begin, end))
            if not any(missing.values()):
                break
        return found

    async def _layout(self, donor: str, manifest: Manifest) -> Layout:
        try:
            size = Layout.header_bytes(await self._bytes(donor, manifest, 0, min(8, manifest.total_bytes)))
            return Layout.of(await self._bytes(donor, manifest, 0, min(size, manifest.total_bytes)))
        except BadMessageError as error:
            raise _DonorError(donor, error) from error

    async def _bytes(self, donor: str, manifest: Manifest, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a donor's snapshot. Raises _DonorError."""
        first, last = begin // manifest.chunk_bytes, (end - 1) // manifest.chunk_bytes
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            chunks = await self._chunks(donor, manifest, first, last + 1 - first)
        except RemoteError as error:
            raise _DonorError(donor, error) from error
        self._spent_s[donor] += loop.time() - began
        if self._spent_s[donor] > COMPARE_S:
            raise _DonorError(donor, UnreachableError(f"donor {donor[:8]} takes too long to show its state"))
        return b"".join(chunks)[begin - first * manifest.chunk_bytes : end - first * manifest.chunk_bytes]

    async def _chunks(self, donor: str, manifest: Manifest, first: int, count: int) -> list[bytes]:
        found = list[bytes]()
        async with self._transport.open(self._donors[donor], SnapshotRequest(manifest.digest, first, count)) as stream:
            while len(found) < count:
                chunk = await receive_within(stream, IDLE_S)
                index = first + len(found)
                if not isinstance(chunk, Chunk) or sha256(chunk.data).digest() != manifest.chunk_sha256[index]:
                    raise BadMessageError(f"donor {donor[:8]}: chunk {index} is not the one that the manifest promised")
                await self._transport.bandwidth.down.turn(len(chunk.data))
                found.append(bytes(chunk.data))
        return found
