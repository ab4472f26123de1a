"""The reachable peers that this coordinator knows of: from the DHT, or from their own announcements."""

from __future__ import annotations

import time

from protocols.round.records import Candidate
from protocols.transport.discovery import ANNOUNCEMENT_S, Announcement

# How many peers' DHT addresses a newcomer gets besides the coordinator's own.
DISCOVERY_PEERS = 8


class KnownPeers:
    """Peers by their newest announcement. It is forgotten at the age at which the DHT would drop it."""

    def __init__(self) -> None:
        self._announced: dict[str, tuple[float, Announcement]] = {}

    def add(self, announcement: Announcement) -> None:
        """Keep an announcement, unless a newer incarnation is known. One without an address (client mode) is of no use."""
        if not announcement.address:
            return
        known = self._announced.get(announcement.peer)
        if known is None or announcement.incarnation >= known[1].incarnation:
            self._announced[announcement.peer] = (time.monotonic(), announcement)

    def candidates(self) -> list[Candidate]:
        """Auxiliary peers first: they have the time to answer."""
        return [Candidate(item.peer, item.address) for item in self._fresh()]

    def discovery(self) -> list[str]:
        """DHT addresses of peers. After a restart our own DHT node knows nobody; these lead a newcomer to the others."""
        return [address for item in self._fresh()[:DISCOVERY_PEERS] for address in item.discovery[:1]]

    def is_auxiliary(self, peer: str) -> bool:
        return peer in self._announced and self._announced[peer][1].auxiliary

    def _fresh(self) -> list[Announcement]:
        now = time.monotonic()
        fresh = [item for at, item in self._announced.values() if now - at < ANNOUNCEMENT_S]
        return sorted(fresh, key=lambda item: not item.auxiliary)
