"""From whom this peer can take state: those that it can ask, and client-mode peers that it can have bring it."""

from __future__ import annotations

from peer.catch_up.pushed_snapshots import PushedSnapshots
from peer.epoch.follower_streams import FollowerStreams
from protocols.round.leader import Leader
from protocols.round.records import Candidate, Standing
from protocols.round.succession import Succession
from protocols.wire import dugnad_pb2 as pb


class Sources:
    def __init__(
        self,
        me: str,
        bootstrap: tuple[Candidate, ...],
        succession: Succession,
        leader: Leader,
        desk: FollowerStreams,
        pushed_snapshots: PushedSnapshots,
    ) -> None:
        self._me = me
        self._bootstrap = bootstrap
        self._succession = succession
        self._leader = leader
        self._desk = desk
        self._pushed_snapshots = pushed_snapshots

    def reachable(self) -> list[Candidate]:
        """Peers that can be asked where they stand."""
        peers = {candidate.peer: candidate for candidate in (*self._bootstrap, *self._succession.order)}
        return [candidate for peer, candidate in peers.items() if peer != self._me]

    def hidden(self) -> list[tuple[str, Standing]]:
        """Client-mode peers that follow this peer, and where they say that they stand, the furthest first."""
        reports = [
            (peer, follower.report)
            for peer, follower in self._leader.followers.items()
            if not follower.hello.reachable and peer != self._me
        ]
        standings = [(peer, report.standing) for peer, report in reports if report is not None and report.caught_up]
        return sorted(standings, key=lambda there: (-there[1].total_samples, there[1].lineage))

    async def brought_by(self, peer: str) -> bytes:
        """The snapshot that a client-mode peer brings when it is asked to. Raises RemoteError."""
        message = pb.LeaderMessage(need_state=pb.NeedState())
        return await self._pushed_snapshots.request(peer, lambda: self._desk.send([peer], message))
