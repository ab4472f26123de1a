"""How fast bytes may pass: one token bucket, whatever passes through it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

# A limit lets so many seconds' worth pass at once after a pause.
BURST_S = 0.05


class RateLimiter:
    """Lets `bytes_s` bytes a second pass, in the order in which they ask."""

    def __init__(self, bytes_s: float, clock: Callable[[], float]) -> None:
        self.bytes_s = bytes_s
        self._clock = clock
        self._free_at = -math.inf

    async def turn(self, size: int) -> None:
        """Returns when `size` more bytes may pass."""
        now = self._clock()
        self._free_at = max(self._free_at, now - BURST_S) + size / self.bytes_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
