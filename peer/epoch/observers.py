"""What those who watch from outside are told: how the swarm stands, and each thing that happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from protocols.committed_rate import CommittedRate
from protocols.observations import Absence, Committed, Failure, Observation, PeerView, Role, Seen, Swarm
from protocols.reasons import Reason
from protocols.round.records import Hello, SignedCommit

_log = logging.getLogger(__name__)
ANNOUNCED = 64  # commits of which a leader remembers seconds, attempts and absences


# Observations that wait for one observer. In a swarm of a thousand, so many peers may come at once.
MAX_WAITING = 1024
# A coordinator needs two, and `dugnad status` one. Each costs a view of the swarm twice a second.
MAX_OBSERVERS_OF_PEER, MAX_OBSERVERS = 4, 64


class Observer:
    """Somebody who has subscribed. `ended`: why nothing more comes."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.inbox: asyncio.Queue[Observation] = asyncio.Queue(MAX_WAITING)
        self.ended: Reason | None = None

    def end(self, reason: Reason) -> None:
        _log.warning("observer %s is told nothing more: %s", self.peer[:8], reason.value)
        self.ended = reason


class Observers:
    """Passes on what happens to everybody who has subscribed."""

    def __init__(self, swarm: Callable[[], Swarm], commits: Iterable[SignedCommit], clock: Callable[[], float]) -> None:
        """`swarm`: how it stands now. `commits`: those on record, oldest first."""
        self.swarm = swarm
        self.pace = CommittedRate(clock)
        self._commits = commits
        self._announced: deque[Committed] = deque(maxlen=ANNOUNCED)  # with what only their leader knows
        self._observers: list[Observer] = []  # the oldest first

    @contextlib.contextmanager
    def subscribe(self, peer: str) -> Iterator[Observer]:
        """`peer` observes, within. Where there are too many, the oldest makes room: it can ask again, and nobody is shut out."""
        here = [observer for observer in self._observers if observer.ended is None]
        of_peer = [observer for observer in here if observer.peer == peer]
        if len(of_peer) >= MAX_OBSERVERS_OF_PEER:
            of_peer[0].end(Reason.BUSY)
        elif len(here) >= MAX_OBSERVERS:
            here[0].end(Reason.BUSY)
        observer = Observer(peer)
        self._observers.append(observer)
        try:
            yield observer
        finally:
            self._observers.remove(observer)

    def happened(self, event: str, fields: dict[str, Any]) -> None:
        """One of the engine's events; those that outsiders need are passed on."""
        if event == "applied":
            commit = fields["signed"].commit
            self.pace.reached(commit.ballot.epoch, commit.total_samples)
            self._tell(Committed(fields["signed"]))
        elif event == "announced":
            absent = tuple(Absence(peer, reason) for peer, reason in fields["absent"])
            self._announced.append(Committed(fields["signed"], fields["seconds"], fields["attempts"], absent))
            self._tell(self._announced[-1])
        elif event == "attempt_failed":
            self._tell(Failure(fields["ballot"], fields["reason"], fields["peer"], fields["seconds"]))

    def joined(self, peer: str, hello: Hello) -> None:
        self._tell(Seen(_view(peer, hello), True))

    def left(self, peer: str, hello: Hello, reason: Reason) -> None:
        self._tell(Seen(_view(peer, hello), False, reason.value))

    def committed_after(self, epoch: int) -> list[Committed]:
        announced = {told.signed_commit.commit.digest: told for told in self._announced}
        commits = [signed for signed in self._commits if signed.commit.ballot.epoch > epoch]
        return [announced.get(signed.commit.digest, Committed(signed)) for signed in commits]

    def _tell(self, observation: Observation) -> None:
        for observer in self._observers:
            if observer.ended is None and observer.inbox.full():
                observer.end(Reason.UNREAD)
            if observer.ended is None:
                observer.inbox.put_nowait(observation)


def _view(peer: str, hello: Hello) -> PeerView:
    role: Role = "auxiliary" if hello.auxiliary else "contributor"
    return PeerView(peer, hello.name, role, hello.reachable, 0, 0, 0.0, "joining", False)
