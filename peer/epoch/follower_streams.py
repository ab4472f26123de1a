"""The streams of this peer's followers, while it leads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from protocols.messages import Heartbeat
from protocols.round.leader import Leader
from protocols.transport.interface import Stream


class FollowerStream:
    """One follower's stream; `closed` is set when the leader ends it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.closed = asyncio.Event()
        self.is_full = False  # the follower does not read what it is sent


class FollowerStreams:
    """The open streams by peer, at most one for each."""

    def __init__(self) -> None:
        self._streams: dict[str, FollowerStream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(self._streams)

    def open(self, stream: Stream) -> FollowerStream:
        """A follower came. An earlier stream of the same peer is closed."""
        self.close(stream.peer)
        self._streams[stream.peer] = follower = FollowerStream(stream)
        return follower

    def gone(self, follower: FollowerStream) -> bool:
        """This stream has ended. False when a newer one had taken its place, or this peer had closed it."""
        if self._streams.get(follower.stream.peer) is not follower:
            return False
        del self._streams[follower.stream.peer]
        return True

    def close(self, peer: str) -> None:
        follower = self._streams.pop(peer, None)
        if follower is not None:
            follower.closed.set()

    def close_all(self) -> None:
        for peer in self.peers:
            self.close(peer)

    def send(self, to: Iterable[str], record: Any) -> None:
        for peer in to:
            follower = self._streams.get(peer)
            if follower is not None and not follower.stream.post(record):
                follower.is_full = True
                follower.closed.set()  # the service tells the leader that it is gone

    def heartbeat(self, leader: Leader) -> Heartbeat | None:
        """Tell every follower how the swarm stands; what they were told.

        The stream of a peer that the leader took for dead ends, so that it comes again if it lives.
        """
        for peer in self.peers:
            if peer not in leader.followers:
                self.close(peer)
        if leader.tip is None:
            return None
        reports = [follower.report for follower in leader.followers.values() if follower.report is not None]
        speed = sum(report.samples_per_second for report in reports)
        beat = Heartbeat(leader.tip.standing, leader.gathered_samples, speed, len(reports))
        self.send(self.peers, beat)
        return beat
