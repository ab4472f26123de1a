"""Who follows a simulated leader: the control streams of peer/epoch/service.py, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peer.simulation.messages import NotLeader, Refused
from peer.simulation.network import Stream
from protocols.reasons import Reason
from protocols.round.records import Hello, Report

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer


class Seating:
    def __init__(self, process: SimulatedPeer) -> None:
        self._process = process
        self._left: set[str] = set()

    def seat(self, stream: Stream, hello: Hello) -> None:
        process = self._process
        peer = stream.client.machine.name
        seated = process.leader.followers.get(peer)
        if not process.leader.active:
            follows = process.link.following.peer if process.link.following is not None else ""
            stream.send(process, NotLeader(follows, process.able_to_lead))
            stream.close(process)
            return
        if seated is not None and hello.incarnation < seated.hello.incarnation:
            stream.send(process, Refused(Reason.OTHER_INCARNATION))
            stream.close(process)
            return
        earlier = process.desk.pop(peer, None)
        if earlier is not None:
            earlier.close(process)
        process.desk[peer] = stream
        stream.serve(lambda message: self._from_member(peer, message), lambda: self._unseat(peer, stream))
        process.observer.seated(process, peer)
        process.perform(process.leader.joined(peer, hello, process.now))

    def _unseat(self, peer: str, stream: Stream) -> None:
        process = self._process
        if process.desk.get(peer) is not stream:
            return
        del process.desk[peer]
        reason = Reason.LEFT if peer in self._left else Reason.CONNECTION_LOST
        self._left.discard(peer)
        process.observer.left(process, peer, reason)
        process.perform(process.leader.left(peer, reason, process.now))

    def _from_member(self, peer: str, message: Any) -> None:
        process = self._process
        process.leader.heard(peer, process.now)
        if isinstance(message, Report):
            process.observer.reported(process, peer, message)
            process.heard_standing(message.standing)
            process.perform(process.leader.reported(peer, message, process.now))
        elif message is Reason.LEFT:
            self._left.add(peer)
        else:
            process.perform(process.leader.answer(peer, message, process.now))
