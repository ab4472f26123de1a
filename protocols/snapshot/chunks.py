"""A snapshot in chunks: what each is called, which of them are here, and which donor fetches which (pure).

Rule 1: nothing here touches a socket, a clock, a thread or a tensor. transport/fetching.py and the simulator do the fetching.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from protocols.errors import BadMessageError

MAX_CHUNK_BYTES = 4 << 20
# A donor is asked for at most so many chunks at a time.
MAX_CHUNKS_A_RANGE = 64
# At the end, when idle donors help out the slow ones, a chunk is on its way from at most so many.
MAX_FETCHERS = 2


@dataclass(frozen=True)
class Manifest:
    """Names a snapshot by the SHA-256 of each of its chunks of `chunk_bytes` bytes (the last may be shorter)."""

    epoch: int
    lineage: str
    total_bytes: int
    chunk_bytes: int
    chunk_sha256: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 0 < self.chunk_bytes <= MAX_CHUNK_BYTES or self.total_bytes <= 0:
            raise ValueError(f"a snapshot of {self.total_bytes} bytes in chunks of {self.chunk_bytes}")
        if len(self.chunk_sha256) != -(-self.total_bytes // self.chunk_bytes):
            raise ValueError(f"{len(self.chunk_sha256)} chunks for a snapshot of {self.total_bytes} bytes")
        if any(len(digest) != 32 for digest in self.chunk_sha256):
            raise ValueError("a chunk's digest is not of 32 bytes")

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"".join(self.chunk_sha256)).hexdigest()

    def size_of(self, index: int) -> int:
        """Bytes of chunk `index`."""
        return min(self.chunk_bytes, self.total_bytes - index * self.chunk_bytes)


@dataclass(frozen=True)
class Range:
    """Chunks [first, first + count)."""

    first: int
    count: int


class Download:
    """What of a snapshot is here and verified, what is missing, and who fetches which of it.

    Chunks are kept by their digests: those that a later target has too need not be fetched again. A donor that asks for
    work gets a run of chunks that nobody fetches, long at first and shorter towards the end, so that donors end together;
    when there is none, it is given the tail of what another donor still owes, so that a slow or silent one holds nothing up.
    """

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.verified_by: Counter[str] = Counter()  # donor -> chunks of this target that it was the first to bring
        self._chunks: dict[bytes, bytes] = {}  # by SHA-256
        self._places: dict[bytes, list[int]] = {}  # digest -> where the target has that chunk: zeros, say, come more than once
        self._missing: dict[int, None] = {}  # chunk indices, ascending
        self._missing_bytes = 0
        self._owed: dict[str, list[int]] = {}  # donor -> chunks on their way from it, in order

    # -- the target ------------------------------------------------------------------------------------------------------------

    def aim(self, manifest: Manifest) -> None:
        """Fetch this snapshot. Chunks that it shares with the one before stay; the others go."""
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
        """Begin anew: what is here is of no use."""
        self.manifest = None
        self.verified_by.clear()
        self._chunks.clear()
        self._places.clear()
        self._missing.clear()
        self._missing_bytes = 0
        self._owed.clear()

    @property
    def done(self) -> bool:
        return self.manifest is not None and not self._missing

    @property
    def bytes_done(self) -> int:
        return self.manifest.total_bytes - self._missing_bytes if self.manifest is not None else 0

    def snapshot(self) -> bytes:
        assert self.manifest is not None and self.done
        return b"".join(self._chunks[digest] for digest in self.manifest.chunk_sha256)

    # -- donors ----------------------------------------------------------------------------------------------------------------

    def join(self, kept_state: str) -> None:
        """`donor` holds the target and will fetch."""
        self._owed.setdefault(kept_state, [])

    def leave(self, kept_state: str) -> None:
        """What `donor` owed is anybody's again."""
        self._owed.pop(kept_state, None)

    @property
    def sources(self) -> int:
        return len(self._owed)

    def next(self, kept_state: str) -> Range | None:
        """What `donor` fetches next; None when there is nothing for it to do now. What it still owed is anybody's again."""
        self._owed[kept_state] = []
        share = self._fresh() or self._help()
        self._owed[kept_state] = share
        return Range(share[0], len(share)) if share else None

    def received(self, kept_state: str, index: int, data: bytes) -> bool:
        """Whether this chunk was missing until now. Raises BadMessageError when `donor` does not owe it, or it is not what the
        manifest promised. What `donor` owed before it, it has passed over, and owes no more."""
        assert self.manifest is not None
        owed = self._owed.get(kept_state, [])
        if index not in owed:
            raise BadMessageError(f"chunk {index} was not asked for")
        digest = self.manifest.chunk_sha256[index]
        if hashlib.sha256(data).digest() != digest:
            raise BadMessageError(f"chunk {index} has another digest than the manifest promised")
        del owed[: owed.index(index) + 1]
        if digest in self._chunks:
            return False
        self._chunks[digest] = bytes(data)
        self.verified_by[kept_state] += 1
        for place in self._places[digest]:
            del self._missing[place]
            self._missing_bytes -= self.manifest.size_of(place)
        return True

    def owes(self, kept_state: str) -> bool:
        """Whether anything that is still missing is on its way from `donor`."""
        return any(index in self._missing for index in self._owed.get(kept_state, ()))

    # -- sharing out -------------------------------------------------------------------------------------------------------------

    def _fresh(self) -> list[int]:
        """The first run of chunks that are on their way from nobody."""
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
        """The later half of what the donor that owes most still owes, as far as few fetch it."""
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
    """Which of the snapshots that donors offer to fetch: `target`, if it is among them. Else, of what the `best` donors
    offer (of everything, if none of them does), what most donors share, the newest of such."""
    sharers = Counter(offer.digest for offer in offers.values())
    if target is not None and target.digest in sharers:
        return target
    eligible = [offer for kept_state, offer in offers.items() if kept_state in best] or list(offers.values())
    return max(eligible, key=lambda offer: (sharers[offer.digest], offer.epoch, offer.digest))
