"""Memory of heavier lineages whose holders could not be reached (pure).

A peer that hears of a heavier lineage freezes its own and looks for a holder. It thaws only if no holder answers. Without this
memory the next report of that lineage would freeze it again a moment later, and so on for ever.
"""

from __future__ import annotations

from protocols.round.records import Standing

FIRST_REST_S, LONGEST_REST_S = 2.0, 32.0
MAX_REMEMBERED = 64


class VainSearches:
    """Decides whether to search for a heavier lineage. After each vain search for it, the rest before the next doubles."""

    def __init__(self) -> None:
        self._newest: Standing | None = None  # the lineage of the last search
        self._resting: dict[str, tuple[float, float]] = {}  # lineage -> (time at which its rest ends, seconds of that rest)

    def worth(self, theirs: Standing, now: float) -> bool:
        """Whether to search for the holders of this lineage now. If so, the search for it begins."""
        until, _ = self._resting.get(theirs.lineage, (now, 0.0))
        if now < until:
            return False
        self._newest = theirs
        return True

    def ended(self, mine: Standing, now: float) -> tuple[Standing, float] | None:
        """End the search; this peer now stands at `mine`.

        If the search was in vain, returns the lineage sought and the seconds for which it is left alone; else None.
        """
        sought, self._newest = self._newest, None
        if sought is None or not sought.heavier_than(mine):
            return None
        _, rest_s = self._resting.pop(sought.lineage, (now, FIRST_REST_S / 2))
        rest_s = min(2 * rest_s, LONGEST_REST_S)
        self._resting[sought.lineage] = (now + rest_s, rest_s)
        if len(self._resting) > MAX_REMEMBERED:
            del self._resting[next(iter(self._resting))]
        return sought, rest_s
