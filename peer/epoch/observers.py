"""What those who watch from outside are told: how the swarm stands, and each thing that happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from peer.epoch.engine import Engine
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello, SignedCommit
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire


class Observers:
    def __init__(self, averaging: Engine) -> None:
        self._engine = averaging
        self._inboxes: set[asyncio.Queue[pb.Observation]] = set()

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[pb.Observation]]:
        inbox: asyncio.Queue[pb.Observation] = asyncio.Queue()
        self._inboxes.add(inbox)
        try:
            yield inbox
        finally:
            self._inboxes.discard(inbox)

    def happened(self, event: str, fields: dict[str, Any]) -> None:
        """An event of Averaging; those that outsiders need are passed on."""
        if event == "applied":
            committed = pb.Committed(signed_commit=to_wire(fields["signed"]))
            self._tell(pb.Observation(committed=committed))
        elif event == "announced":
            committed = pb.Committed(
                signed_commit=to_wire(fields["signed"]),
                seconds=fields["seconds"],
                attempts=fields["attempts"],
                absent=[pb.Absence(peer=peer, reason=reason) for peer, reason in fields["absent"].items()],
            )
            self._tell(pb.Observation(committed=committed))
        elif event == "attempt_failed":
            failure = pb.Failure(reason=fields["reason"], peer=fields["peer"])
            failure.ballot.epoch, failure.ballot.attempt = fields["epoch"], fields["attempt"]
            self._tell(pb.Observation(failure=failure))

    def joined(self, peer: str, hello: Hello) -> None:
        self._tell(pb.Observation(seen=pb.Seen(peer=_view(peer, hello), present=True)))

    def left(self, peer: str, hello: Hello, reason: Reason) -> None:
        self._tell(pb.Observation(seen=pb.Seen(peer=_view(peer, hello), present=False, reason=reason.value)))

    def committed_after(self, epoch: int) -> list[pb.Observation]:
        missing = [signed for signed in self._engine.commits if signed.commit.ballot.epoch > epoch]
        return [pb.Observation(committed=_committed(signed)) for signed in missing]

    def swarm(self) -> pb.Observation:
        averaging = self._engine
        swarm = pb.Swarm(phase=averaging.member.phase.value, samples=averaging.status.samples)
        swarm.follows.CopyFrom(to_wire(averaging.following or Candidate("", "")))
        if averaging.member.tip is not None:
            swarm.standing.CopyFrom(to_wire(averaging.member.tip.standing))
        for peer, follower in averaging.leader.followers.items():
            view = _view(peer, follower.hello)
            view.is_leader = peer == averaging.me
            if follower.report is not None:
                view.epoch = follower.report.standing.epoch
                view.samples = follower.report.samples
                view.samples_per_second = follower.report.samples_per_second
                view.state = follower.report.phase
            swarm.peers.append(view)
        return pb.Observation(swarm=swarm)

    def _tell(self, observation: pb.Observation) -> None:
        for inbox in self._inboxes:
            inbox.put_nowait(observation)


def _committed(signed: SignedCommit) -> pb.Committed:
    return pb.Committed(signed_commit=to_wire(signed))


def _view(peer: str, hello: Hello) -> pb.PeerView:
    role = "auxiliary" if hello.auxiliary else "contributor"
    return pb.PeerView(peer=peer, name=hello.name, role=role, reachable=hello.reachable, state="joining")
