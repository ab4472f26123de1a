"""The engine: carries out what the round's state machines decide. The only driver of them, in production and in simulation.

Events come from                                      Actions are carried out by
- service.py: what followers and observers send       - perform: one after another, in order
- following.py: what this peer's leader sends         - the training thread: freeze, apply, restore, as jobs
- neighbours.py: who else is there                    - round_traffic.py: the all-reduce of a plan
- _ticks: time                                        - catch_up/: state from other peers

Everything here runs on the network's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from peer.catch_up.catch_up import CatchUp
from peer.catch_up.claims import Claims
from peer.catch_up.kept_state import KeptState
from peer.catch_up.lost_forks import LostForks
from peer.catch_up.pushed_snapshots import PushedSnapshots, max_snapshot_bytes, push_state
from peer.catch_up.sources import Sources
from peer.environment import Environment
from peer.epoch.bandwidth_probe import BandwidthProbe
from peer.epoch.bans import Bans
from peer.epoch.follower_streams import FollowerStreams
from peer.epoch.following import Following
from peer.epoch.neighbours import Neighbours
from peer.epoch.observers import Observers
from peer.epoch.reachability import Reachability
from peer.epoch.round_traffic import DriftedError, RoundTraffic
from peer.epoch.shard_server import AllReduceError, UnreachedError
from peer.settings import RunSettings
from peer.training.side import TrainingSide
from protocols.errors import BadMessageError, DugnadError, RefusedError, RemoteError, UnreachableError
from protocols.gradients.codecs import CODECS, Bytes
from protocols.messages import Abort, Heartbeat, NeedState
from protocols.observations import PeerView, Role, Swarm
from protocols.reasons import Reason
from protocols.round import leader_actions
from protocols.round import member as member_actions
from protocols.round.drift_votes import Drifted, refusal_message
from protocols.round.idle_leaders import IdleLeaders
from protocols.round.leader import Leader
from protocols.round.member import Member, Phase
from protocols.round.plans import MemberPlan, member_plan_of
from protocols.round.records import Candidate, Contribution, Hello, SignedCommit, Standing, Tip, vote_message
from protocols.round.succession import Succession
from protocols.round.unreached import Unreached
from protocols.transport.interface import DIAL_S, News
from protocols.transport.network_thread import cancel_all
from protocols.transport.whereabouts import ask

TICK_S = 0.25
HEARTBEAT_S = 0.5
LEAVE_S = 30.0  # a round under way is waited for at most so long
REPORT_S = 0.005  # between two reports of micro-batches: a leader reads no more than 512 records a second of a peer
AGAIN_S = 0.5  # after an error that nobody foresaw
KEPT_RECORDS = 4096
CONSIDERS_S = 15.0  # at most, where another lineage comes from
_IN_WORDS = {
    Phase.TRAINING: "training",
    Phase.FROZEN: "waiting to average",
    Phase.REDUCING: "averaging",
    Phase.READY: "waiting for the others",
    Phase.APPLYING: "taking the step",
    Phase.CATCHING_UP: "catching up",
}
_log = logging.getLogger(__name__)


class Engine:
    """One peer's part in the swarm: follows or leads, averages, applies, catches up."""

    def __init__(
        self,
        hello: Hello,
        environment: Environment,
        settings: RunSettings,
        training: TrainingSide,
        bootstrap: tuple[Candidate, ...] = (),
        standing: Standing | None = None,
    ) -> None:
        """`bootstrap`: reachable peers that are known from the start. `standing`: where the coordinator says the run stands."""
        me, replica, transport = environment.me, training.replica, environment.transport
        self.me = me
        self.hello = hello
        self.environment = environment
        self.settings = settings
        self.bandwidth = transport.bandwidth
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
        self.followers = FollowerStreams()
        self.beat: Heartbeat | None = None  # the newest, this peer's own if it leads
        self.commits: deque[SignedCommit] = deque(maxlen=KEPT_RECORDS)  # for observers that were away
        self.finished = asyncio.Event()  # the run's last epoch is committed here
        self.kept_state = KeptState(training, environment)
        self.round_traffic = RoundTraffic(environment, training, settings)
        self.pushed_snapshots = PushedSnapshots(max_snapshot_bytes(replica.elements), environment)
        self.observers = Observers(self.swarm, self.commits, environment.clock)
        self.unreached = Unreached()
        self._idle_leaders = IdleLeaders()
        self._training = training
        self._replica = replica
        self._bootstrap = bootstrap
        if bootstrap:
            self.succession.know(bootstrap)
        self._sources = Sources(self, bootstrap)
        self.bans = Bans(environment, self._sources.reachable, self.events)
        self._probe = BandwidthProbe(environment, self._sources.reachable)
        said = lambda: self.news.standing or standing  # noqa: E731
        self._claims = Claims(environment, settings.genesis, self._sources, lambda: replica.tip, self._record, said)
        self._considered: dict[str, float] = {}  # lineage that is looked into -> until when it is left alone then
        follows = lambda: self._leader_id  # noqa: E731
        self._catching_up = CatchUp(environment, training, self.kept_state, self._sources, self._claims, follows, self.events)
        self._lost_forks = LostForks(environment, self.commits, self._sources, self.events)
        introduction: Callable[[], Hello] = lambda: self.hello  # noqa: E731
        self._following = Following(me, self, self.succession, transport, introduction, environment.clock)
        self._neighbours = Neighbours(environment, introduction, found=self._found, heard=self.heard_standing, bans=self.bans)
        self.reachability = Reachability(environment, hello, self._sources.reachable)
        self._encoded: Bytes = b""  # this epoch's contribution, as every attempt sends it
        self._accumulating = (0, 0)  # counters of the samples that are drawn and not frozen
        self.samples_per_second = self._step_s = 0.0
        self._reported_at = float("-inf")
        self._reporting: asyncio.TimerHandle | None = None  # the next report, which was to wait
        self._planned_at = 0.0  # when this peer last planned an attempt, or heard of a plan
        self._queue: deque[Any] = deque()
        self._performing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._failure: asyncio.Future[None] | None = None

    # -- life ------------------------------------------------------------------------------------------------------------------

    async def find_reachability(self) -> None:
        """Find out whether others reach this peer. To be awaited before `run`."""
        self._introduce(await self.reachability.hello())

    def _introduce(self, hello: Hello) -> None:
        """From now on others hear that this peer is reached there, or nowhere."""
        if hello == self.hello:
            return
        self.events("reachable" if hello.reachable else "unreachable", problem=self.reachability.problem)
        self.hello = hello
        self.leader.me = Candidate(self.me, hello.address)
        self.succession.is_at(self.leader.me)
        self.leader.introduced(self.me, hello)
        self._following.send(hello)

    def moved(self) -> None:
        """This machine has another address, so that streams of before may break."""
        self._following.moved()

    async def run(self) -> None:
        """Take part until cancelled.

        Raises RefusedError when the swarm is of another run, and UnreachableError when nobody is left who gives state.
        """
        self._failure = asyncio.get_running_loop().create_future()
        self._spawn(self._catch_up(Reason.JOINED))
        watching = functools.partial(self.reachability.watch, self._introduce, lambda: self.following is None)
        for loop in (self._ticks, self._following.run, self._neighbours.run, self._probe.watch, watching, self.bans.run):
            self._spawn(self._again_and_again(loop))
        try:
            await self._failure
        finally:
            if self._reporting is not None:
                self._reporting.cancel()
            await cancel_all(self._tasks)

    async def leave(self) -> None:
        """Finish the round under way, if there is one, and tell the leader."""
        self._leaving = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._round_over(), timeout=LEAVE_S)
        if self.accumulated and self.member.phase is not Phase.CATCHING_UP:
            self.events("given_up", reason=Reason.LEFT, samples=self.accumulated)
        await self._following.say_goodbye()

    @property
    def leaves(self) -> bool:
        """This peer leaves, or the run is complete: a leader that goes now is no loss."""
        return self._leaving or self.finished.is_set()

    def events(self, event: str, /, **fields: Any) -> None:
        """Something happened that a log, a screen or an observer may want to know."""
        self.observers.happened(event, fields)
        self.environment.events(event, **fields)

    async def _round_over(self) -> None:
        while self.member.phase in (Phase.FROZEN, Phase.REDUCING, Phase.READY, Phase.APPLYING):  # noqa: ASYNC110
            await asyncio.sleep(TICK_S / 5)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @contextlib.contextmanager
    def guarded(self, peer: str) -> Iterator[None]:
        """Around all that a record of `peer` sets off: an error that nobody foresaw is a breach of the protocol, by that peer."""
        try:
            yield
        except (DugnadError, asyncio.TimeoutError):
            raise
        except Exception as error:
            _log.exception("%s sent what nobody foresaw", peer[:8])
            self.events("strike", peer=peer, problem=f"{type(error).__name__}: {error}"[:200])
            raise BadMessageError(f"{peer[:8]} sent what nobody foresaw ({type(error).__name__})") from error

    async def _again_and_again(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`loop`, begun anew after an error that nobody foresaw: some remote set it off, and this peer goes on."""
        is_over = False
        while not is_over:
            with contextlib.suppress(BadMessageError), self.guarded("somebody"):
                await loop()
                is_over = True
            await asyncio.sleep(AGAIN_S)

    async def _asking(self, peer: str, work: Coroutine[Any, Any, None]) -> None:
        """`work` asks `peer` something: whatever comes of it, this peer goes on."""
        with contextlib.suppress(BadMessageError), self.guarded(peer):
            await work

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    async def _ticks(self) -> None:
        clock, heartbeat_at = self.environment.clock, float("-inf")
        while True:
            now = clock()
            self.perform(self.leader.tick(now))
            self.perform(self.member.tick(self.bandwidth.moved_bytes, now))
            self._watch_leader(now)
            self._shut_out(now)
            for reducer in self.unreached.due(now):
                self._spawn(self._asking(reducer, self._dial_again(reducer)))
            if now >= heartbeat_at:
                heartbeat_at = now + HEARTBEAT_S
                self.report()
                if self.leader.active:
                    self.beat = self.followers.heartbeat(self.leader) or self.beat
            await asyncio.sleep(TICK_S)

    # -- this peer, for a person and for observers -----------------------------------------------------------------------------

    @property
    def accumulated(self) -> int:
        """Samples drawn and not frozen."""
        return self._accumulating[1] - self._accumulating[0]

    @property
    def samples(self) -> int:
        """Samples that this peer can contribute to the epoch that is averaged now or next."""
        return self.member.samples(self.accumulated)

    @property
    def activity(self) -> str:
        """What this peer does, in words for a person. In a run that overlaps, only catching up stops training."""
        phase = self.member.phase
        averages = phase not in (Phase.CATCHING_UP, Phase.TRAINING)
        return "training and averaging" if averages and self.settings.overlap else _IN_WORDS[phase]

    @property
    def following(self) -> Candidate | None:
        return self._following.leader

    @property
    def news(self) -> News:
        """What the coordinator said last."""
        return self._neighbours.news

    @property
    def banned(self) -> frozenset[str]:
        """Peers that the organiser does not let take part now."""
        return self.bans.peers

    def _shut_out(self, now: float) -> None:
        """Nobody follows a banned peer, and none follows this one. Raises RefusedError when this peer is banned itself."""
        self.bans.check_self()
        self.succession.barred = self.banned
        for peer in self.followers.peers:
            if peer in self.banned:
                self.events("shut_out", peer=peer)
                self.followers.close(peer)
                self.perform(self.leader.left(peer, Reason.BANNED, now))

    def swarm(self) -> Swarm:
        """How the swarm stands, as this peer sees it."""
        views = []
        for peer, follower in self.leader.followers.items():
            hello, report = follower.hello, follower.report
            role: Role = "auxiliary" if hello.auxiliary else "contributor"
            epoch, samples, speed, state = (0, 0, 0.0, "joining")
            if report is not None:
                epoch, samples = report.standing.epoch, report.samples
                speed, state = report.samples_per_second, report.phase
            views.append(PeerView(peer, hello.name, role, hello.reachable, epoch, samples, speed, state, peer == self.me))
        tip = self.member.tip
        return Swarm(
            standing=tip.standing if tip is not None else None,
            samples=self.beat.samples if self.beat is not None else 0,
            phase=self.member.phase.value,
            peers=tuple(views),
            follows=self.following,
            committed_samples_per_second=self.observers.pace.samples_per_second or 0.0,
            epoch_s=self.observers.pace.epoch_s or 0.0,
        )

    # -- training --------------------------------------------------------------------------------------------------------------

    def progressed(self, first: int, end: int, samples_per_second: float, step_s: float) -> None:
        """The training thread finished a micro-batch: samples [first, end) are accumulated now. Call on the network's loop."""
        if self.member.phase is not Phase.CATCHING_UP:
            self._accumulates(first, end)
        self.samples_per_second, self._step_s = samples_per_second, step_s
        wait_s = self._reported_at + REPORT_S - self.environment.clock()
        if wait_s <= 0:
            self.report()
        elif self._reporting is None:
            self._reporting = asyncio.get_running_loop().call_later(wait_s, self.report)

    def _accumulates(self, first: int, end: int) -> None:
        """Counters only grow: a range told before a freeze may arrive after the freeze is known here."""
        first = max(first, self._accumulating[0])
        self._accumulating = (first, max(first, end, self._accumulating[1]))

    def _forget_accumulated(self) -> None:
        self._accumulating = (self._accumulating[1], self._accumulating[1])

    def report(self) -> None:
        """Tell the leader, which may be this peer itself, how far this peer is."""
        bandwidth, self._reported_at = self.bandwidth, self.environment.clock()
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        report = self.member.report(
            self._leader_id,
            accumulated=self.accumulated,
            samples_per_second=self.samples_per_second,
            step_s=self._step_s,
            moved_bytes=bandwidth.moved_bytes,
            upload_bytes_s=bandwidth.up.bytes_s,
            download_bytes_s=bandwidth.down.bytes_s,
            unreached=self.unreached.names,
        )
        if report is None:
            return
        if self._leaving:
            report = dataclasses.replace(report, caught_up=False)  # no leader is to plan the next epoch with this peer
        if self.leader.active:
            self.perform(self.leader.reported(self.me, report, self.environment.clock()))
        else:
            self._following.send(report)

    # -- leading or following --------------------------------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        return self.member.tip is not None

    @property
    def able_to_lead(self) -> bool:
        """Also without state, when nobody who can be dialled has any: client-mode peers can push theirs to a leader only."""
        caught_up = self.member.phase is not Phase.CATCHING_UP
        return bool(self.hello.address) and (caught_up or self._catching_up.stranded) and not self.leaves

    def take_over(self) -> None:
        if self.leader.active:
            return
        now = self.environment.clock()
        self.events("leading", epoch=self.member.tip.epoch if self.member.tip else 0)
        self.perform([*self.leader.take_over(now), *self.leader.joined(self.me, self.hello, now)])
        self.report()

    def step_down(self) -> None:
        if self.leader.active:
            self.perform(self.leader.step_down())
        self.followers.close_all()

    def _watch_leader(self, now: float) -> None:
        """Leave a leader that does not plan, and pass it over while it rests: a commit may name it again."""
        leader = self._leader_id
        if leader in ("", self.me):
            return
        gathered = max(self.samples, self.beat.samples if self.beat is not None else 0)
        if self.member.phase is Phase.CATCHING_UP:  # it may be what the leader claims that is sought, in vain
            return
        if self.member.phase is not Phase.TRAINING or not gathered or self.leaves:
            self._idle_leaders.counts_from(now)
        idle_s = self._idle_leaders.idle(leader, is_full=gathered >= self.settings.target_batch_size, now=now)
        if idle_s:
            self.events("leader_idle", peer=leader, seconds=idle_s)
        if self._idle_leaders.rests(leader, now):
            self.succession.silent(leader)

    def told(self, leader: Candidate, record: Any) -> None:
        with self.guarded(leader.peer):
            self._told(leader, record)

    def _told(self, leader: Candidate, record: Any) -> None:
        match record:
            case Heartbeat():
                self.beat = record
                self.heard_standing(record.standing, leader.peer)
            case MemberPlan():
                ours = (self.settings.run_digest, self._replica.elements)
                if (record.run_digest, record.elements) != ours or record.codec not in self.settings.codecs:
                    raise BadMessageError("a plan of another run")
                self._planned_at = self.environment.clock()
                self._idle_leaders.planned(self._planned_at)
                self.perform(self.member.on_plan(record))
            case Abort(plan_digest, reason, sound, peer, verdict):
                self._blamed(peer, reason)
                self._idle_leaders.ended(plan_digest)
                for refusal in verdict.refusals if verdict is not None else ():
                    assert refusal.vote is not None  # a verdict has none without
                    self.environment.signer.check_vote(refusal.vote, refusal_message(refusal))
                self.perform(self.member.on_abort(plan_digest, reason, sound, verdict))
            case NeedState():
                if self.member.tip is not None:
                    pushing = push_state(self.environment, self.kept_state, leader, self.member.tip.standing)
                    self._spawn(self._asking(leader.peer, pushing))
            case SignedCommit():
                signed = self.environment.signer.verify(record)
                if signed.commit.next_codec not in self.settings.codecs:
                    raise BadMessageError("a commit that names a codec of another run")
                self.perform(self.member.on_commit(signed))
            case _:
                raise BadMessageError(f"a leader sends no {type(record).__name__}")

    def _blamed(self, peer: str, reason: Reason) -> None:
        """An attempt ended because of `peer`."""
        if peer == self.me and reason is Reason.REDUCER_LOST:
            epoch = self.member.tip.epoch + 1 if self.member.tip is not None else 0
            self.events("blamed", reason=reason, epoch=epoch, seconds=self.environment.clock() - self._planned_at)
            self.reachability.suspect()

    def heard_standing(self, theirs: Standing, peer: str) -> None:
        """`peer` says so: go there if that lineage is to take the place of this one, and its holders were not sought in vain just
        now."""
        now = self.environment.clock()
        if now < self._considered.get(theirs.lineage, 0.0) or not self._is_other(theirs):
            return
        if self._catching_up.worth(theirs, peer):
            self._considered = {lineage: until for lineage, until in self._considered.items() if now < until}
            self._considered[theirs.lineage] = now + CONSIDERS_S
            self._spawn(self._asking(peer, self._consider(theirs, peer)))

    async def _consider(self, theirs: Standing, peer: str) -> None:
        wins, tip = await self._claims.wins(peer, theirs, self._leader_id), self.member.tip
        if tip is None or not self._is_other(theirs):
            return
        if wins:
            self._considered.pop(theirs.lineage, None)
            self.perform(self.member.catch_up(Reason.BEHIND))
        elif theirs.heavier_than(tip.standing):
            self._catching_up.doubt(peer)
            self.events("outvoted", peer=peer, lineage=theirs.lineage, samples=theirs.total_samples)

    def _is_other(self, theirs: Standing) -> bool:
        """Whether it may be right to leave for `theirs`: it is heavier, or has more votes."""
        tip = self.member.tip
        if tip is None or theirs.lineage == tip.lineage:
            return False
        if theirs.heavier_than(tip.standing):
            return self.member.is_behind(theirs, self._leader_id)
        known = (signed.commit.digest == theirs.lineage for signed in self.commits)
        rests = self.member.phase is not Phase.TRAINING or theirs.lineage == tip.parent
        return not rests and self._claims.may_lose(tip) and not any(known)

    def _record(self) -> Iterable[SignedCommit]:
        """The commits that this peer knows: those that it applied, and the one of the snapshot that it began with."""
        return (self._replica.commit, *self.commits) if self._replica.commit is not None else self.commits

    @property
    def _leader_id(self) -> str:
        return self.following.peer if self.following is not None else ""

    def _found(self, others: Iterable[Candidate]) -> None:
        """Discovery's newest look. A look may miss peers, so those known from the start stay known."""
        self.succession.know({candidate.peer: candidate for candidate in (*self._bootstrap, *others)}.values())

    # -- actions ---------------------------------------------------------------------------------------------------------------

    def perform(self, actions: list[Any]) -> None:
        """Carry out actions in order; those that result from them follow behind."""
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
                    self._training.jobs.put(self._training.resume)
                self.report()
            case member_actions.GiveUp(reason, contribution):
                samples = contribution.weight if contribution is not None else self.accumulated
                if samples:
                    self.events("given_up", reason=reason, samples=samples)
            case member_actions.CatchUp(reason, sound):
                self._training.jobs.put(self._training.pause)
                self._forget_accumulated()
                self.report()  # a leader, which may be this peer, must not plan with what was reported before
                self._spawn(self._catch_up(reason, sound))
            case leader_actions.Ask(peers):
                for peer in peers:
                    self._spawn(self._asking(peer, self._ask(peer)))
            case leader_actions.SendPlan(to, plan, absent):
                ballot, self._planned_at = plan.ballot, self.environment.clock()
                self.events("planned", epoch=ballot.epoch, attempt=ballot.attempt, members=list(plan.members), absent=absent)
                for peer in to:
                    part = member_plan_of(plan, peer)
                    self._to_members((peer,), part, functools.partial(self.member.on_plan, part))
            case leader_actions.SendAbort(to, plan_digest, reason, peer, sound, verdict):
                here = functools.partial(self.member.on_abort, plan_digest, reason, sound, verdict)
                self._to_members(to, Abort(plan_digest, reason, sound, peer, verdict), here)
                if self.me in to:
                    self._blamed(peer, reason)
            case leader_actions.Announce(commit, seconds, attempts, votes, absent):
                signed = self.environment.signer.sign(commit, votes)
                self.events("announced", signed=signed, seconds=seconds, attempts=attempts, absent=absent)
                self._to_members((*self.followers.peers, self.me), signed, lambda: self.member.on_commit(signed))
            case leader_actions.Reannounce(to):
                if self._replica.commit is not None:
                    self.followers.send(to, self._replica.commit)
            case leader_actions.NoteFailure(ballot, reason, peer):
                self.events(
                    "attempt_failed", ballot=ballot, reason=reason, peer=peer, seconds=self.environment.clock() - self._planned_at
                )
            case leader_actions.Yield(_):
                self.succession.silent(self.me)
            case _:
                raise AssertionError(f"unknown action {action}")

    def _to_members(self, to: tuple[str, ...], record: Any, here: Callable[[], list[Any]]) -> None:
        self.followers.send(to, record)
        if self.me in to:
            self.perform(here())

    def _answer(self, to: str, answer: member_actions.Answer) -> None:
        if isinstance(answer, member_actions.Accept):
            self.report()  # the leader checks the contribution's weight against it
        elif isinstance(answer, member_actions.Ready):
            answer = dataclasses.replace(answer, vote=self.environment.signer.vote(vote_message(answer.result)))
        elif isinstance(answer, Drifted):
            answer = dataclasses.replace(answer, vote=self.environment.signer.vote(refusal_message(answer)))
        if to == self.me:
            self.perform(self.leader.answer(self.me, answer, self.environment.clock()))
        else:
            self._following.send(answer, to)

    async def _ask(self, peer: str) -> None:
        """Ask a member of the last commit where it stands. The leader waits for the report of one that nobody can dial."""
        address = self.succession.address_of(peer)
        if not address:
            return
        try:
            answer = await ask(self.environment.transport, Candidate(peer, address))
        except RemoteError:
            self.perform(self.leader.unreachable(peer, self.environment.clock()))
        else:
            self.heard_standing(answer.standing, peer)
            now, follows = self.environment.clock(), answer.follows.peer
            if self._idle_leaders.rests(follows, now):  # this peer does not yield to a leader that it left
                self.perform(self.leader.unreachable(peer, now))
            else:
                self.perform(self.leader.answered(peer, follows))

    # -- a round ---------------------------------------------------------------------------------------------------------------

    async def _freeze(self) -> None:
        first = self._accumulating[0]
        frozen = await self._training.jobs.run(self._training.freeze)
        contribution, end = None, self._replica.strategy.first
        if frozen is not None:
            given = (frozen.first, frozen.end, frozen.base, frozen.loss, frozen.norm)
            contribution = Contribution(self.me, self.hello.incarnation, *given)
            self._encoded = frozen.encoded
        elif end > first and self.member.phase is not Phase.CATCHING_UP:
            self.events("given_up", reason=Reason.NOT_FINITE, samples=end - first)
        self._accumulates(end, end)
        self.perform(self.member.frozen(contribution))

    async def _reduce(self, plan: MemberPlan, contribution: Contribution | None) -> None:
        try:
            averages = await self.round_traffic.run(plan, contribution, self._encoded if contribution is not None else b"")
        except AllReduceError as error:
            if isinstance(error, UnreachedError):
                self._could_not_reach(error.reducer, str(error))
            self.perform(self.member.reduce_failed(plan.digest, error.reason, error.member, error.reducer))
        except DriftedError as error:
            _log.warning("epoch %d: this peer's state is %s", plan.ballot.epoch, error)
            self.perform(self.member.drifted(plan.digest, error.reducers))
        except Exception:  # noqa: BLE001  somebody sent bytes that no check foresaw: that ends the attempt, not this peer
            _log.exception("the all-reduce of epoch %d failed", plan.ballot.epoch)
            self.perform(self.member.reduce_failed(plan.digest, Reason.BAD_CHUNK, self.me, plan.shards[0].reducer))
        else:
            for shard in plan.shards:
                self.unreached.served(shard.reducer)
            self.perform(self.member.reduced(plan.digest, averages))

    def _could_not_reach(self, reducer: str, problem: str) -> None:
        rest_s = self.unreached.failed(reducer, self.environment.clock())
        self.events("unreached", peer=reducer, problem=problem, seconds=rest_s)
        self.report()  # so that the leader plans the next attempt around it

    async def _dial_again(self, reducer: str) -> None:
        """Both its ports, under the addresses that it has now: it may have started again."""
        transport, address = self.environment.transport, self.succession.address_of(reducer)
        try:
            if not address:
                raise UnreachableError(f"nobody says where {reducer[:8]} is")
            answer = await ask(transport, Candidate(reducer, address), DIAL_S)
            if not answer.bulk_address:
                raise UnreachableError(f"{reducer[:8]} is in client mode now")
            await transport.dial_bulk(reducer, answer.bulk_address)
        except RefusedError:  # it is there, and has no state yet: nobody plans with it, and its port is tried once it has
            self.unreached.postpone(reducer, self.environment.clock())
            return
        except RemoteError as error:
            self._could_not_reach(reducer, str(error))
            return
        self.unreached.reached(reducer)
        self.events("reached", peer=reducer)
        self.report()

    async def _apply(self, signed: SignedCommit) -> None:
        try:
            result = self.round_traffic.result(signed.commit.averages)
            tip = await self._training.jobs.run(functools.partial(self._replica.apply, signed, result))
        except Exception:  # noqa: BLE001  whatever a failing device raises: the state is given up, and the cause is in the log
            _log.exception("applying epoch %d failed", signed.commit.ballot.epoch)
            self.perform(self.member.apply_failed())
            return
        self._advanced(signed, tip, result)
        self.perform(self.member.applied())

    def _advanced(self, signed: SignedCommit, tip: Tip, result: Bytes) -> None:
        commit = signed.commit
        self.round_traffic.committed(commit.plan_digest)
        self.kept_state.keep(signed, result)
        self.commits.append(signed)
        self._idle_leaders.committed(commit.leader.peer, self.environment.clock())
        self._claims.advanced(signed, self.environment.clock())
        self.perform(self.leader.follow(tip, commit))
        self.succession.follow(tip)
        self._reached(tip)
        self.events("applied", signed=signed)
        self._finish_at(tip)

    def _reached(self, tip: Tip) -> None:
        now, signed = self.environment.clock(), self._replica.commit
        self._idle_leaders.counts_from(now)
        if signed is not None and self._idle_leaders.lied(signed.commit.leader.peer, signed.commit.plan_digest, now):
            self.events("leader_lied", peer=signed.commit.leader.peer, epoch=tip.epoch)
        if self.member.reached(tip):
            self.report()

    async def _catch_up(self, reason: Reason, sound: tuple[str, ...] = ()) -> None:
        self._lost_forks.moving()
        tip = await self._catching_up.run(reason, self._advanced, self._reached, sound)
        if reason is Reason.JOINED:
            self._spawn(self._asking("somebody", self._probe.measure()))  # nobody waits: the peers that are asked may be gone
        self._spawn(self._asking("somebody", self._lost_forks.settle(tip)))
        self._spawn(self._asking("somebody", self._claims.recall(tip)))
        self.perform(self.leader.follow(tip))
        self.succession.follow(tip)
        self._finish_at(tip)
        self.perform(self.member.adopted(tip))

    def _finish_at(self, tip: Tip) -> None:
        if self.settings.max_epochs is not None and tip.epoch >= self.settings.max_epochs:
            self.finished.set()
