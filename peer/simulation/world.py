"""Virtual time: a heap of events, one random source, and a trace that is the same, byte for byte, in every run of a seed.

In a simulation nothing else reads a clock or draws random numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

TRACE_KEPT = 40


class Owner(Protocol):
    """The process that an event happens to. Nothing happens to a dead process; a stopped one (SIGSTOP) goes on later."""

    alive: bool
    stopped_until: float

    def run_ready(self) -> None:
        """Run what the event made ready."""


Event = tuple[float, int, Owner | None, Callable[[], None]]


class ViolationError(Exception):
    """An invariant was violated."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"invariant {invariant}: {what}")
        self.invariant = invariant
        self.what = what


class ForgivenError(Exception):
    """An invariant was violated by a process that is held to none."""


class World:
    """Runs events in the order of their times. Equal times run in the order in which they were planned."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.current: Owner | None = None  # whose event runs now
        self.violation: ViolationError | None = None
        self.after: Callable[[Owner | None], None] = lambda owner: None
        self.notable: deque[str] = deque(maxlen=TRACE_KEPT)
        self._forgives = False
        self._heap: list[Event] = []
        self._order = 0
        self._digest = hashlib.sha256(f"seed {seed}".encode())

    def at(self, delay_s: float, owner: Owner | None, act: Callable[[], None]) -> None:
        """`act` happens to `owner` (None: to the world) after `delay_s` seconds."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, owner, act))

    def run_until(self, end_s: float, enough: Callable[[], bool] = lambda: False) -> None:
        while self._heap and self._heap[0][0] <= end_s and not enough():
            time_s, order, owner, act = heapq.heappop(self._heap)
            if owner is not None:
                if not owner.alive:
                    continue
                if owner.stopped_until > time_s:  # what comes in meanwhile waits, in the order in which it came
                    heapq.heappush(self._heap, (owner.stopped_until, order, owner, act))
                    continue
            self.now = time_s
            self.current = owner
            act()
            if owner is not None:
                owner.run_ready()
            self.current = None
            self.after(owner)
            if self.violation is not None:
                raise self.violation
        if not self._heap or self._heap[0][0] > end_s:
            self.now = max(self.now, end_s)

    def trace(self, text: str, *, notable: bool = False) -> None:
        self._digest.update(f"{self.now!r} {text}\n".encode())
        if notable and self.violation is None:  # what follows a violation within its event tells nothing
            self.notable.append(f"{self.now:9.3f} {text}")

    def violated(self, invariant: str, what: str) -> NoReturn:
        """Ends the simulation, also if a task of the process that was caught swallows the exception."""
        if self._forgives:
            raise ForgivenError(what)
        self.trace(f"VIOLATION {invariant}: {what}", notable=True)
        self.violation = self.violation or ViolationError(invariant, what)
        raise self.violation

    @contextlib.contextmanager
    def forgiving(self) -> Iterator[None]:
        """Around what a liar does: a violation ends this block, and nothing else."""
        self._forgives = True
        try:
            with contextlib.suppress(ForgivenError):
                yield
        finally:
            self._forgives = False

    @property
    def trace_digest(self) -> str:
        return self._digest.hexdigest()
