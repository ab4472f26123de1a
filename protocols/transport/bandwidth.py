"""What this machine's line carries: bytes moved, rates estimated from them, and the limits that its owner set.

Everything that a peer sends or receives in bulk goes through one `Bandwidth`: shards of rounds, snapshots, commits, probes. So a
limit holds for their sum.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

# A rate is taken over windows of at least this length: shorter ones show the system's buffers rather than the line.
WINDOW_S = 1.0
# A transfer above the estimate moves the estimate by this share of the difference; one that took too long, by the other.
RISE_SHARE, FALL_SHARE = 0.5, 0.1
# Shorter transfers say little: most of their time is waiting.
TELLING_S = 1.0
LATE = 1.25  # times as long as planned
# A limit lets so many seconds' worth pass at once after a pause.
BURST_S = 0.05
MBIT_BYTES = 125_000  # in a Mbit


class RateLimiter:
    """Lets `bytes_s` bytes a second pass, in the order in which they ask: one token bucket, whatever passes through it."""

    def __init__(self, bytes_s: float, clock: Callable[[], float], burst_s: float = BURST_S) -> None:
        self.bytes_s = bytes_s
        self._clock = clock
        self._burst_s = burst_s
        self._free_at = -math.inf

    @property
    def wait_s(self) -> float:
        """Seconds until what passed before is paid for."""
        return max(0.0, self._free_at - self._clock())

    @property
    def is_rested(self) -> bool:
        """A whole burst may pass now: nothing is lost if this object is forgotten."""
        return self._free_at <= self._clock() - self._burst_s

    async def turn(self, size: int) -> None:
        """Returns when `size` more bytes may pass."""
        now = self._clock()
        self._free_at = max(self._free_at, now - self._burst_s) + size / self.bytes_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class Direction:
    """One direction of the line: up or down."""

    def __init__(self, max_bytes_s: float | None, clock: Callable[[], float]) -> None:
        """`max_bytes_s`: what the owner allows; None for no limit."""
        self.moved_bytes = 0  # since the start
        self._clock = clock
        self._limit = RateLimiter(math.inf if max_bytes_s is None else max_bytes_s, clock)
        self._estimate = 0.0
        self._began: tuple[float, int] | None = None  # of the transfer under way: when, and moved_bytes then
        self._window = (0.0, 0)
        self._peak = 0.0

    @property
    def began_at(self) -> float | None:
        """When the transfer under way began; None if there is none."""
        return self._began[0] if self._began is not None else None

    @property
    def bytes_s(self) -> float:
        """The moving estimate, within the limit; 0 before the first transfer."""
        return min(self._estimate, self._limit.bytes_s)

    def moved(self, size: int) -> None:
        """`size` bytes of a round have passed."""
        self.moved_bytes += size
        if self._began is not None and (now := self._clock()) - self._window[0] >= WINDOW_S:
            self._close(now)

    def begin(self) -> None:
        """A transfer begins, for which this direction is as busy as it can be."""
        now = self._clock()
        self._began = self._window = (now, self.moved_bytes)
        self._peak = 0.0

    def end(self, planned_s: float = 0.0) -> None:
        """The transfer is complete; it was planned to take `planned_s` seconds (0: nobody knew).

        A transfer that took as long as planned does not lower the estimate: nobody asked more of the line.
        """
        if self._began is None:
            return
        now, (began_at, began_bytes) = self._clock(), self._began
        self._began = None
        seconds, size = now - began_at, self.moved_bytes - began_bytes
        if not size or seconds <= 0:
            return
        newest = max(self._peak, size / seconds)
        if not self._estimate:
            self._estimate = newest
        elif newest > self._estimate:
            self._estimate += RISE_SHARE * (newest - self._estimate)
        elif seconds >= TELLING_S and (not planned_s or seconds > LATE * planned_s):
            self._estimate += FALL_SHARE * (newest - self._estimate)

    def give_up(self) -> None:
        """The transfer was not completed: it says nothing."""
        self._began = None

    def measured(self, bytes_s: float) -> None:
        """A probe found this rate, which replaces the estimate."""
        self._estimate = bytes_s

    async def turn(self, size: int) -> None:
        """Returns when `size` more bytes may pass."""
        await self._limit.turn(size)

    def _close(self, now: float) -> None:
        at, moved_bytes = self._window
        self._peak = max(self._peak, (self.moved_bytes - moved_bytes) / (now - at))
        self._window = (now, self.moved_bytes)


class Bandwidth:
    """Both directions of this machine's line, whoever is at the other end."""

    def __init__(
        self,
        *,
        max_upload_bytes_s: float | None = None,
        max_download_bytes_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.is_late = False  # the last round that tells took longer than planned: somebody's rates have changed
        self.up = Direction(max_upload_bytes_s, clock)
        self.down = Direction(max_download_bytes_s, clock)

    @classmethod
    def limited(cls, max_upload: float | None, max_download: float | None) -> Bandwidth:
        """By the owner of the machine, in Mbit/s; None for no limit."""
        up, down = (None if limit is None else limit * MBIT_BYTES for limit in (max_upload, max_download))
        return cls(max_upload_bytes_s=up, max_download_bytes_s=down)

    def begin(self) -> None:
        """A round's transfer begins, for which the line is as busy as it can be."""
        self.up.begin()
        self.down.begin()

    def give_up(self) -> None:
        """The transfer was not completed: it says nothing."""
        self.up.give_up()
        self.down.give_up()

    def end(self, planned_s: float = 0.0, *, sends: bool = True) -> None:
        """The transfer is complete. `sends`: it sent shards, and not only requests."""
        began_at = self.up.began_at
        if sends:
            self.up.end(planned_s)
        self.down.end(planned_s)
        if began_at is not None and planned_s >= TELLING_S:
            self.is_late = self.clock() - began_at > LATE * planned_s

    @property
    def moved_bytes(self) -> int:
        """Bytes of rounds, both ways. A round is alive while this grows."""
        return self.up.moved_bytes + self.down.moved_bytes
