"""The peers that this coordinator knows of: from the DHT, or from their own announcements."""

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
        """Keep an announcement, unless a newer incarnation is known."""
        known = self._announced.get(announcement.peer)
        if known is None or announcement.incarnation >= known[1].incarnation:
            self._announced[announcement.peer] = (time.monotonic(), announcement)

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
        now = time.monotonic()
        fresh = [item for at, item in self._announced.values() if now - at < ANNOUNCEMENT_S]
        return sorted(fresh, key=lambda item: not item.auxiliary)
