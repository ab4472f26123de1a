"""The deadline of an attempt: a duration from measured rates that does not run out while bytes flow (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def doubled(attempt: int) -> int:
    """The factor by which the deadlines of a leader's n-th attempt at an epoch are longer: they double with each, up to 64."""
    return int(2 ** min(attempt - 1, 6))


class Deadline:
    """One timer for each member; the attempt is over when all of them have run out.

    A timer starts at `patience_s` seconds. Each byte that the member moves extends it by the time that the byte takes at the
    member's slowest pace. A timer never shows more than `patience_s`. So it does not run out while its member moves at that
    pace or faster, and does run out if the member moves nothing. A member that waited `patience_s` for others gets a full
    timer with its next byte.

    Members count their own bytes. So only as many count as a member can have to move, and after `longest_s` nobody's do.
    """

    def __init__(
        self,
        members: Iterable[str],
        now: float,
        patience_s: float,
        min_rates: Mapping[str, float],
        most_bytes: Mapping[str, float],
        longest_s: float,
    ) -> None:
        """`min_rates` maps members to bytes/s. For a member without one, any byte gives a full timer. `most_bytes`: that each has
        to move."""
        self._patience_s = patience_s
        self._min_rates = min_rates
        self._rest_bytes = dict(most_bytes)
        self._ends_at = now + longest_s
        self._until = dict.fromkeys(members, now + patience_s)
        self._began_at = now
        self._moved_at = dict.fromkeys(members, now)

    def moved(self, member: str, size: float, now: float) -> None:
        """Take note that `member` says that it moved `size` more bytes."""
        if size <= 0 or member not in self._until:
            return
        size = min(size, self._rest_bytes[member])
        self._rest_bytes[member] -= size
        if not size:
            return
        rate, waited_s = self._min_rates.get(member, 0.0), now - self._moved_at[member]
        latest = now + self._patience_s
        afresh = not rate or waited_s >= self._patience_s
        self._until[member] = latest if afresh else min(latest, self._until[member] + size / rate)
        self._moved_at[member] = now

    @property
    def have_moved(self) -> set[str]:
        """The members that have moved any byte in this attempt."""
        return {member for member, at in self._moved_at.items() if at > self._began_at}

    def answered(self, member: str, now: float) -> None:
        """Give `member` a full timer: it answered, which is progress without bytes."""
        if member in self._until:
            self._until[member] = now + self._patience_s

    def passed(self, now: float) -> bool:
        return now > min(max(self._until.values()), self._ends_at)

    @property
    def exaggerators(self) -> set[str]:
        """The members that say to have moved more than they have to."""
        return {member for member, rest in self._rest_bytes.items() if rest <= 0}
