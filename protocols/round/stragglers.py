"""Stragglers: peers one commit behind the leader when a batch is full, and how long the leader waits for them (pure).

A peer that catches up during a round reaches that round's parent when the round ends. So it must fetch one more commit. In a
run with overlap, or under a leader that draws alone, the next batch is full by then. The peer would find the next round begun
each time and never contribute. So the leader now and then waits for peers that are this close.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from protocols.round.member import Phase
from protocols.round.records import Report, Tip

# The leader waits in one of WAITS_EVERY epochs. It waits as long as the shorter of the last two epochs took (one of them may
# have been a pause), and MAX_WAIT_S at most. So a peer that fetches a commit in an epoch's time is level within WAITS_EVERY
# epochs. A wait is long if it takes LONG_SHARE of that time or more, with or without success. After each long wait the leader
# waits half as often, down to one of WAITS_LEAST_EVERY epochs. After a shorter wait it waits in one of WAITS_EVERY again.
# If the stragglers are more than the peers at its tip, it waits WAITS_EVERY times as often: they could do more than the round.
WAITS_EVERY, WAITS_LEAST_EVERY = 4, 64
LONG_SHARE = 0.25
MAX_WAIT_S = 300.0


class Stragglers:
    """Decides whether the leader, with a full batch, waits for peers that are one commit behind."""

    def __init__(self, applying_s: float, now: float, *, overlap: bool) -> None:
        """The leader begins to lead `now`, and does not know yet how long epochs take.

        In a run with `overlap` the leader waits `applying_s` in every epoch for peers that have yet to apply the last commit.

        If it planned without them, the samples that they drew would be lost.
        """
        self._applying_s = applying_s
        self._overlap = overlap
        self._advanced_at = now
        self._epochs_s = (0.0, 0.0)  # durations of the last two epochs
        self._full_at: float | None = None  # when this epoch's batch was full
        self._every = WAITS_EVERY
        self._was_long: bool | None = None  # whether the wait in this epoch was long; None if there was none

    def advanced(self, now: float) -> None:
        """The leader's tip has moved: the next epoch begins."""
        self._epochs_s = (self._epochs_s[1], now - self._advanced_at)
        self._advanced_at, self._full_at = now, None
        if self._was_long is not None:
            self._every = min(2 * self._every, WAITS_LEAST_EVERY) if self._was_long else WAITS_EVERY
        self._was_long = None

    def awaited(self, tip: Tip, parent: str, reports: Iterable[Report], now: float) -> bool:
        """Whether the leader, with a full batch, waits for a straggler.

        A straggler stands at `parent`, or stands at the leader's `tip` and still catches up. A peer that is not caught up, but
        does not catch up either, is about to leave and does not count.
        """
        if self._full_at is None:
            self._full_at = now
        # By lineage: the peers that still catch up, and those that are caught up.
        catching_up, there = Counter[str](), Counter[str]()
        for report in reports:
            if report.phase == Phase.CATCHING_UP.value:
                catching_up[report.standing.lineage] += 1
            elif report.caught_up:
                there[report.standing.lineage] += 1
        if self._overlap and there[parent] and now - self._advanced_at <= self._applying_s:
            return True
        close = catching_up[parent] + there[parent] + catching_up[tip.lineage]
        every = self._every // WAITS_EVERY if close > there[tip.lineage] else self._every
        waited_s, max_s = now - self._full_at, min(*self._epochs_s, MAX_WAIT_S)
        if not close or not max_s or (tip.epoch + 1) % every:
            return False
        self._was_long = waited_s >= LONG_SHARE * max_s
        return waited_s < max_s
