"""From whom this peer can take state: peers that it can ask, and client-mode followers that can push theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from peer.catch_up.pushed_snapshots import PushedSnapshots
from protocols.messages import NeedState
from protocols.round.leader import Leader
from protocols.round.records import Candidate, Standing
from protocols.round.succession import Succession


class FollowerLinks(Protocol):
    """The way to this peer's followers."""

    def send(self, to: Iterable[str], record: Any) -> None: ...


class Surroundings(Protocol):
    """Whom a peer knows."""

    me: str
    succession: Succession
    leader: Leader
    pushed_snapshots: PushedSnapshots

    @property
    def followers(self) -> FollowerLinks: ...

    @property
    def banned(self) -> frozenset[str]: ...


class Sources:
    """Peers that may hold state which this peer needs."""

    def __init__(self, peer: Surroundings, bootstrap: tuple[Candidate, ...]) -> None:
        self._peer = peer
        self._bootstrap = bootstrap

    def reachable(self) -> list[Candidate]:
        """Peers that can be asked where they stand."""
        peers = {candidate.peer: candidate for candidate in (*self._bootstrap, *self._peer.succession.order)}
        return [candidate for peer, candidate in peers.items() if peer != self._peer.me and peer not in self._peer.banned]

    def candidate(self, peer: str) -> Candidate | None:
        """Where `peer` can be asked; None if it cannot."""
        return next((candidate for candidate in self.reachable() if candidate.peer == peer and candidate.address), None)

    def followers(self) -> list[tuple[str, Standing]]:
        """Where the followers of this peer, if it leads, say that they stand."""
        followers = self._peer.leader.followers.items()
        return [(peer, follower.report.standing) for peer, follower in followers if follower.report is not None]

    def hidden(self) -> list[tuple[str, Standing]]:
        """Client-mode followers, and where they say that they stand, the furthest first."""
        followers = self._peer.leader.followers.items()
        reports = [
            (peer, follower.report) for peer, follower in followers if not follower.hello.reachable and peer != self._peer.me
        ]
        standings = [(peer, report.standing) for peer, report in reports if report is not None and report.caught_up]
        return sorted(standings, key=lambda there: (-there[1].total_samples, there[1].lineage))

    async def pushed_by(self, peer: str) -> bytes:
        """The snapshot that a client-mode follower pushes when it is asked to. Raises RemoteError."""
        return await self._peer.pushed_snapshots.request(peer, lambda: self._peer.followers.send([peer], NeedState()))
