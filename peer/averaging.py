"""Drives the round's state machines over the network: events in, actions out, on the network's thread.

sources of events                                     carried out by
service.py      what members and donors are sent      _perform, one action after another
_sit_at         what this peer's lead sends           handover: freeze, apply, restore on the training thread
_ticks          time                                  reducing.exchange: the bulk traffic of a plan
Discovery       who else is there                     catch_up: state from donors
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from peer.catch_up import CatchUp
from peer.donor import Donor
from peer.handover import Handover
from peer.reducing import ReduceError, Reducing, exchange
from peer.replica import Frozen, Replica
from protocols.codecs import Codec
from protocols.errors import BadMessageError, LocalError, RefusedError, RemoteError
from protocols.reasons import Reason
from protocols.round import lead as lead_actions
from protocols.round import member as member_actions
from protocols.round.lead import DETECTION_S, Lead
from protocols.round.member import Member, Phase
from protocols.round.records import Candidate, Contribution, Hello, Plan, Report, SignedCommit, Standing, Tip
from protocols.round.succession import Succession
from protocols.signing import check_signed, sign_commit
from protocols.transport.discovery import ANNOUNCEMENT_S, Announcement, Discovery, sign_announcement
from protocols.transport.enrolling import announce_to
from protocols.transport.links import END, Links, translate
from protocols.transport.state_transfer import Progress, ask
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import answer_to_wire, from_wire, to_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

TICK_S = 0.25
HEARTBEAT_S = 0.5
# Others are looked for this often: eagerly while there are none.
DISCOVERY_S, EAGER_DISCOVERY_S = 5.0, 0.5
ANNOUNCE_S = ANNOUNCEMENT_S / 3
# The first answer of a lead includes the TLS handshake, which a busy home computer may take its time for.
FIRST_ANSWER_S = 3 * DETECTION_S

_log = logging.getLogger(__name__)
EventSink = Callable[..., None]  # (event name, **fields)


class TrainingSide(Protocol):
    """What the training thread does for the round; every method is called there, through the handover."""

    replica: Replica

    def freeze(self) -> Frozen | None:
        """Stop drawing samples; the contribution, or None when there is nothing to give."""

    def resume(self) -> None:
        """Draw samples again, from an empty accumulator."""

    def pause(self) -> None:
        """Stop drawing samples and forget those accumulated."""


@dataclass(frozen=True)
class SwarmStatus:
    """What the lead's heartbeat tells this peer of the swarm."""

    samples: int
    samples_per_second: float
    peers: int


@dataclass(frozen=True)
class Settings:
    run_digest: str
    target_batch_size: int
    max_epochs: int | None
    codec: Codec


class Averaging:
    def __init__(
        self,
        *,
        hello: Hello,
        links: Links,
        discovery: Discovery | None,
        bootstrap: tuple[Candidate, ...],
        coordinator: str,
        settings: Settings,
        training: TrainingSide,
        handover: Handover,
        events: EventSink,
        progress: Progress = lambda done, total: None,
    ) -> None:
        me = links.credentials.peer_id
        replica = training.replica
        self.me = me
        self.hello = hello
        self.links = links
        self.settings = settings
        self.donor = Donor(replica, handover)
        self.member = Member(me, hello.incarnation)
        candidate = Candidate(me, hello.address)
        self.succession = Succession(candidate)
        self.lead = Lead(
            candidate,
            run_digest=settings.run_digest,
            target_batch_size=settings.target_batch_size,
            elements=replica.elements,
            codec=settings.codec.name,
            max_epochs=settings.max_epochs,
        )
        self.status = SwarmStatus(0, 0.0, 0)
        self.following: Candidate | None = None  # the lead whose stream is open, or this peer itself
        self.seats: dict[str, asyncio.Queue[pb.LeadMessage | None]] = {}  # streams of those who follow this peer
        self.commits: list[SignedCommit] = []
        self.finished = asyncio.Event()  # the run's last epoch is committed here
        self._training = training
        self._replica = replica
        self._handover = handover
        self._discovery = discovery
        self._events = _with_plain_reasons(events)
        self._catching_up = CatchUp(self.donor, replica, handover, links, settings.codec, self._events, progress)
        self._bootstrap = bootstrap
        self._coordinator = coordinator
        self._to_lead: tuple[str, asyncio.Queue[pb.MemberMessage]] | None = None
        self._reducing: dict[tuple[str, int], Reducing] = {}
        self._planned = asyncio.Condition()
        self._exchange: asyncio.Task[None] | None = None
        self._encoded = b""
        self._averaged: tuple[str, bytearray] = ("", bytearray())
        self.samples = 0
        self.samples_per_second = self._step_s = 0.0
        self._moved_bytes = 0
        self._queue: deque[Any] = deque()
        self._performing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled. Raises what ends a peer: RefusedError by its run, UnreachableError when no donor is left."""
        self._failure = asyncio.get_running_loop().create_future()
        self._spawn(self._catch_up(Reason.BEHIND))
        for loop in (self._ticks(), self._follow(), self._discover()):
            self._spawn(loop)
        try:
            await self._failure
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def progressed(self, samples: int, samples_per_second: float, step_s: float) -> None:
        """The training thread finished a micro-batch; `samples` are accumulated now. Call on the network's thread."""
        if self.member.phase is not Phase.CATCHING_UP:
            self.samples = samples
        self.samples_per_second, self._step_s = samples_per_second, step_s
        self.report()

    async def leave(self) -> None:
        """Finish the round under way, if any, and tell the lead."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._round_over(), timeout=30)
        if self.member.tip is not None and self.samples and self.member.phase is Phase.TRAINING:
            self._events("given_up", reason=Reason.LEFT, samples=self.samples)
        if self._to_lead is not None:
            self._to_lead[1].put_nowait(pb.MemberMessage(leave=pb.Leave()))
            await asyncio.sleep(0.1)  # let it go out before the channel closes

    async def _round_over(self) -> None:
        while self.member.phase in (Phase.FROZEN, Phase.REDUCING, Phase.READY, Phase.APPLYING):  # noqa: ASYNC110  once, at the end
            await asyncio.sleep(TICK_S / 5)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    # -- time and discovery ----------------------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        heartbeat_at = 0.0
        while True:
            now = time.monotonic()
            self.perform(self.lead.tick(now))
            if now >= heartbeat_at:
                heartbeat_at = now + HEARTBEAT_S
                self.report()
                if self.lead.active:
                    self._heartbeat()
            await asyncio.sleep(TICK_S)

    def _heartbeat(self) -> None:
        tip = self.lead.tip
        if tip is None:
            return
        reports = [seat.report for seat in self.lead.seats.values() if seat.report is not None]
        self.status = SwarmStatus(self.lead.gathered_samples, sum(report.samples_per_second for report in reports), len(reports))
        message = pb.LeadMessage(
            heartbeat=pb.Heartbeat(
                standing=to_wire(tip.standing),
                samples=self.status.samples,
                samples_per_second=self.status.samples_per_second,
                peers=self.status.peers,
            )
        )
        for outbox in self.seats.values():
            outbox.put_nowait(message)

    async def _discover(self) -> None:
        if self._discovery is None:
            return
        announced_at = -ANNOUNCE_S
        while True:
            others: list[Candidate] = []
            try:
                if self.hello.address and time.monotonic() - announced_at >= ANNOUNCE_S:
                    announced_at = time.monotonic()
                    await self._announce(self._discovery)
                others = [Candidate(item.peer, item.address) for item in await self._discovery.peers() if item.peer != self.me]
                self.succession.know(others)
            except (RemoteError, LocalError) as error:
                _log.warning("discovery: %s", error)  # peers that know each other go on without it
            if others and self.member.tip is not None:
                # One at random, now and then: a heavier lineage that this peer's own lead does not know of.
                with contextlib.suppress(RemoteError):
                    self.heard_standing((await ask(self.links, random.choice(others))).standing)
            await asyncio.sleep(DISCOVERY_S if others else EAGER_DISCOVERY_S)

    async def _announce(self, discovery: Discovery) -> None:
        announcement = Announcement(
            peer=self.me,
            incarnation=self.hello.incarnation,
            address=self.hello.address,
            name=self.hello.name,
            auxiliary=self.hello.auxiliary,
            discovery=discovery.addresses,
        )
        signed = sign_announcement(announcement, self.links.credentials)
        await discovery.announce(self.me, signed)
        with contextlib.suppress(RemoteError):  # the coordinator may be away; it is not needed for training
            await announce_to(self._coordinator, self.links.credentials.authority, signed)

    # -- following a lead ------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            acting = self.succession.acting
            if acting is None or self.member.tip is None:
                await asyncio.sleep(TICK_S / 5)
            elif acting.peer != self.me:
                self._step_down()
                await self._sit_at(acting)
            elif self.member.phase is Phase.CATCHING_UP:
                await asyncio.sleep(TICK_S / 5)
            else:
                self._take_over(acting)
                await asyncio.sleep(TICK_S / 5)

    def _take_over(self, me: Candidate) -> None:
        if self.lead.active:
            return
        now = time.monotonic()
        self.following = me
        self._events("leading", epoch=self.member.tip.epoch if self.member.tip else 0)
        self.perform([*self.lead.take_over(now), *self.lead.joined(self.me, self.hello, now)])
        self.report()

    def _step_down(self) -> None:
        if self.lead.active:
            self.perform(self.lead.step_down())
        if self.following is not None and self.following.peer == self.me:
            self.following = None
        for outbox in self.seats.values():
            outbox.put_nowait(None)  # ends the stream
        self.seats.clear()

    async def _sit_at(self, lead: Candidate) -> None:
        """Follow `lead` until its stream ends or somebody else leads."""
        outbox: asyncio.Queue[pb.MemberMessage] = asyncio.Queue()
        call = PeerStub(self.links.to(lead.peer, lead.address)).Control(metadata=self.links.metadata)
        writing = asyncio.create_task(_write_all(call, outbox))
        self._to_lead = (lead.peer, outbox)
        outbox.put_nowait(pb.MemberMessage(hello=to_wire(self.hello)))
        self.report()
        reason, limit_s = Reason.CONNECTION_LOST, FIRST_ANSWER_S
        try:
            while (acting := self.succession.acting) is not None and acting.peer == lead.peer:
                message = await asyncio.wait_for(call.read(), limit_s)
                limit_s = DETECTION_S
                if message is END:
                    break
                if message.WhichOneof("kind") == "not_lead":
                    reason = Reason.NOT_THE_LEAD
                    self.succession.heard(message.not_lead.follows)
                    break
                self.following = lead
                self._from_lead(message)
            else:
                return  # the last commit names another lead
        except asyncio.TimeoutError:
            reason = Reason.SILENT
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            problem = translate(error, f"lead {lead.peer[:8]}") if isinstance(error, grpc.RpcError) else None
            if isinstance(problem, RefusedError) and problem.reason == Reason.OTHER_RUN.value:
                raise problem from error
        except BadMessageError as error:
            _log.warning("lead %s: %s", lead.peer[:8], error)
        finally:
            self.following = self._to_lead = None
            writing.cancel()
            call.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        self.succession.silent(lead.peer)
        self._events("lead_lost", peer=lead.peer, reason=reason)
        await asyncio.sleep(TICK_S)

    def _from_lead(self, message: pb.LeadMessage) -> None:
        kind = message.WhichOneof("kind")
        if kind == "heartbeat":
            beat = message.heartbeat
            self.status = SwarmStatus(beat.samples, beat.samples_per_second, beat.peers)
            self.heard_standing(from_wire(Standing, beat.standing))
        elif kind == "plan":
            plan = from_wire(Plan, message.plan)
            if plan.run_digest != self.settings.run_digest or plan.elements != self._replica.elements:
                raise BadMessageError("a plan of another run")
            self.perform(self.member.on_plan(plan))
        elif kind == "abort":
            self.perform(self.member.on_abort(message.abort.plan_digest, Reason(message.abort.reason)))
        elif kind == "signed_commit":
            signed = check_signed(from_wire(SignedCommit, message.signed_commit), self.links.credentials.authority)
            self.perform(self.member.on_commit(signed))

    def heard_standing(self, theirs: Standing) -> None:
        """A heavier lineage than this peer's exists: go there, unless a round under way leads there anyway."""
        tip = self.member.tip
        if tip is not None and self.member.phase in (Phase.TRAINING, Phase.FROZEN) and theirs.heavier_than(tip.standing):
            self.perform(self.member.catch_up(Reason.BEHIND))

    def report(self) -> None:
        tip = self.member.tip
        if tip is None:
            return
        report = Report(
            standing=tip.standing,
            samples=self.samples,
            samples_per_second=self.samples_per_second,
            step_s=self._step_s,
            promised_attempt=self.member.promised.attempt if self.member.promised is not None else 0,
            moved_bytes=self._moved_bytes,
            caught_up=self.member.phase is not Phase.CATCHING_UP,
            phase=self.member.phase.value,
        )
        if self.lead.active:
            self.perform(self.lead.reported(self.me, report, time.monotonic()))
        elif self._to_lead is not None:
            self._to_lead[1].put_nowait(pb.MemberMessage(report=to_wire(report)))

    # -- actions ---------------------------------------------------------------------------------------------------------------

    def perform(self, actions: list[Any]) -> None:
        """Carry out actions in order; those that come of them follow behind."""
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
                self._spawn(self._freeze())
            case member_actions.Reduce(plan, contribution):
                self._exchange = self._spawn(self._reduce(plan, contribution))
            case member_actions.StopReducing(plan_digest, reason):
                self._spawn(self._stop_reducing(plan_digest, reason))
            case member_actions.Send(to, answer):
                self._answer(to, answer)
            case member_actions.Apply(signed, plan_digest):
                self._spawn(self._apply(signed, plan_digest))
            case member_actions.Resume():
                self.samples = 0
                self._handover.put(self._training.resume)
                self.report()
            case member_actions.GiveUp(reason, contribution):
                samples = contribution.weight if contribution is not None else self.samples
                if samples:
                    self._events("given_up", reason=reason, samples=samples)
            case member_actions.CatchUp(reason):
                self._handover.put(self._training.pause)
                self.samples = 0
                self._spawn(self._catch_up(reason))
            case lead_actions.Ask(peers):
                for peer in peers:
                    self._spawn(self._ask(peer))
            case lead_actions.SendPlan(to, plan):
                self._events("planned", epoch=plan.ballot.epoch, attempt=plan.ballot.attempt, members=list(plan.members))
                self._to_members(to, pb.LeadMessage(plan=to_wire(plan)), lambda: self.member.on_plan(plan))
            case lead_actions.SendAbort(to, plan_digest, reason):
                message = pb.LeadMessage(abort=pb.Abort(plan_digest=plan_digest, reason=reason.value))
                self._to_members(to, message, lambda: self.member.on_abort(plan_digest, reason))
            case lead_actions.Announce(commit, seconds, attempts):
                signed = sign_commit(commit, self.links.credentials)
                self._events("announced", signed=signed, seconds=seconds, attempts=attempts)
                everybody = (*self.seats, self.me)
                self._to_members(everybody, pb.LeadMessage(signed_commit=to_wire(signed)), lambda: self.member.on_commit(signed))
            case lead_actions.NoteFailure(ballot, reason, peer):
                self._events("attempt_failed", epoch=ballot.epoch, attempt=ballot.attempt, reason=reason, peer=peer)
            case lead_actions.Yield(_):
                self.succession.silent(self.me)
            case _:
                raise AssertionError(f"unknown action {action}")

    def _to_members(self, to: tuple[str, ...], message: pb.LeadMessage, here: Callable[[], list[Any]]) -> None:
        for peer in to:
            if peer in self.seats:
                self.seats[peer].put_nowait(message)
        if self.me in to:
            self.perform(here())

    def _answer(self, to: str, answer: member_actions.Answer) -> None:
        if to == self.me:
            self.perform(self.lead.answer(self.me, answer, time.monotonic()))
        elif self._to_lead is not None and self._to_lead[0] == to:
            self._to_lead[1].put_nowait(answer_to_wire(answer))

    async def _ask(self, peer: str) -> None:
        """A member that cannot be dialled (client mode) is not answered for: the lead waits for it until detection."""
        address = next((candidate.address for candidate in self.succession.order if candidate.peer == peer), "")
        if not address:
            return
        try:
            answer = await ask(self.links, Candidate(peer, address))
        except RemoteError:
            self.perform(self.lead.unreachable(peer, time.monotonic()))
        else:
            self.heard_standing(answer.standing)
            self.perform(self.lead.answered(peer, answer.follows.peer, answer.followers))

    # -- a round ---------------------------------------------------------------------------------------------------------------

    async def _freeze(self) -> None:
        frozen = await self._handover.run(self._training.freeze)
        tip = self.member.tip
        contribution = None
        if frozen is not None and tip is not None:
            contribution = Contribution(self.me, self.hello.incarnation, frozen.first, frozen.end, tip.lineage, frozen.loss)
            self._encoded = frozen.encoded
        elif self.samples and not self._replica.gradients_finite:
            self._events("given_up", reason=Reason.NOT_FINITE, samples=self.samples)
        self.samples = contribution.weight if contribution is not None else 0
        self.report()  # before Accept: the lead checks the weight against the report
        self.perform(self.member.frozen(contribution))

    async def _reduce(self, plan: Plan, contribution: Contribution | None) -> None:
        own = {
            index: Reducing(plan, index, self.settings.codec)
            for index, shard in enumerate(plan.shards)
            if shard.reducer == self.me
        }
        async with self._planned:
            self._reducing.update({(plan.digest, index): reducing for index, reducing in own.items()})
            self._planned.notify_all()
        encoded = self._encoded if contribution is not None else b""
        try:
            result, averaged = await exchange(
                plan, contribution, encoded, own, codec=self.settings.codec, links=self.links, moved=self.moved
            )
        except ReduceError as error:
            self.perform(self.member.reduce_failed(plan.digest, error.reason, error.member, error.reducer))
            return
        self._averaged = (plan.digest, averaged)
        self.perform(self.member.reduced(result))

    async def reducing(self, plan_digest: str, shard_index: int) -> Reducing | None:
        """This peer's reduction of a shard; waits a moment, since a member's stream may overtake the lead's plan."""
        key = (plan_digest, shard_index)
        async with self._planned:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._planned.wait_for(lambda: key in self._reducing), FIRST_ANSWER_S)
        return self._reducing.get(key)

    async def _stop_reducing(self, plan_digest: str, reason: Reason) -> None:
        if self._exchange is not None and (self.member.plan is None or self.member.plan.digest == plan_digest):
            self._exchange.cancel()
        for key in [key for key in self._reducing if key[0] == plan_digest]:
            await self._reducing.pop(key).fail(reason, self.me, "the attempt is over")

    async def _apply(self, signed: SignedCommit, plan_digest: str) -> None:
        digest, averaged = self._averaged
        try:
            if digest != plan_digest:
                raise BadMessageError("the averages at hand are of another plan")
            tip = await self._handover.run(functools.partial(self._replica.apply, signed, averaged))
        except Exception:  # noqa: BLE001  whatever a failing device raises: the state is given up, and the cause is in the log
            _log.exception("applying epoch %d failed", signed.commit.ballot.epoch)
            self.perform(self.member.apply_failed())
            return
        self._advanced(signed, tip, bytes(averaged))
        self.perform(self.member.applied())

    def _advanced(self, signed: SignedCommit, tip: Tip, averaged: bytes) -> None:
        commit = signed.commit
        for key in [key for key in self._reducing if key[0] != commit.plan_digest]:
            del self._reducing[key]
        self.donor.keep(signed, averaged)
        self.commits.append(signed)
        self.lead.follow(tip, commit)
        self.succession.follow(tip)
        self._events("applied", signed=signed)
        self._finish_at(tip)

    def moved(self, size: int) -> None:
        self._moved_bytes += size

    async def _catch_up(self, reason: Reason) -> None:
        def known() -> list[Candidate]:
            peers = {candidate.peer: candidate for candidate in (*self._bootstrap, *self.succession.order)}
            return [candidate for peer, candidate in peers.items() if peer != self.me]

        tip = await self._catching_up.run(reason, known, self._advanced)
        self.lead.follow(tip)
        self.succession.follow(tip)
        self._finish_at(tip)
        self.perform(self.member.adopted(tip))

    def _finish_at(self, tip: Tip) -> None:
        if self.settings.max_epochs is not None and tip.epoch >= self.settings.max_epochs:
            self.finished.set()


async def _write_all(call: Any, outbox: asyncio.Queue[pb.MemberMessage]) -> None:
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
        while True:
            await call.write(await outbox.get())


def _with_plain_reasons(events: EventSink) -> EventSink:
    def sink(event: str, /, **fields: Any) -> None:
        events(event, **{name: value.value if isinstance(value, Reason) else value for name, value in fields.items()})

    return sink
