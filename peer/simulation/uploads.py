"""State that client-mode peers bring to a leader that is behind them: peer/catch_up/pushed_snapshots.py and Donors.hidden, in
virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peer.simulation.messages import NeedState, Snapshot, UploadOpen
from peer.simulation.network import Stream
from peer.simulation.replica import ELEMENTS
from peer.simulation.world import Later
from protocols.round.records import Standing

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer

IDLE_S = 10.0  # as in protocols/transport/state_transfer.py


class PushedSnapshots:
    def __init__(self, process: SimulatedPeer) -> None:
        self._process = process
        self._wanted: dict[str, Later] = {}

    def hidden(self) -> list[tuple[str, Standing]]:
        """Client-mode peers that follow this process, and where they say that they stand, the furthest first."""
        me, seats = self._process.name, self._process.leader.followers
        reports = [(peer, seat.report) for peer, seat in seats.items() if not seat.hello.reachable and peer != me]
        standings = [(peer, report.standing) for peer, report in reports if report is not None and report.caught_up]
        return sorted(standings, key=lambda there: (-there[1].total_samples, there[1].lineage))

    def request(self, peer: str) -> Later:
        """Set to the Snapshot that `peer` brings, or to None when nothing comes."""
        process = self._process
        wanted = self._wanted[peer] = Later()
        if peer in process.desk:
            process.desk[peer].send(process, NeedState())
        process.world.at(IDLE_S, process, wanted.set)
        return wanted

    def receive(self, stream: Stream) -> None:
        """A stream on which a peer brings its state; nobody takes what was not asked for."""
        wanted = self._wanted.pop(stream.client.machine.name, None)
        if wanted is None:
            stream.close(self._process)
            return

        def received(snapshot: Any) -> None:
            if isinstance(snapshot, Snapshot):
                wanted.set(snapshot)

        stream.serve(received, wanted.set)

    def give(self, to: str) -> None:
        """Bring this process's state to a leader that asked for it."""
        process = self._process

        def captured() -> None:
            snapshot = process.replica.capture()
            if snapshot is not None:
                stream = process.network.dial(process, to, "upload", UploadOpen(), lambda answer: None, lambda: None)
                stream.send(process, snapshot, 8.0 * ELEMENTS)

        process.trainer.job(0.005, captured)
