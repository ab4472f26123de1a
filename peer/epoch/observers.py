"""What those who watch from outside are told: how the swarm stands, and each thing that happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from protocols.observations import Absence, Committed, Failure, Observation, PeerView, Role, Seen, Swarm
from protocols.reasons import Reason
from protocols.round.records import Hello, SignedCommit

ANNOUNCED = 64  # commits of which a leader remembers seconds, attempts and absences


class Observers:
    """Passes on what happens to everybody who has subscribed."""

    def __init__(self, swarm: Callable[[], Swarm], commits: Iterable[SignedCommit]) -> None:
        """`swarm`: how it stands now. `commits`: those on record, oldest first."""
        self.swarm = swarm
        self._commits = commits
        self._announced: deque[Committed] = deque(maxlen=ANNOUNCED)  # with what only their leader knows
        self._inboxes: list[asyncio.Queue[Observation]] = []

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[Observation]]:
        inbox: asyncio.Queue[Observation] = asyncio.Queue()
        self._inboxes.append(inbox)
        try:
            yield inbox
        finally:
            self._inboxes.remove(inbox)

    def happened(self, event: str, fields: dict[str, Any]) -> None:
        """One of the engine's events; those that outsiders need are passed on."""
        if event == "applied":
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
        for inbox in self._inboxes:
            inbox.put_nowait(observation)


def _view(peer: str, hello: Hello) -> PeerView:
    role: Role = "auxiliary" if hello.auxiliary else "contributor"
    return PeerView(peer, hello.name, role, hello.reachable, 0, 0, 0.0, "joining", False)
