"""Finding the leader and following it: peer/epoch/leader_link.py and the part of peer/epoch/engine.py around it, in virtual
time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peer.simulation.messages import NotLeader, Refused
from peer.simulation.network import Stream
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer

FIRST_ANSWER_S = 3 * DETECTION_S
PAUSE_S = 0.25  # between two leads that are tried


class Following:
    def __init__(self, process: SimulatedPeer) -> None:
        self._process = process
        self.following: Candidate | None = None  # the leader that answers, or this process itself
        self._stream: Stream | None = None
        self._leader = Candidate("", "")
        self._led = False
        self._limit_s = self._heard_at = self._again_at = 0.0

    def send(self, message: Any, to: str = "") -> None:
        """To the leader at the other end; dropped if there is none, or if it is not `to`."""
        if self._stream is not None and to in ("", self._leader.peer):
            self._stream.send(self._process, message)

    def leave(self) -> None:
        self.send(Reason.LEFT)

    def tick(self) -> None:
        process = self._process
        if self._stream is not None:
            if process.now - self._heard_at > self._limit_s:
                self._departed(Reason.SILENT)
            return
        acting = process.succession.acting
        if process.now < self._again_at or acting is None or process.member.tip is None:
            return
        if acting.peer != process.name:
            process.step_down()
            self._sit_at(acting)
        elif process.able_to_lead:
            process.take_over(acting)

    def _sit_at(self, leader: Candidate) -> None:
        process = self._process
        self._leader, self._led = leader, False
        self._limit_s, self._heard_at = FIRST_ANSWER_S, process.now
        stream = process.network.dial(
            process,
            leader.peer,
            "control",
            process.hello,
            lambda message: self._receive(stream, message),
            lambda: self._ended(stream),
        )
        self._stream = stream
        process.report()

    def _receive(self, stream: Stream, message: Any) -> None:
        if self._stream is not stream:
            return
        process, leader = self._process, self._leader
        self._limit_s, self._heard_at = DETECTION_S, process.now
        if isinstance(message, NotLeader):
            self._departed(Reason.NOT_THE_LEADER, message.follows, able=message.able and not message.follows)
            return
        if isinstance(message, Refused):
            self._departed(Reason.CONNECTION_LOST)
            return
        self._led = True
        self.following = leader
        process.succession.led()
        process.from_leader(leader.peer, message)
        acting = process.succession.acting
        if self._stream is stream and (acting is None or acting.peer != leader.peer):
            self._close()  # somebody else leads

    def _ended(self, stream: Stream) -> None:
        if self._stream is stream:
            self._departed(Reason.CONNECTION_LOST)

    def _close(self) -> None:
        assert self._stream is not None
        self._stream.close(self._process)
        self._stream = None
        self.following = None

    def _departed(self, reason: Reason, follows: str = "", *, able: bool = False) -> None:
        process, leader, now = self._process, self._leader, self._process.now
        self._close()
        self._again_at = now + PAUSE_S
        if self._led:
            process.observer.leader_lost(process, leader.peer, reason)
        process.succession.passed_over(leader.peer, now, reason, follows=follows, able=able)
