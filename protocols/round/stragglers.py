"""Those who stand one commit behind the leader when a batch is full: how long it waits for them before it plans (pure).

Whoever catches up during a round is level with that round's parent when it ends, and must fetch one commit more. Where the next
batch is full by then (a run that overlaps, a leader that draws alone), it would find the next round begun each time, and never
come to give anything: so now and then the leader lets those who are that close come level.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocols.round.member import Phase
from protocols.round.records import Report, Tip

# In one of so many epochs, for as long as the shorter of the last two took (one may have been a pause): so whoever fetches a
# commit in an epoch's time is level in so many. After each wait of more than a quarter of that time, whatever came of it, half as
# often, down to the least.
WAITS_EVERY, WAITS_LEAST_EVERY = 4, 64
LONG_SHARE = 0.25
MAX_WAIT_S = 300.0


class Stragglers:
    def __init__(self, applying_s: float, *, overlap: bool) -> None:
        """`applying_s`: how long those who have yet to apply the last commit are waited for in a run that overlaps, in any epoch:
        what they drew would be lost, were the next planned without them."""
        self._applying_s = applying_s
        self._overlap = overlap
        self._advanced_at = 0.0
        self._epochs_s = (0.0, 0.0)  # that the last two took
        self._full_at: float | None = None
        self._every = WAITS_EVERY
        self._was_long: bool | None = None  # the wait in this epoch; None while nobody was waited for

    def begin(self, now: float) -> None:
        """This peer leads from now on: it does not know how long epochs take."""
        self._advanced_at, self._epochs_s, self._full_at = now, (0.0, 0.0), None
        self._every, self._was_long = WAITS_EVERY, None

    def advanced(self, now: float) -> None:
        """The leader stands at another tip."""
        self._epochs_s = (self._epochs_s[1], now - self._advanced_at)
        self._advanced_at, self._full_at = now, None
        if self._was_long is not None:
            self._every = min(2 * self._every, WAITS_LEAST_EVERY) if self._was_long else WAITS_EVERY
        self._was_long = None

    def awaited(self, tip: Tip, parent: str, reports: Iterable[Report], now: float) -> bool:
        """Whether somebody is waited for, who stands at `parent`, or at the leader's `tip` and is not back in the round yet. The
        batch is full."""
        if self._full_at is None:
            self._full_at = now
        catching_up, there = set(), set()  # lineages; who is there and says that it is not caught up, leaves
        for report in reports:
            if report.phase == Phase.CATCHING_UP.value:
                catching_up.add(report.standing.lineage)
            elif report.caught_up:
                there.add(report.standing.lineage)
        if self._overlap and parent in there and now - self._advanced_at <= self._applying_s:
            return True
        is_close = parent in catching_up | there or tip.lineage in catching_up
        if not is_close or (tip.epoch + 1) % self._every:
            return False
        waited_s, max_s = now - self._full_at, min(*self._epochs_s, MAX_WAIT_S)
        self._was_long = waited_s >= LONG_SHARE * max_s
        return waited_s < max_s
