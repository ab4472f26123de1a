"""Peers that cost attempts or searches: after a few in a row they are left out for a while, each time for longer (pure)."""

from __future__ import annotations

from dataclasses import dataclass

# Races and bad luck make honest members refuse or fail now and then, so the first strikes are free. Each commit that a member
# helps to takes one back.
FREE = 2
FIRST_REST_S, LONGEST_REST_S = 2.0, 600.0
MAX_REMEMBERED = 4096


@dataclass
class _Record:
    strikes: int = 0
    rests_until: float = 0.0


class Strikes:
    """Times are on the clock of `now`."""

    def __init__(self, free: int = FREE) -> None:
        self._free = free
        self._records: dict[str, _Record] = {}

    def strike(self, peer: str, now: float) -> None:
        """Take note that an attempt failed, and that `peer` had its part in it."""
        record = self._records.pop(peer, None) or _Record()
        record.strikes += 1
        if record.strikes > self._free:
            record.rests_until = now + min(FIRST_REST_S * 2 ** min(record.strikes - self._free - 1, 32), LONGEST_REST_S)
        self._records[peer] = record
        if len(self._records) > MAX_REMEMBERED:
            del self._records[next(iter(self._records))]

    def helped(self, peer: str) -> None:
        """Take note that `peer` was ready for an attempt that is committed."""
        record = self._records.get(peer)
        if record is not None:
            record.strikes -= 1
            if record.strikes <= 0:
                del self._records[peer]

    def rests(self, peer: str, now: float) -> bool:
        """Whether to plan without `peer`."""
        record = self._records.get(peer)
        return record is not None and now < record.rests_until
