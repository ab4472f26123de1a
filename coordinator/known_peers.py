"""The peers that this coordinator knows of: from the DHT, or from their own announcements."""

from __future__ import annotations

import time
from collections.abc import Callable

from protocols.round.records import Candidate
from protocols.transport.announcements import ANNOUNCEMENT_S, Announcement

# How many peers' DHT addresses a newcomer gets besides the coordinator's own.
DISCOVERY_PEERS = 8
MAX_KNOWN = 4096  # peers of whom the last announcement is kept


class KnownPeers:
    """Peers by their newest announcement. It counts for as long as the DHT would keep it. After that it only tells an old one
    that somebody plays again from a new one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self.barred: frozenset[str] = frozenset()
        """Peers of whom nobody is told."""
        self._announced: dict[str, tuple[float, Announcement]] = {}  # the one heard longest ago comes first

    def add(self, announcement: Announcement) -> None:
        """Keep an announcement, unless that one or a newer of its peer is known."""
        known = self._announced.get(announcement.peer)
        if known is not None and announcement.order <= known[1].order:
            return
        self._announced.pop(announcement.peer, None)
        self._announced[announcement.peer] = (self._clock(), announcement)
        if len(self._announced) > MAX_KNOWN:
            del self._announced[next(iter(self._announced))]

    def candidates(self) -> list[Candidate]:
        """Those that can be reached, auxiliary peers first: they have the time to answer."""
        return [Candidate(item.peer, item.address) for item in self._fresh() if item.address]

    def names(self) -> dict[str, str]:
        """What peers call themselves, by their ids."""
        return {item.peer: item.name for item in self._fresh() if item.name}

    def discovery(self) -> list[str]:
        """DHT addresses of peers. After a restart our own DHT node knows nobody; these lead a newcomer to the others."""
        reachable = [item for item in self._fresh() if item.address]
        return [address for item in reachable[:DISCOVERY_PEERS] for address in item.discovery[:1]]

    def _fresh(self) -> list[Announcement]:
        now = self._clock()
        kept = [item for at, item in self._announced.values() if now - at < ANNOUNCEMENT_S]
        fresh = [item for item in kept if item.peer not in self.barred]
        return sorted(fresh, key=lambda item: not item.auxiliary)
