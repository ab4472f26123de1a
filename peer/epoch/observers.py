"""What this peer tells its observers: how the swarm stands, and each event that outsiders need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from peer.epoch.engine import Engine
from protocols.observations import Absence, Committed, Failure, Observation, PeerView, Seen, Swarm
from protocols.reasons import Reason
from protocols.round.records import Ballot, Hello


class Observers:
    """Everybody who watches this peer. Each has a queue of its own, so that a slow one delays nobody."""

    def __init__(self, averaging: Engine) -> None:
        self._engine = averaging
        self._inboxes: set[asyncio.Queue[Observation]] = set()

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[Observation]]:
        inbox: asyncio.Queue[Observation] = asyncio.Queue()
        self._inboxes.add(inbox)
        try:
            yield inbox
        finally:
            self._inboxes.discard(inbox)

    def happened(self, event: str, fields: dict[str, Any]) -> None:
        """Pass on an event of the engine, if outsiders need it."""
        if event == "applied":
            self._tell(Committed(fields["signed"]))
        elif event == "announced":
            absent = tuple(Absence(peer, Reason(reason)) for peer, reason in fields["absent"].items())
            self._tell(Committed(fields["signed"], fields["seconds"], fields["attempts"], absent))
        elif event == "attempt_failed":
            ballot = Ballot(fields["epoch"], fields["parent"], fields["attempt"], self._engine.me)
            self._tell(Failure(ballot, Reason(fields["reason"]), fields["peer"]))

    def joined(self, peer: str, hello: Hello) -> None:
        self._tell(Seen(_newcomer(peer, hello), present=True))

    def left(self, peer: str, hello: Hello, reason: Reason) -> None:
        self._tell(Seen(_newcomer(peer, hello), present=False, reason=reason.value))

    def committed_after(self, epoch: int) -> list[Committed]:
        """The commits after `epoch` that are still on record, oldest first."""
        return [Committed(signed) for signed in self._engine.commits if signed.commit.ballot.epoch > epoch]

    def swarm(self) -> Swarm:
        """How the swarm stands now."""
        averaging = self._engine
        tip = averaging.member.tip
        return Swarm(
            standing=tip.standing if tip is not None else None,
            samples=averaging.status.samples,
            phase=averaging.member.phase.value,
            peers=tuple(self._view(peer) for peer in averaging.leader.followers),
            follows=averaging.following,
        )

    def _view(self, peer: str) -> PeerView:
        follower = self._engine.leader.followers[peer]
        view = replace(_newcomer(peer, follower.hello), is_leader=peer == self._engine.me)
        report = follower.report
        if report is None:
            return view
        return replace(
            view,
            epoch=report.standing.epoch,
            samples=report.samples,
            samples_per_second=report.samples_per_second,
            state=report.phase,
        )

    def _tell(self, observation: Observation) -> None:
        for inbox in self._inboxes:
            inbox.put_nowait(observation)


def _newcomer(peer: str, hello: Hello) -> PeerView:
    """A peer that has said hello and has reported nothing yet."""
    return PeerView(
        peer=peer,
        name=hello.name,
        role="auxiliary" if hello.auxiliary else "contributor",
        reachable=hello.reachable,
        epoch=0,
        samples=0,
        samples_per_second=0.0,
        state="joining",
        is_leader=False,
    )
