"""How fast this peer gives its state to others: training and rounds come first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

from protocols.transport.bandwidth import Direction, RateLimiter

T = TypeVar("T")
# State goes out at this rate at most, to all who fetch together. benchmarks/README.md says what that costs.
MAX_BYTES_S = 32e6
# While this peer's round moves bytes, a stream sends one chunk this often: a life sign, on a line that the round needs.
TRICKLE_S = 5.0
LOOK_AGAIN_S = 0.05


class ServingRate:
    """Snapshots and commits go out at MAX_BYTES_S at most, and within what the owner lets the whole peer upload."""

    def __init__(self, in_round: Callable[[], bool], upload: Direction, clock: Callable[[], float]) -> None:
        self._in_round = in_round
        self._upload = upload
        self._clock = clock
        self._limit = RateLimiter(MAX_BYTES_S, clock)

    async def parts(self, parts: Iterable[T], size_bytes: int, *, waits_for_rounds: bool) -> AsyncIterator[T]:
        """Each of `parts`, of about `size_bytes` bytes, when it may go out."""
        sent_at = float("-inf")
        for part in parts:
            while waits_for_rounds and self._in_round() and self._clock() - sent_at < TRICKLE_S:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_AGAIN_S)
            await self._limit.turn(size_bytes)
            await self._upload.turn(size_bytes)
            sent_at = self._clock()
            yield part
