"""Drives the round's state machines over the network: events in, actions out, on the network's thread.

events come from                                      actions are carried out by
- service.py: what members and observers send         - perform: one after another, in order
- following.py: what this peer's lead sends           - handover: freeze, apply, restore on the training thread
- neighbours.py: who else is there                    - exchanges.py: the bulk traffic of a plan
- _ticks: time                                        - catch_up.py: state from donors
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from peer.catch_up.catch_up import CatchUp
from peer.catch_up.kept_state import KeptState
from peer.catch_up.lost_forks import LostForks
from peer.catch_up.pushed_snapshots import PushedSnapshots, max_snapshot_bytes
from peer.catch_up.sources import Sources
from peer.epoch.bandwidth_probe import BandwidthProbe
from peer.epoch.follower_streams import FollowerStreams, SwarmStatus
from peer.epoch.following import Following
from peer.epoch.neighbours import Neighbours
from peer.epoch.round_traffic import DriftedError, RoundTraffic
from peer.epoch.shard_server import AllReduceError
from peer.settings import RunSettings
from peer.training.job_queue import JobQueue
from peer.training.side import TrainingSide
from protocols.errors import BadMessageError, RemoteError
from protocols.gradients.aggregation import rule_named
from protocols.gradients.codecs import CODECS, Bytes
from protocols.reasons import Reason
from protocols.round import leader_actions
from protocols.round import member as member_actions
from protocols.round.leader import Leader
from protocols.round.member import Member, Phase
from protocols.round.plans import MemberPlan, member_plan_of
from protocols.round.records import Candidate, Contribution, Hello, SignedCommit, Standing, Tip
from protocols.round.succession import Succession
from protocols.signing import check_signed, sign_commit
from protocols.transport.bulk import BulkConnections
from protocols.transport.channels import Channels
from protocols.transport.discovery import Discovery
from protocols.transport.network_thread import cancel_all
from protocols.transport.state_transfer import Progress, ask
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import answer_to_wire, from_wire, to_wire

TICK_S = 0.25
KEPT_RECORDS = 4096
HEARTBEAT_S = 0.5
_log = logging.getLogger(__name__)
EventSink = Callable[..., None]  # (event name, **fields)


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError as error:
        raise BadMessageError(f"an unknown reason {text[:50]!r}") from error


class Engine:
    def __init__(
        self,
        *,
        hello: Hello,
        channels: Channels,
        bulk: BulkConnections,
        discovery: Discovery,
        bootstrap: tuple[Candidate, ...],
        coordinator: str,
        settings: RunSettings,
        training: TrainingSide,
        jobs: JobQueue,
        events: EventSink,
        progress: Progress = lambda done, total: None,
    ) -> None:
        me = channels.credentials.peer_id
        replica = training.replica
        self.me = me
        self.hello = hello
        self.channels = channels
        self.settings = settings
        self.kept_state = KeptState(replica, jobs)
        self.round_traffic = RoundTraffic(me, bulk, replica, jobs, rule_named(settings.rule))
        self.bandwidth = bulk.bandwidth
        self.member = Member(me, hello.incarnation, overlap=settings.overlap)
        candidate = Candidate(me, hello.address)
        self.succession = Succession(candidate)
        self.leader = Leader(
            candidate,
            run_digest=settings.run_digest,
            target_batch_size=settings.target_batch_size,
            elements=replica.elements,
            codecs={name: CODECS[name].encoded_bytes(replica.elements) for name in settings.codecs},
            max_epochs=settings.max_epochs,
            overlap=settings.overlap,
        )
        self.status = SwarmStatus(0, 0.0, 0)
        self.desk = FollowerStreams()
        self.commits: deque[SignedCommit] = deque(maxlen=KEPT_RECORDS)  # for observers that were away
        self.finished = asyncio.Event()  # the run's last epoch is committed here
        self._training = training
        self._replica = replica
        self._jobs = jobs
        self.events = events
        self._bootstrap = bootstrap
        if bootstrap:
            self.succession.know(bootstrap)
        self.pushed_snapshots = PushedSnapshots(max_snapshot_bytes(replica.elements), progress, bulk.bandwidth.down)
        self._sources = Sources(me, bootstrap, self.succession, self.leader, self.desk, self.pushed_snapshots)
        self._line = BandwidthProbe(channels, bulk, self._sources.reachable)
        self._catching_up = CatchUp(self.kept_state, replica, jobs, channels, self._sources, events, progress)
        self._lost_forks = LostForks(me, self.commits, channels, self._sources, events)
        self._following = Following(self, self.succession)
        self._neighbours = Neighbours(discovery, channels, hello, coordinator, found=self._found, heard=self.heard_standing)
        self._encoded: Bytes = b""  # this epoch's contribution, as every attempt sends it
        self._accumulating = (0, 0)  # counters of what is drawn and not frozen
        self.samples_per_second = self._step_s = 0.0
        self._queue: deque[Any] = deque()
        self._performing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._failure: asyncio.Future[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled. Raises what ends a peer: RefusedError by its run, UnreachableError when no donor is left."""
        self._failure = asyncio.get_running_loop().create_future()
        self._spawn(self._catch_up(Reason.JOINED))
        for loop in (self._ticks(), self._following.run(), self._neighbours.run(), self._line.watch()):
            self._spawn(loop)
        try:
            await self._failure
        finally:
            await cancel_all(self._tasks)

    def progressed(self, first: int, end: int, samples_per_second: float, step_s: float) -> None:
        """The training thread finished a micro-batch; samples [first, end) are accumulated now. Call on the network's thread."""
        if self.member.phase is not Phase.CATCHING_UP:
            self._accumulates(first, end)
        self.samples_per_second, self._step_s = samples_per_second, step_s
        self.report()

    def _accumulates(self, first: int, end: int) -> None:
        """Counters only grow: what was told before samples were frozen or forgotten may come after that is known here."""
        first = max(first, self._accumulating[0])
        self._accumulating = (first, max(first, end, self._accumulating[1]))

    def _forget_accumulated(self) -> None:
        self._accumulating = (self._accumulating[1], self._accumulating[1])

    @property
    def accumulated(self) -> int:
        """Samples drawn and not frozen."""
        return self._accumulating[1] - self._accumulating[0]

    @property
    def samples(self) -> int:
        """What this peer can give to the epoch that is averaged now or next."""
        return self.member.samples(self.accumulated)

    @property
    def doing(self) -> str:
        """For a person. In a run that overlaps, training stops for catching up alone."""
        phase = self.member.phase
        averages = phase not in (Phase.CATCHING_UP, Phase.TRAINING)
        return "training and averaging" if averages and self.settings.overlap else phase.value

    async def leave(self) -> None:
        """Finish the round under way, if any, and tell the leader."""
        self._leaving = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._round_over(), timeout=30)
        if self.accumulated and self.member.phase is not Phase.CATCHING_UP:
            self.events("given_up", reason=Reason.LEFT, samples=self.accumulated)
        await self._following.say_goodbye()

    @property
    def over(self) -> bool:
        """This peer leaves, or the run is complete: that a leader goes now is nobody's loss."""
        return self._leaving or self.finished.is_set()

    async def _round_over(self) -> None:
        while self.member.phase in (Phase.FROZEN, Phase.REDUCING, Phase.READY, Phase.APPLYING):  # noqa: ASYNC110
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
            self.perform(self.leader.tick(now))
            self.perform(self.member.tick(self.bandwidth.moved_bytes, now))
            if now >= heartbeat_at:
                heartbeat_at = now + HEARTBEAT_S
                self.report()
                if self.leader.active:
                    self.status = self.desk.heartbeat(self.leader) or self.status
            await asyncio.sleep(TICK_S)

    def _found(self, others: Iterable[Candidate]) -> None:
        """Discovery's newest look; peers known from enrolment stay known, since a look may miss somebody."""
        self.succession.know({candidate.peer: candidate for candidate in (*self._bootstrap, *others)}.values())

    # -- following a leader ------------------------------------------------------------------------------------------------------

    @property
    def able_to_lead(self) -> bool:
        """Also without state, when nobody who can be dialled has any: client-mode peers can bring theirs to a leader alone."""
        caught_up = self.member.phase is not Phase.CATCHING_UP
        return bool(self.hello.address) and (caught_up or self._catching_up.stranded) and not self.over

    @property
    def following(self) -> Candidate | None:
        return self._following.leader

    def from_leader(self, leader: Candidate, message: pb.LeaderMessage) -> None:
        kind = message.WhichOneof("kind")
        if kind == "heartbeat":
            beat = message.heartbeat
            self.status = SwarmStatus(beat.samples, beat.samples_per_second, beat.peers)
            self.heard_standing(from_wire(Standing, beat.standing))
        elif kind == "member_plan":
            plan = from_wire(MemberPlan, message.member_plan)
            ours = (self.settings.run_digest, self._replica.elements)
            if (plan.run_digest, plan.elements) != ours or plan.codec not in self.settings.codecs:
                raise BadMessageError("a plan of another run")
            self.perform(self.member.on_plan(plan))
        elif kind == "abort":
            self.perform(self.member.on_abort(message.abort.plan_digest, _reason(message.abort.reason)))
        elif kind == "need_state":
            if self.member.tip is not None:
                self._spawn(self.kept_state.give(self.channels, leader, self.member.tip.standing))
        elif kind == "signed_commit":
            signed = check_signed(from_wire(SignedCommit, message.signed_commit), self.channels.credentials.authority)
            if signed.commit.next_codec not in self.settings.codecs:
                raise BadMessageError("a commit that names a codec of another run")
            self.perform(self.member.on_commit(signed))

    def heard_standing(self, theirs: Standing) -> None:
        if self.member.is_behind(theirs, self._leader_id) and self._catching_up.worth(theirs):
            self.perform(self.member.catch_up(Reason.BEHIND))

    @property
    def _leader_id(self) -> str:
        return self.following.peer if self.following is not None else ""

    def report(self) -> None:
        report = self.member.report(
            self._leader_id,
            accumulated=self.accumulated,
            samples_per_second=self.samples_per_second,
            step_s=self._step_s,
            moved_bytes=self.bandwidth.moved_bytes,
            upload_bytes_s=self.bandwidth.up.bytes_s,
            download_bytes_s=self.bandwidth.down.bytes_s,
        )
        if report is None:
            return
        if self._leaving:
            report = dataclasses.replace(report, caught_up=False)  # no leader is to plan the next epoch with this peer
        if self.leader.active:
            self.perform(self.leader.reported(self.me, report, time.monotonic()))
        else:
            self._following.send(pb.MemberMessage(report=to_wire(report)))

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
                self.round_traffic.began(plan.digest, self._spawn(self._reduce(plan, contribution)))
            case member_actions.StopReducing(plan_digest, _):
                self.round_traffic.stop(plan_digest)
            case member_actions.Send(to, answer):
                self._answer(to, answer)
            case member_actions.Apply(signed):
                self._spawn(self._apply(signed))
            case member_actions.Resume(keep):
                if not keep:
                    self._forget_accumulated()
                    self._jobs.put(self._training.resume)
                self.report()
            case member_actions.GiveUp(reason, contribution):
                samples = contribution.weight if contribution is not None else self.accumulated
                if samples:
                    self.events("given_up", reason=reason, samples=samples)
            case member_actions.CatchUp(reason):
                self._jobs.put(self._training.pause)
                self._forget_accumulated()
                self.report()  # a leader, this one included, must not plan with what was reported before
                self._spawn(self._catch_up(reason))
            case leader_actions.Ask(peers):
                for peer in peers:
                    self._spawn(self._ask(peer))
            case leader_actions.SendPlan(to, plan, absent):
                ballot = plan.ballot
                self.events("planned", epoch=ballot.epoch, attempt=ballot.attempt, members=list(plan.members), absent=absent)
                for peer in to:
                    part = member_plan_of(plan, peer)
                    self._to_members(
                        (peer,), pb.LeaderMessage(member_plan=to_wire(part)), functools.partial(self.member.on_plan, part)
                    )
            case leader_actions.SendAbort(to, plan_digest, reason):
                message = pb.LeaderMessage(abort=pb.Abort(plan_digest=plan_digest, reason=reason.value))
                self._to_members(to, message, lambda: self.member.on_abort(plan_digest, reason))
            case leader_actions.Announce(commit, seconds, attempts, absent):
                signed = sign_commit(commit, self.channels.credentials)
                self.events("announced", signed=signed, seconds=seconds, attempts=attempts, absent=absent)
                everybody = (*self.desk.peers, self.me)
                self._to_members(
                    everybody, pb.LeaderMessage(signed_commit=to_wire(signed)), lambda: self.member.on_commit(signed)
                )
            case leader_actions.Reannounce(to):
                if self._replica.commit is not None:
                    self.desk.send(to, pb.LeaderMessage(signed_commit=to_wire(self._replica.commit)))
            case leader_actions.NoteFailure(ballot, reason, peer):
                named = {"epoch": ballot.epoch, "parent": ballot.parent, "attempt": ballot.attempt}
                self.events("attempt_failed", **named, reason=reason, peer=peer)
            case leader_actions.Yield(_):
                self.succession.silent(self.me)
            case _:
                raise AssertionError(f"unknown action {action}")

    def _to_members(self, to: tuple[str, ...], message: pb.LeaderMessage, here: Callable[[], list[Any]]) -> None:
        self.desk.send(to, message)
        if self.me in to:
            self.perform(here())

    def _answer(self, to: str, answer: member_actions.Answer) -> None:
        if isinstance(answer, member_actions.Accept):
            self.report()  # the leader checks the weight against it
        if to == self.me:
            self.perform(self.leader.answer(self.me, answer, time.monotonic()))
        else:
            self._following.send(answer_to_wire(answer), to)

    async def _ask(self, peer: str) -> None:
        """A member that cannot be dialled (client mode) is not answered for: the leader waits for it until detection."""
        address = next((candidate.address for candidate in self.succession.order if candidate.peer == peer), "")
        if not address:
            return
        try:
            answer = await ask(self.channels, Candidate(peer, address))
        except RemoteError:
            self.perform(self.leader.unreachable(peer, time.monotonic()))
        else:
            self.heard_standing(answer.standing)
            self.perform(self.leader.answered(peer, answer.follows.peer, answer.followers))

    # -- a round ---------------------------------------------------------------------------------------------------------------

    async def _freeze(self) -> None:
        first = self._accumulating[0]
        frozen = await self._jobs.run(self._training.freeze)
        contribution, end = None, self._replica.strategy.first
        if frozen is not None:
            contribution = Contribution(self.me, self.hello.incarnation, frozen.first, frozen.end, frozen.base, frozen.loss)
            self._encoded = frozen.encoded
        elif end > first and self.member.phase is not Phase.CATCHING_UP:
            self.events("given_up", reason=Reason.NOT_FINITE, samples=end - first)
        self._accumulates(end, end)
        self.perform(self.member.frozen(contribution))

    async def _reduce(self, plan: MemberPlan, contribution: Contribution | None) -> None:
        try:
            averages = await self.round_traffic.run(plan, contribution, self._encoded if contribution is not None else b"")
        except AllReduceError as error:
            self.perform(self.member.reduce_failed(plan.digest, error.reason, error.member, error.reducer))
        except (ValueError, ArithmeticError):  # somebody sent what no check foresaw: that ends the attempt, not this peer
            _log.exception("the exchange of epoch %d failed", plan.ballot.epoch)
            self.perform(self.member.reduce_failed(plan.digest, Reason.BAD_CHUNK, self.me, plan.shards[0].reducer))
        except DriftedError as error:
            _log.warning("epoch %d: this peer's state is %s", plan.ballot.epoch, error)
            self.perform(self.member.drifted(plan.digest, error.reducers))
        else:
            self.perform(self.member.reduced(plan.digest, averages))

    async def _apply(self, signed: SignedCommit) -> None:
        try:
            averaged = self.round_traffic.averaged(signed.commit.averages)
            tip = await self._jobs.run(functools.partial(self._replica.apply, signed, averaged))
        except Exception:  # noqa: BLE001  whatever a failing device raises: the state is given up, and the cause is in the log
            _log.exception("applying epoch %d failed", signed.commit.ballot.epoch)
            self.perform(self.member.apply_failed())
            return
        self._advanced(signed, tip, averaged)
        self.perform(self.member.applied())

    def _advanced(self, signed: SignedCommit, tip: Tip, averaged: Bytes) -> None:
        commit = signed.commit
        self.round_traffic.committed(commit.plan_digest)
        self.kept_state.keep(signed, averaged)
        self.commits.append(signed)
        self.perform(self.leader.follow(tip, commit))
        self.succession.follow(tip)
        if self.member.replayed(tip):
            self.report()
        self.events("applied", signed=signed)
        self._finish_at(tip)

    async def _catch_up(self, reason: Reason) -> None:
        tip = await self._catching_up.run(reason, self._advanced)
        if reason is Reason.JOINED:
            self._spawn(self._line.measure())  # nobody waits for it: whoever is asked may be gone
        self._spawn(self._lost_forks.settle(tip))
        self.perform(self.leader.follow(tip))
        self.succession.follow(tip)
        self._finish_at(tip)
        self.perform(self.member.adopted(tip))

    def _finish_at(self, tip: Tip) -> None:
        if self.settings.max_epochs is not None and tip.epoch >= self.settings.max_epochs:
            self.finished.set()
