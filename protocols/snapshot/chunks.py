"""The download of a snapshot in chunks: its manifest, the chunks that are here, and which donor sends which chunk (pure).

Rule 1: nothing here touches a socket, a clock, a thread or a tensor. snapshot/fetch.py and the simulator do the fetching.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from protocols.errors import BadMessageError
from protocols.messages import Manifest

# The most chunks asked of a donor at a time.
MAX_CHUNKS_A_RANGE = 64
# The most donors that send the same chunk at the end, when idle donors help slow ones.
MAX_FETCHERS = 2


@dataclass(frozen=True)
class Range:
    """Chunks [first, first + count)."""

    first: int
    count: int


class Download:
    """One download: the chunks that are here and verified, those that are missing, and the donor that owes each.

    A donor owes the chunks that were asked of it and are on their way. Chunks are kept by their digests, so chunks that a later
    target shares are not fetched again. A free donor gets a run of chunks that no donor owes. Runs are long at first and shorter
    towards the end, so that donors finish together. If no such chunk is left, it gets the tail of what another donor still owes,
    so that a slow or silent donor delays nothing.
    """

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.verified_by: Counter[str] = Counter()  # donor -> chunks of this target that it sent first
        self._chunks: dict[bytes, bytes] = {}  # SHA-256 -> chunk
        self._places: dict[bytes, list[int]] = {}  # SHA-256 -> indices of that chunk in the target; zeros may come often
        self._missing: dict[int, None] = {}  # chunk indices, ascending
        self._missing_bytes = 0
        self._owed: dict[str, list[int]] = {}  # donor -> chunks on their way from it, in order

    # -- the target ------------------------------------------------------------------------------------------------------------

    def aim(self, manifest: Manifest) -> None:
        """Make this snapshot the target. Chunks that it shares with the target before are kept, all others dropped."""
        if self.manifest is None or self.manifest.digest != manifest.digest:
            self.verified_by.clear()
        self.manifest = manifest
        self._owed.clear()
        self._places = {}
        for index, digest in enumerate(manifest.chunk_sha256):
            self._places.setdefault(digest, []).append(index)
        self._chunks = {digest: data for digest, data in self._chunks.items() if digest in self._places}
        self._missing = {i: None for i, digest in enumerate(manifest.chunk_sha256) if digest not in self._chunks}
        self._missing_bytes = sum(map(manifest.size_of, self._missing))

    def forget(self) -> None:
        """Drop the target and all chunks."""
        self.manifest = None
        self.verified_by.clear()
        self._chunks.clear()
        self._places.clear()
        self._missing.clear()
        self._missing_bytes = 0
        self._owed.clear()

    @property
    def done(self) -> bool:
        """Every chunk of the target is here."""
        return self.manifest is not None and not self._missing

    @property
    def bytes_done(self) -> int:
        return self.manifest.total_bytes - self._missing_bytes if self.manifest is not None else 0

    def snapshot(self) -> bytes:
        """The target's bytes. Only when done."""
        assert self.manifest is not None and self.done
        return b"".join(self._chunks[digest] for digest in self.manifest.chunk_sha256)

    # -- donors ----------------------------------------------------------------------------------------------------------------

    def join(self, donor: str) -> None:
        """Add a donor that holds the target."""
        self._owed.setdefault(donor, [])

    def leave(self, donor: str) -> None:
        """Remove a donor. Any donor may now send what it owed."""
        self._owed.pop(donor, None)

    @property
    def donors(self) -> int:
        """The number of donors."""
        return len(self._owed)

    def next(self, donor: str) -> Range | None:
        """The chunks to ask of `donor` next; None if there is nothing for it now. It no longer owes what it owed before."""
        self._owed[donor] = []
        share = self._fresh() or self._help()
        self._owed[donor] = share
        return Range(share[0], len(share)) if share else None

    def received(self, donor: str, index: int, data: bytes) -> bool:
        """Take in a chunk from `donor`. Returns whether it was missing until now.

        Chunks come in order, so `donor` no longer owes those before it. Raises BadMessageError if `donor` does not owe the
        chunk, or if its digest is not the manifest's.
        """
        assert self.manifest is not None
        owed = self._owed.get(donor, [])
        if index not in owed:
            raise BadMessageError(f"chunk {index} was not asked for")
        digest = self.manifest.chunk_sha256[index]
        if hashlib.sha256(data).digest() != digest:
            raise BadMessageError(f"chunk {index} has another digest than the manifest promised")
        del owed[: owed.index(index) + 1]
        if digest in self._chunks:
            return False
        self._chunks[digest] = bytes(data)
        self.verified_by[donor] += 1
        for place in self._places[digest]:
            del self._missing[place]
            self._missing_bytes -= self.manifest.size_of(place)
        return True

    def owes(self, donor: str) -> bool:
        """Whether `donor` owes a chunk that is still missing."""
        return any(index in self._missing for index in self._owed.get(donor, ()))

    # -- sharing out -------------------------------------------------------------------------------------------------------------

    def _fresh(self) -> list[int]:
        """The first run of missing chunks that no donor owes."""
        under_way = {index for owed in self._owed.values() for index in owed}
        free = [index for index in self._missing if index not in under_way]
        most = min(MAX_CHUNKS_A_RANGE, -(-len(free) // (2 * len(self._owed))))
        run = free[:1]
        for index in free[1:most]:
            if index != run[-1] + 1:
                break
            run.append(index)
        return run

    def _help(self) -> list[int]:
        """The second half of the missing chunks of the donor that owes most, without those that MAX_FETCHERS donors owe."""
        fetchers = Counter(index for owed in self._owed.values() for index in owed)
        best: list[int] = []
        for owed in self._owed.values():
            tail = [index for index in owed if index in self._missing and fetchers[index] < MAX_FETCHERS]
            if len(tail) > len(best):
                best = tail
        run = best[-1:]
        for index in reversed(best[len(best) // 2 : -1]):
            if index != run[0] - 1:
                break
            run.insert(0, index)
        return run


def choose(offers: Mapping[str, Manifest], best: Collection[str], target: Manifest | None) -> Manifest:
    """The snapshot to fetch, among those that donors offer (donor -> manifest).

    It is `target`, if a donor offers it. Else it is the snapshot that most donors share, among the offers of the `best` donors
    (all offers if no best donor makes one). At a tie the newest wins.
    """
    sharers = Counter(offer.digest for offer in offers.values())
    if target is not None and target.digest in sharers:
        return target
    eligible = [offer for donor, offer in offers.items() if donor in best] or list(offers.values())
    return max(eligible, key=lambda offer: (sharers[offer.digest], offer.epoch, offer.digest))
