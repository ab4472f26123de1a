"""How much those who catch up may have of this machine and its line: training and rounds come first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
# State goes out at this rate at most, to all who fetch together. benchmarks/README.md says what that costs.
MAX_BYTES_PER_S = 32e6
# While this peer's round is moving bytes, a stream sends one chunk this often: a life sign, on a line that the round needs.
TRICKLE_S = 5.0
LOOK_AGAIN_S = 0.05


class Pace:
    def __init__(
        self,
        in_round: Callable[[], bool],
        *,
        max_bytes_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`most_bytes_s`: what the volunteer allows, if that is less than would go anyway."""
        self._in_round = in_round
        self._bytes_s = min(MAX_BYTES_PER_S, max_bytes_s or MAX_BYTES_PER_S)
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0  # when the next chunk may go, whoever fetches it

    async def parts(self, parts: Iterable[T], size_bytes: int, *, waits_for_rounds: bool) -> AsyncIterator[T]:
        """`parts`, of about `size_bytes` bytes each, when they may go out."""
        sent_at = float("-inf")
        for part in parts:
            while waits_for_rounds and self._in_round() and self._clock() - sent_at < TRICKLE_S:
                await self._sleep(LOOK_AGAIN_S)
            now = self._clock()
            turn_s = max(now, self._free_at)
            self._free_at = turn_s + size_bytes / self._bytes_s
            if turn_s > now:
                await self._sleep(turn_s - now)
            sent_at = self._clock()
            yield part
