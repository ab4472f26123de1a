"""A simulated peer: what peer/epoch/engine.py, service.py and lead_link.py do around the state machines, in virtual time.

The machines are production's own; what differs is what they stand on. Where this file and peer/epoch/engine.py disagree, this
file is wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from peer.simulation.bulk import RoundTraffic
from peer.simulation.following import Following
from peer.simulation.messages import (
    Abort,
    AskRequest,
    CommitsRequest,
    Heartbeat,
    NeedState,
    OfferRequest,
    ReduceOpen,
    Refused,
    SnapshotRequest,
    UploadOpen,
    Whereabouts,
)
from peer.simulation.network import Machine, Network, Stream
from peer.simulation.observer import Observer
from peer.simulation.replica import ELEMENTS, DeviceError, Replica
from peer.simulation.seating import Seating
from peer.simulation.state_transfer import KeptState, catch_up
from peer.simulation.trainer import Trainer
from peer.simulation.uploads import PushedSnapshots
from peer.simulation.world import Later, start
from protocols.errors import BadMessageError
from protocols.gradients.codecs import CODECS
from protocols.reasons import Reason
from protocols.round import leader_actions
from protocols.round import member as member_actions
from protocols.round.leader import DETECTION_S, Leader
from protocols.round.member import Member, Phase
from protocols.round.plans import MemberPlan, member_plan_of
from protocols.round.records import Averages, Candidate, Contribution, Hello, SignedCommit, Standing, Tip
from protocols.round.succession import Succession
from protocols.round.vain_searches import VainSearches

RUN = "ab" * 32
TICK_S = 0.25
HEARTBEAT_S = 0.5
LOOK_S, EAGER_LOOK_S = 5.0, 0.5
RECORD_BYTES = 1500.0  # a plan or a commit


class SimulatedPeer:
    def __init__(
        self,
        network: Network,
        observer: Observer,
        machine: Machine,
        incarnation: int,
        *,
        genesis: Tip,
        codecs: tuple[str, ...],
        overlap: bool,
        target_batch_size: int,
        micro_batch: int,
        step_s: float,
        bootstrap: tuple[Candidate, ...],
    ) -> None:
        self.network, self.world, self.observer = network, network.world, observer
        self.machine, self.name, self.incarnation = machine, machine.name, incarnation
        self.alive, self.stopped_until, self.died_at = True, 0.0, None
        self.candidate = Candidate(self.name, f"{self.name}:1" if machine.reachable else "")
        address = self.candidate.address
        self.hello = Hello(incarnation, micro_batch == 0, address, address, self.name, machine.memory_bytes)
        self.member = Member(self.name, incarnation, overlap=overlap)
        self.succession = Succession(self.candidate)
        self.leader = Leader(
            self.candidate,
            run_digest=RUN,
            target_batch_size=target_batch_size,
            elements=ELEMENTS,
            codecs={name: CODECS[name].encoded_bytes(ELEMENTS) for name in codecs},
            max_epochs=None,
            overlap=overlap,
        )
        self.replica = Replica(self.name, incarnation, genesis, lambda state: observer.wrote(self, state), overlap=overlap)
        self.kept_state, self.pushed_snapshots, self.vain_searches = KeptState(self), PushedSnapshots(self), VainSearches()
        self.round_traffic = RoundTraffic(self)
        self.trainer = Trainer(self, micro_batch, step_s)
        self.bootstrap = bootstrap
        self.link = Following(self)
        self.desk: dict[str, Stream] = {}
        self.stranded = False
        self.seating = Seating(self)
        self.accumulated = 0
        self.at_phase: Callable[[SimulatedPeer, str], None] = lambda process, phase: None
        self.give_up: Callable[[SimulatedPeer], None] = lambda process: None
        self.look: Callable[[SimulatedPeer], list[Candidate]] = lambda process: []
        self.save: Callable[[SimulatedPeer], None] = lambda process: None
        self._encoded = b""
        self._heartbeat_at = self._tick_due = 0.0
        self._queue: deque[Any] = deque()
        self._performing = False

    died_at: float | None
    stopped_until: float

    # -- life ------------------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.machine.clock.now

    def begin(self) -> None:
        self.succession.know(self.bootstrap)
        self._start_catching_up(Reason.JOINED)
        self._tick_due = self.world.now + self.world.random.random() * TICK_S
        self.world.at(self._tick_due - self.world.now, self, self._tick)
        self.world.at(self.world.random.random() * EAGER_LOOK_S, self, self._look)

    def _tick(self) -> None:
        if self.world.now > self._tick_due and self.world.random.random() < 0.5:
            self._tick_due = self.world.now  # it was stopped: timers and what came in meanwhile take turns in either order
            self.world.at(0.0, self, self._tick)
            return
        now = self.now
        self.perform(self.leader.tick(now))
        self.perform(self.member.tick(self.round_traffic.moved_bytes, now))
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT_S
            self.report()
            if self.leader.active and self.leader.tip is not None:
                beat = Heartbeat(self.leader.tip.standing)
                for peer in list(self.desk):
                    if peer in self.leader.followers:
                        self.desk[peer].send(self, beat)
                    else:  # taken for dead: it comes again if it lives
                        self.desk.pop(peer).close(self)
        self.link.tick()
        self._tick_due = self.world.now + self.machine.clock.world_s(TICK_S)
        self.world.at(self._tick_due - self.world.now, self, self._tick)

    def _look(self) -> None:
        others = self.look(self)
        self.succession.know({candidate.peer: candidate for candidate in (*self.bootstrap, *others)}.values())
        if others:
            self.ask(self.world.random.choice(others).peer).then(self._heard_of)
        self.world.at(LOOK_S if others else EAGER_LOOK_S, self, self._look)

    def _heard_of(self, there: Whereabouts | None) -> None:
        if there is not None:
            self.heard_standing(there.standing)

    def progressed(self) -> None:
        if self.member.phase is not Phase.CATCHING_UP:
            self.accumulated = self.replica.samples
        self.report()

    @property
    def able_to_lead(self) -> bool:
        return bool(self.hello.address) and (self.member.phase is not Phase.CATCHING_UP or self.stranded)

    def heard_standing(self, theirs: Standing) -> None:
        if self.member.is_behind(theirs, self._leader_id) and self.vain_searches.worth(theirs, self.now):
            self.perform(self.member.catch_up(Reason.BEHIND))

    @property
    def _leader_id(self) -> str:
        return self.link.following.peer if self.link.following is not None else ""

    def report(self) -> None:
        report = self.member.report(
            self._leader_id,
            accumulated=self.accumulated,
            samples_per_second=self.trainer.micro_batch / self.trainer.step_s,
            step_s=self.trainer.step_s,
            moved_bytes=self.round_traffic.moved_bytes,
            upload_bytes_s=self.round_traffic.upload_bytes_s,
            download_bytes_s=self.round_traffic.download_bytes_s,
        )
        if report is None:
            return
        if self.leader.active:
            self.observer.reported(self, self.name, report)
            self.perform(self.leader.reported(self.name, report, self.now))
        else:
            self.link.send(report)

    # -- leading -----------------------------------------------------------------------------------------------------------------

    def take_over(self, me: Candidate) -> None:
        if self.leader.active or self.leader.tip is None:
            return
        self.link.following = me
        self.observer.leading(self)
        self.perform([*self.leader.take_over(self.now), *self.leader.joined(self.name, self.hello, self.now)])
        self.report()

    def step_down(self) -> None:
        if self.leader.active:
            self.perform(self.leader.step_down())
        if self.link.following is not None and self.link.following.peer == self.name:
            self.link.following = None
        for peer in list(self.desk):
            self.desk.pop(peer).close(self)

    def accept(self, stream: Stream, opening: Any) -> None:
        """A stream that another process opened here."""
        match opening:
            case Hello():
                self.seating.seat(stream, opening)
            case ReduceOpen():
                self.round_traffic.serve(stream, opening)
            case AskRequest():
                tip = self.member.tip
                if tip is None:
                    stream.send(self, Refused(Reason.NOT_CAUGHT_UP))
                else:
                    follows = self.link.following.peer if self.link.following is not None else ""
                    caught_up = self.member.phase is not Phase.CATCHING_UP
                    stream.send(self, Whereabouts(self.name, tip.standing, caught_up, follows, len(self.desk)))
                stream.close(self)
            case OfferRequest():
                self.kept_state.serve_offer(stream, opening)
            case SnapshotRequest():
                self.kept_state.serve_chunks(stream, opening)
            case UploadOpen():
                self.pushed_snapshots.receive(stream)
            case CommitsRequest(after):
                self.kept_state.serve_commits(stream, after)

    def ask(self, peer: str) -> Later:
        """Set to its Whereabouts, or to None when it does not answer in time."""
        later = Later()
        stream = self.network.dial(
            self,
            peer,
            "ask",
            AskRequest(),
            lambda answer: later.set(answer if isinstance(answer, Whereabouts) else None),
            lambda: later.set(None),
        )

        def too_late() -> None:
            if not later.done:
                stream.close(self)
                later.set(None)

        self.world.at(DETECTION_S, self, too_late)
        return later

    def _ask_for_leader(self, peer: str) -> None:
        self.observer.asked(self, peer)
        if not any(candidate.peer == peer for candidate in self.succession.order):
            return  # client mode: its report is waited for

        def answered(there: Whereabouts | None) -> None:
            if there is None:
                self.perform(self.leader.unreachable(peer, self.now))
            else:
                self.heard_standing(there.standing)
                self.perform(self.leader.answered(peer, there.follows, there.followers))

        self.ask(peer).then(answered)

    # -- actions -----------------------------------------------------------------------------------------------------------------

    def perform(self, actions: list[Any]) -> None:
        self._queue.extend(actions)
        if self._performing:
            return
        self._performing = True
        try:
            while self._queue:
                self._act(self._queue.popleft())
        finally:
            self._performing = False

    def _act(self, action: Any) -> None:
        match action:
            case member_actions.Freeze():
                self.trainer.job(self.world.random.random() * self.trainer.step_s, self._freeze)
            case member_actions.Reduce(plan, contribution):
                self.round_traffic.run(plan, contribution, self._encoded if contribution is not None else b"")
            case member_actions.StopReducing(plan_digest, _):
                self.round_traffic.stop(plan_digest)
            case member_actions.Send(to, answer):
                self.observer.answered(self, answer)
                if isinstance(answer, member_actions.Accept):
                    self.report()  # the leader checks the weight against it
                if to == self.name:
                    self.perform(self.leader.answer(self.name, answer, self.now))
                else:
                    self.link.send(answer, to)
            case member_actions.Apply(signed):
                seconds = self.world.random.uniform(0.005, 0.05) * self.trainer.slowness
                self.trainer.job(seconds, lambda: self._apply(signed))
            case member_actions.Resume(keep):
                self.observer.resumed(self)
                if not keep:
                    self.accumulated = 0
                    self.trainer.job(0.0, self.trainer.resume)
                self.report()
            case member_actions.GiveUp(reason, contribution):
                self.observer.gave_up(self, reason, contribution, self.accumulated)
            case member_actions.CatchUp(reason):
                self.trainer.job(0.0, self.trainer.pause)
                self.accumulated = 0
                self.report()
                self._start_catching_up(reason)
            case leader_actions.Ask(peers):
                for peer in peers:
                    self._ask_for_leader(peer)
            case leader_actions.SendPlan(to, plan, absent):
                self.observer.planned(self, plan, dict(absent))
                for peer in to:
                    part = member_plan_of(plan, peer)
                    self._to_members((peer,), part, partial(self.member.on_plan, part))
                self.at_phase(self, "planning")
            case leader_actions.SendAbort(to, plan_digest, reason):
                self._to_members(to, Abort(plan_digest, reason), lambda: self.member.on_abort(plan_digest, reason))
            case leader_actions.Announce(commit):
                signed = SignedCommit(commit, b"signature", b"certificate")
                self.observer.announced(self, commit)
                self._to_members((*self.desk, self.name), signed, lambda: self.member.on_commit(signed))
                self.at_phase(self, "announcing")
            case leader_actions.Reannounce(to):
                if self.replica.commit is not None:
                    self.observer.reannounced(self, to)
                    for peer in to:
                        if peer in self.desk:
                            self.desk[peer].send(self, self.replica.commit, RECORD_BYTES)
            case leader_actions.NoteFailure():
                self.observer.attempt_failed(self, action)
            case leader_actions.Yield(_):
                self.succession.silent(self.name)
            case _:
                raise AssertionError(f"unknown action {action}")

    def _to_members(self, to: tuple[str, ...], message: Any, here: Callable[[], list[Any]]) -> None:
        size = 200.0 if isinstance(message, Abort) else RECORD_BYTES
        for peer in to:
            if peer in self.desk:
                self.desk[peer].send(self, message, size)
        if self.name in to:
            self.perform(here())

    def from_leader(self, leader: str, message: Any) -> None:
        self.observer.told(self, message)
        match message:
            case Heartbeat(standing):
                self.heard_standing(standing)
            case MemberPlan():
                self.perform(self.member.on_plan(message))
            case Abort(plan_digest, reason):
                self.perform(self.member.on_abort(plan_digest, reason))
            case NeedState():
                self.pushed_snapshots.give(leader)
            case SignedCommit():
                self.perform(self.member.on_commit(message))

    # -- a round -----------------------------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        if not self.member.overlap:
            self.trainer.stop_drawing()
        frozen = self.replica.freeze()
        contribution = None
        if frozen is not None:
            contribution = Contribution(self.name, self.incarnation, frozen.first, frozen.end, frozen.base, 1.0)
            self._encoded = frozen.encoded
            self.observer.froze(self, contribution, frozen.encoded, frozen.codec)
        self.accumulated = self.replica.samples
        self.perform(self.member.frozen(contribution))

    def exchanged(self, plan: MemberPlan, averages: Averages) -> None:
        self.perform(self.member.reduced(plan.digest, averages))

    def exchange_failed(self, plan: MemberPlan, reason: Reason, member: str, reducer: str) -> None:
        self.perform(self.member.reduce_failed(plan.digest, reason, member, reducer))

    def _apply(self, signed: SignedCommit) -> None:
        try:
            held, averaged = self.round_traffic.held
            if held != signed.commit.averages:
                raise BadMessageError("the averages at hand are of another plan")
            tip = self.replica.apply(signed, averaged)
        except (BadMessageError, DeviceError):
            self.observer.apply_failed(self)
            self.perform(self.member.apply_failed())
            return
        self.advanced(signed, tip, averaged, by_round=True)
        self.perform(self.member.applied())

    def advanced(self, signed: SignedCommit, tip: Tip, averaged: bytes, *, by_round: bool = False) -> None:
        self.observer.applied(self, signed, averaged, by_round=by_round)
        self.round_traffic.committed(signed.commit.plan_digest)
        self.kept_state.keep(signed, averaged)
        self.perform(self.leader.follow(tip, signed.commit))
        self.succession.follow(tip)
        if self.member.replayed(tip):
            self.report()
        self.save(self)

    def _start_catching_up(self, reason: Reason) -> None:
        self.observer.catching_up(self, reason)
        start(catch_up(self), self)

    def caught_up(self) -> None:
        tip = self.replica.tip
        assert tip is not None
        self.perform(self.leader.follow(tip))
        self.succession.follow(tip)
        self.perform(self.member.adopted(tip))

    def gives_up(self) -> None:
        """No donor in all tries: production's peer ends here with an error, and its volunteer starts it again."""
        self.observer.ended(self, "no donor answers")
        self.give_up(self)
