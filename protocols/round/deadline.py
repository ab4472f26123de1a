"""When an attempt is given up: a duration from measured rates that does not run out while bytes flow (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def doubled(attempt: int) -> int:
    """By how much: deadlines double with each attempt, up to a point."""
    return int(2 ** min(attempt - 1, 6))


class Deadline:
    """Every member has `patience_s` seconds; the bytes that it moves buy it more, at its slowest pace, but never more than that
    from now. So nobody's time runs out while it moves at that pace or faster, and everybody's does while nothing moves.

    One that had waited for others for so long starts afresh when it moves again. The attempt is alive while some member is.
    """

    def __init__(self, members: Iterable[str], now: float, patience_s: float, slowest_paces: Mapping[str, float]) -> None:
        """`slowest_paces`: in bytes/s; for members without one any byte will do."""
        self._patience_s = patience_s
        self._paces = slowest_paces
        self._until = dict.fromkeys(members, now + patience_s)
        self._began_at = now
        self._moved_at = dict.fromkeys(members, now)

    def moved(self, member: str, size: int, now: float) -> None:
        if size <= 0 or member not in self._until:
            return
        pace, waited_s = self._paces.get(member, 0.0), now - self._moved_at[member]
        latest = now + self._patience_s
        afresh = not pace or waited_s >= self._patience_s
        self._until[member] = latest if afresh else min(latest, self._until[member] + size / pace)
        self._moved_at[member] = now

    @property
    def have_moved(self) -> set[str]:
        return {member for member, at in self._moved_at.items() if at > self._began_at}

    def answered(self, member: str, now: float) -> None:
        """A step forward that is not counted in bytes."""
        if member in self._until:
            self._until[member] = now + self._patience_s

    def passed(self, now: float) -> bool:
        return now > max(self._until.values())
