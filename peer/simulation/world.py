"""Virtual time: a heap of events, one random source, and the trace that two runs of one seed have in common byte for byte.

Nothing under simulation/ but the command reads a clock or draws randomness elsewhere.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NoReturn, Protocol

TRACE_KEPT = 40


class Owner(Protocol):
    """Whom an event happens to: dead, nothing happens to it any more; stopped (SIGSTOP), it happens when it goes on."""

    alive: bool
    stopped_until: float


Event = tuple[float, int, Owner | None, Callable[[], None]]


class ViolationError(Exception):
    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"invariant {invariant}: {what}")
        self.invariant = invariant
        self.what = what


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.after: Callable[[Owner | None], None] = lambda owner: None
        self.notable: deque[str] = deque(maxlen=TRACE_KEPT)
        self._heap: list[Event] = []
        self._order = 0
        self._digest = hashlib.sha256(f"seed {seed}".encode())

    def at(self, delay_s: float, owner: Owner | None, act: Callable[[], None]) -> None:
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
            self.events += 1
            act()
            self.after(owner)
        if not self._heap or self._heap[0][0] > end_s:
            self.now = max(self.now, end_s)

    def trace(self, text: str, *, notable: bool = False) -> None:
        self._digest.update(f"{self.now!r} {text}\n".encode())
        if notable:
            self.notable.append(f"{self.now:9.3f} {text}")

    def violated(self, invariant: str, what: str) -> NoReturn:
        self.trace(f"VIOLATION {invariant}: {what}", notable=True)
        raise ViolationError(invariant, what)

    @property
    def trace_digest(self) -> str:
        return self._digest.hexdigest()


class Later:
    """What a task waits for: set once, by an event of the process whose task it is."""

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self._then: Callable[[Any], None] | None = None

    def set(self, value: Any = None) -> None:
        if self.done:
            return
        self.done, self.value = True, value
        if self._then is not None:
            self._then(value)

    def then(self, act: Callable[[Any], None]) -> None:
        if self.done:
            act(self.value)
        else:
            self._then = act


Task = Generator[Later, Any, None]


def start(task: Task, owner: Owner) -> None:
    """Run a task to its end; it goes on, with the value, when what it yielded is set. It ends with its process."""

    def go_on(value: Any) -> None:
        if not owner.alive:
            return
        try:
            waited_for = task.send(value)
        except StopIteration:
            return
        waited_for.then(go_on)

    go_on(None)
