"""Heavier lineages that were heard of and could not be reached (pure).

Who hears of a heavier lineage freezes its own and looks for a holder; it thaws only if none answers. Without this memory it
would freeze again at the next report of that lineage, a moment later, for ever.
"""

from __future__ import annotations

from protocols.round.records import Standing

FIRST_REST_S, LONGEST_REST_S = 2.0, 32.0
MAX_REMEMBERED = 64


class VainSearches:
    """Each lineage that was sought in vain is left alone for a while, twice as long after each further time."""

    def __init__(self) -> None:
        self._newest: Standing | None = None  # sought last
        self._resting: dict[str, tuple[float, float]] = {}  # lineage -> (left alone until, for so long)

    def worth(self, theirs: Standing, now: float) -> bool:
        """Whether to look for the holders of this lineage now. If so, it is the one sought."""
        until, _ = self._resting.get(theirs.lineage, (now, 0.0))
        if now < until:
            return False
        self._newest = theirs
        return True

    def ended(self, mine: Standing, now: float) -> tuple[Standing, float] | None:
        """The search is over, and this peer stands at `mine`. If in vain: what was sought, and for how long it is left alone."""
        vain_searches, self._newest = self._newest, None
        if vain_searches is None or not vain_searches.heavier_than(mine):
            return None
        _, rest_s = self._resting.pop(vain_searches.lineage, (now, FIRST_REST_S / 2))
        rest_s = min(2 * rest_s, LONGEST_REST_S)
        self._resting[vain_searches.lineage] = (now + rest_s, rest_s)
        if len(self._resting) > MAX_REMEMBERED:
            del self._resting[next(iter(self._resting))]
        return vain_searches, rest_s
