"""What most tasks need to make batches: seeds that machines share, evenly spread samples, one thread that prepares ahead."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator

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
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_AHEAD_BATCHES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._prepare, args=(make,), name="batches", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        while True:
            if self._stopping.is_set():
                raise StopIteration
            try:
                item = self._ready.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self.close()
                raise item
            return item

    def close(self) -> None:
        self._stopping.set()
        while True:  # makes room, so that a thread waiting in put sees that it shall stop
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._thread.join()

    def _prepare(self, make: Callable[[], Iterator[Batch]]) -> None:
        try:
            for batch in make():
                if not self._put(batch):
                    return
        except BaseException as error:  # noqa: BLE001
            # not lost: the consumer raises it
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
