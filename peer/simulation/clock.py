"""A machine's monotonic clock: it began anywhere, runs a little wrong, and under a fault runs at another rate for a while.

It never jumps back, as CLOCK_MONOTONIC never does.
"""

from __future__ import annotations

from peer.simulation.world import World

RATE_ERROR = 0.02


class Clock:
    def __init__(self, world: World) -> None:
        self._world = world
        self._own_rate = world.random.uniform(1 - RATE_ERROR, 1 + RATE_ERROR)
        self._rate = self._own_rate
        self._read_s, self._at = world.random.uniform(0, 1e5), world.now

    @property
    def now(self) -> float:
        return self._read_s + self._rate * (self._world.now - self._at)

    def run_at(self, factor: float) -> None:
        """`factor` times its own rate from now on; with 1, right again."""
        self._read_s, self._at = self.now, self._world.now
        self._rate = factor * self._own_rate

    def world_s(self, seconds: float) -> float:
        """How long a timer of so many seconds by this clock takes, should its rate stay."""
        return seconds / self._rate
