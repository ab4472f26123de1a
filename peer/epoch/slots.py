"""How much of one costly kind others may have done for them at a time."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from protocols.reasons import Reason
from protocols.transport.interface import refusal


class Slots:
    """`of_peer` for each peer, `total` in all."""

    def __init__(self, of_peer: int, total: int) -> None:
        self._of_peer, self._total = of_peer, total
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken(self, peer: str, what: str) -> Iterator[None]:
        """`peer` has one more, within. Raises RefusedError (busy) if that is too much."""
        if self._taken[peer] >= self._of_peer:
            raise refusal(Reason.BUSY, f"{self._of_peer} {what} for you are under way")
        if sum(self._taken.values()) >= self._total:
            raise refusal(Reason.BUSY, f"{self._total} {what} are under way")
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]
