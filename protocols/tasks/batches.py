"""What most tasks need to make batches: seeds that machines share, evenly spread samples, one thread that prepares ahead."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from protocols.tasks.base import Batch, Batches

__all__ = ["Prefetched", "seed_of", "spread"]

_AHEAD_BATCHES = 4


def seed_of(*parts: object) -> int:
    """A 63-bit seed, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` indices spread evenly over range(count); all of them when None or when there are fewer."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


class Prefetched(Batches):
    """Makes batches in one background thread, a few ahead. Fault of the maker: raised at the next `next`."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._source = self._thread.submit(make)
        self._ready = deque(self._thread.submit(self._prepare) for _ in range(_AHEAD_BATCHES))

    def __next__(self) -> Batch:
        if not self._ready:
            raise StopIteration
        try:
            batch = self._ready.popleft().result()
        except BaseException:
            self.close()
            raise
        self._ready.append(self._thread.submit(self._prepare))
        return batch

    def close(self) -> None:
        self._ready.clear()
        self._thread.shutdown(cancel_futures=True)

    def _prepare(self) -> Batch:
        return next(self._source.result())
