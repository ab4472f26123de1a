"""The control streams of those who follow this peer, while it leads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from protocols.round.leader import Leader
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire

Outbox = asyncio.Queue[pb.LeaderMessage | None]  # None ends the stream


@dataclass(frozen=True)
class SwarmStatus:
    """What the leader's heartbeat tells of the swarm."""

    samples: int
    samples_per_second: float
    peers: int


class FollowerStreams:
    def __init__(self) -> None:
        self._outboxes: dict[str, Outbox] = {}

    def __len__(self) -> int:
        return len(self._outboxes)

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(self._outboxes)

    def open(self, peer: str) -> Outbox:
        """The outbox of a new stream; an earlier one of the same peer ends."""
        self.close(peer)
        outbox = self._outboxes[peer] = asyncio.Queue()
        return outbox

    def gone(self, peer: str, outbox: Outbox) -> bool:
        """The stream has ended; False when a newer one took its place, or all were closed."""
        if self._outboxes.get(peer) is not outbox:
            return False
        del self._outboxes[peer]
        return True

    def close(self, peer: str) -> None:
        outbox = self._outboxes.pop(peer, None)
        if outbox is not None:
            outbox.put_nowait(None)

    def close_all(self) -> None:
        for peer in self.peers:
            self.close(peer)

    def send(self, to: Iterable[str], message: pb.LeaderMessage) -> None:
        for peer in to:
            if peer in self._outboxes:
                self._outboxes[peer].put_nowait(message)

    def heartbeat(self, leader: Leader) -> SwarmStatus | None:
        """Tell everybody how the swarm stands; what they were told.

        Whoever was taken for dead has no seat: its stream ends, so that it comes again if it lives.
        """
        for peer in self.peers:
            if peer not in leader.followers:
                self.close(peer)
        if leader.tip is None:
            return None
        reports = [follower.report for follower in leader.followers.values() if follower.report is not None]
        status = SwarmStatus(leader.gathered_samples, sum(report.samples_per_second for report in reports), len(reports))
        beat = pb.Heartbeat(
            standing=to_wire(leader.tip.standing),
            samples=status.samples,
            samples_per_second=status.samples_per_second,
            peers=status.peers,
        )
        self.send(self.peers, pb.LeaderMessage(heartbeat=beat))
        return status
