"""The reachable peers that this coordinator knows of: found in the DHT, or told by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable

from protocols.round.records import Candidate
from protocols.transport.discovery import ANNOUNCEMENT_S, Announcement

# How many peers' DHT addresses a newcomer gets besides the coordinator's own.
DISCOVERY_PEERS = 8


class KnownPeers:
    """Announcements are forgotten when they are as old as the DHT lets them grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._announced: dict[str, tuple[float, Announcement]] = {}

    def add(self, announcement: Announcement) -> None:
        """The newest incarnation stands. A client-mode peer has no address and is nobody's way to anywhere."""
        if not announcement.address:
            return
        known = self._announced.get(announcement.peer)
        if known is None or announcement.incarnation >= known[1].incarnation:
            self._announced[announcement.peer] = (self._clock(), announcement)

    def candidates(self) -> list[Candidate]:
        """Auxiliary peers first: they have the time to answer."""
        return [Candidate(item.peer, item.address) for item in self._fresh()]

    def discovery(self) -> list[str]:
        """DHT addresses: through these a newcomer also meets nodes that this coordinator's own, just started, has lost."""
        return [address for item in self._fresh()[:DISCOVERY_PEERS] for address in item.discovery[:1]]

    def is_auxiliary(self, peer: str) -> bool:
        return peer in self._announced and self._announced[peer][1].auxiliary

    def _fresh(self) -> list[Announcement]:
        now = self._clock()
        fresh = [item for at, item in self._announced.values() if now - at < ANNOUNCEMENT_S]
        return sorted(fresh, key=lambda item: not item.auxiliary)
