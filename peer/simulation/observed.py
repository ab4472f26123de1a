"""Production's engine, replica and leader, which tell the observer what they do. What they do is left to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peer.epoch.engine import Engine
from peer.training.replica import Frozen, Replica
from protocols.gradients.codecs import Bytes
from protocols.reasons import Reason
from protocols.round import leader_actions
from protocols.round import member as member_actions
from protocols.round.member import Phase
from protocols.round.records import Candidate, Contribution, Hello, Report, SignedCommit, Tip

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer


class ObservedReplica(Replica):
    """A replica whose every write to the training state is noted."""

    process: SimulatedPeer

    def freeze(self) -> Frozen | None:
        codec, frozen, process = self.codec, super().freeze(), self.process
        if frozen is not None:
            if process.lie is not None:
                frozen = process.lie.gives(frozen, codec)
            given = (frozen.first, frozen.end, frozen.base, frozen.loss, frozen.norm)
            contribution = Contribution(process.name, process.incarnation, *given)
            process.observer.froze(process, contribution, bytes(frozen.encoded), codec)
        return frozen

    def apply(self, signed: SignedCommit, result: Bytes) -> Tip:
        process = self.process
        try:
            tip = super().apply(signed, result)
        except Exception:
            process.observer.apply_failed(process, lost=self.tip is None)
            raise
        by_round = process.engine.member.phase is Phase.APPLYING
        process.observer.applied(process, signed, bytes(result), by_round=by_round)
        return tip

    def restore(self, snapshot: bytes) -> Tip:
        tip = super().restore(snapshot)
        self.process.observer.restored(self.process, tip)
        return tip

    def forget(self) -> None:
        super().forget()
        self.process.observer.forgot(self.process)

    def reinstate(self) -> Tip | None:
        tip = super().reinstate()
        if tip is not None:
            self.process.observer.reinstated(self.process, tip)
        return tip


class ObservedEngine(Engine):
    """An engine whose decisions are noted as it carries them out."""

    process: SimulatedPeer

    def observe(self, process: SimulatedPeer) -> None:
        """Begin to tell the observer about this process."""
        self.process = process
        observer, leader = process.observer, self.leader
        reported, joined, left = leader.reported, leader.joined, leader.left

        def reporting(peer: str, report: Report, now: float) -> Any:
            observer.reported(process, peer, report)
            return reported(peer, report, now)

        def joining(peer: str, hello: Hello, now: float) -> Any:
            observer.followed(process, peer)
            return joined(peer, hello, now)

        def leaving(peer: str, reason: Reason, now: float) -> Any:
            observer.left(process, peer, reason)
            return left(peer, reason, now)

        leader.reported, leader.joined, leader.left = reporting, joining, leaving  # type: ignore[method-assign]

    def take_over(self) -> None:
        if not self.leader.active:
            self.process.observer.leading(self.process)
        super().take_over()

    def told(self, leader: Candidate, record: Any) -> None:
        self.process.observer.told(self.process, record)
        super().told(leader, record)

    async def _ask(self, peer: str) -> None:
        self.process.observer.asked(self.process, peer)
        await super()._ask(peer)

    async def _catch_up(self, reason: Reason, sound: tuple[str, ...] = ()) -> None:
        if reason is Reason.JOINED:
            self.process.observer.catching_up(self.process, reason)
        await super()._catch_up(reason, sound)

    def _act(self, action: Any) -> None:
        process, observer, phase = self.process, self.process.observer, ""
        match action:
            case member_actions.Send(_, answer):
                observer.answered(process, answer)
            case member_actions.Resume():
                observer.resumed(process)
            case member_actions.GiveUp(reason, contribution):
                observer.gave_up(process, reason, contribution, self.accumulated)
            case member_actions.CatchUp(reason):
                observer.catching_up(process, reason)
            case leader_actions.SendPlan(_, plan, absent):
                observer.planned(process, plan, dict(absent))
                phase = "planning"
            case leader_actions.Announce(commit):
                observer.announced(process, commit)
                phase = "announcing"
            case leader_actions.Reannounce(to):
                if self._replica.commit is not None:
                    observer.reannounced(process, to)
            case leader_actions.NoteFailure():
                observer.attempt_failed(process, action)
        super()._act(action)
        if phase:
            process.swarm.injector.entered(process, phase)
