"""No message ends a process: whole peers in virtual time beside one that sends true records with made-up values."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from peer.catch_up.claims import Claims
from peer.catch_up.witnesses import Witnesses
from peer.simulation.made_up import MadeUp
from peer.simulation.transport import SimulatedSigner, ban_list_by_the_organiser
from peer.simulation.world import ViolationError
from protocols.ban_list import BanList
from protocols.errors import BadMessageError, RemoteError
from protocols.messages import (
    NOBODY,
    Abort,
    AskReply,
    AskRequest,
    CommitsRequest,
    DialBackReply,
    DialBackRequest,
    Heartbeat,
    Manifest,
    NeedState,
    NotLeader,
    ObserveRequest,
    OfferRequest,
    ReduceOpen,
    SnapshotRequest,
)
from protocols.observations import Committed, Swarm
from protocols.reasons import Reason
from protocols.round.drift_votes import Drifted, DriftVerdict, refusal_message
from protocols.round.history import Fork
from protocols.round.idle_leaders import ANY_S
from protocols.round.leader import Leader
from protocols.round.leader_actions import LeaderAction
from protocols.round.member import Accept, Failed, Ready, Refuse
from protocols.round.plans import MemberPlan
from protocols.round.records import (
    Ballot,
    Candidate,
    Contribution,
    Hello,
    Report,
    Result,
    ShardResult,
    SignedCommit,
    Standing,
    Tip,
    vote_message,
)
from protocols.snapshot.fetch import Anybody
from protocols.transport.frames import Kind
from protocols.transport.interface import refusal
from protocols.wire.convert import from_wire, to_wire
from tests.peer.virtual import Answers, Node, SmallSwarm, ToldPeer

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = [*range(5), 26, 63]
DIGEST = "ab" * 32


class Mallory:
    """Follows the leader, answers its plans, and calls everybody; every record is a lie about a true one."""

    def __init__(self, swarm: SmallSwarm, seed: int) -> None:
        self.swarm, self.made_up = swarm, MadeUp(seed)
        self.node: Node = swarm.node("mallory", Answers(AskRequest=self._asked, DialBackRequest=self._dialled, Hello=self._led))
        self.told = 0
        self.plan: MemberPlan | None = None

    def start(self) -> None:
        self.node.start(self._for_ever(self._follow))
        self.node.start(self._for_ever(self._call))

    async def _for_ever(self, work: Callable[[], Any]) -> None:
        while True:
            with contextlib.suppress(RemoteError):
                await work()
            await asyncio.sleep(0.05)

    def _lie(self, record: Any) -> Any:
        """As it comes out of the wire at the other end."""
        self.told += 1
        for _ in range(20):
            lied = self.made_up.lie(record)
            try:
                return from_wire(type(lied), to_wire(lied))
            except (BadMessageError, ValueError, TypeError):  # the wire takes no such value
                continue
        return record

    @property
    def standing(self) -> Standing:
        tip = self.swarm.processes["p0"].engine.member.tip
        assert tip is not None
        return tip.standing

    def _report(self) -> Report:
        return Report(self.standing, 3, 5.0, 0.1, 0, 1000, caught_up=True, phase="training")

    async def _follow(self) -> None:
        hello = self._lie(Hello(1, False, "mallory:1", "mallory:2", "mallory"))
        async with self.node.transport.open(Candidate("p0", "p0:1"), hello) as stream:
            stream.post(self._report())
            while (record := await stream.receive()) is not None:
                if isinstance(record, MemberPlan):
                    self.plan = record
                    for answer in self._answers(record):
                        stream.post(self._lie(answer))
                stream.post(self._lie(self._report()))

    def _answers(self, plan: MemberPlan) -> list[Any]:
        digest = plan.digest
        mine = Contribution("mallory", 1, 0, 3, plan.ballot.parent, 2.0, 1.0)
        signer = SimulatedSigner("mallory")
        shards = tuple(ShardResult(shard.start, shard.stop, DIGEST, 1.0) for shard in plan.shards)
        result, drifted = Result(digest, DIGEST, shards), Drifted(digest, (plan.shards[0].reducer,))
        return [
            Accept(digest, mine),
            Refuse(digest, Reason.PROMISED_HIGHER, 0),
            Ready(result, signer.vote(vote_message(result))),
            Failed(digest, Reason.REDUCER_LOST, "mallory", plan.shards[0].reducer),
            replace(drifted, vote=signer.vote(refusal_message(drifted))),
        ]

    async def _call(self) -> None:
        """One call of each kind to each peer, and a bulk request."""
        openings = (
            Hello(1, False, "mallory:1", "mallory:2", "mallory"),
            AskRequest(),
            DialBackRequest("mallory:1", "mallory:2"),
            OfferRequest("", self.standing),
            SnapshotRequest(DIGEST, 0, 1),
            Manifest(1, DIGEST, 5, 5, (bytes(32),)),
            CommitsRequest(self.standing.lineage),
            ObserveRequest(0, once=True),
        )
        for peer in self.swarm.names:
            for opening in openings:
                try:
                    async with self.node.transport.open(Candidate(peer, f"{peer}:1"), self._lie(opening)) as stream:
                        await stream.receive()
                except RemoteError:
                    pass
            if self.plan is not None:
                mine = Contribution("mallory", 1, 0, 3, self.plan.ballot.parent, 2.0, 1.0)
                try:
                    async with self.node.transport.bulk(peer, f"{peer}:2") as bulk:
                        await bulk.send_record(Kind.OPEN, self._lie(ReduceOpen(self.plan.digest, 0, mine)))
                        await bulk.header()
                except RemoteError:
                    pass

    # -- what it answers

    async def _asked(self, stream: Any, request: Any) -> AsyncIterator[Any]:
        yield self._lie(AskReply(self.standing, True, NOBODY, "mallory:2"))

    async def _dialled(self, stream: Any, request: Any) -> AsyncIterator[Any]:
        yield self._lie(DialBackReply(""))

    async def _led(self, stream: Any, hello: Any) -> AsyncIterator[Any]:
        yield self._lie(NotLeader("p0", "p0:1", able=True))


def unforeseen(process: ToldPeer) -> list[str]:
    return [fields["problem"] for fields in process.told_of("strike")]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_lie_of_a_follower_ends_a_peer_or_the_training(seed: int) -> None:
    with SmallSwarm(3, seed=seed) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= 1)
        mallory = Mallory(swarm, seed)
        mallory.start()
        began = swarm.epoch("p0")
        swarm.for_s(30.0)
        assert mallory.told > 100
        assert not [problem for process in swarm.processes.values() for problem in unforeseen(process)]
        assert all(process.alive for process in swarm.processes.values())
        mallory.node.die()
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= began + 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_lie_of_a_leader_raises_anything_but_a_breach_of_the_protocol(seed: int) -> None:
    with SmallSwarm(3, seed=seed) as swarm:
        swarm.start_all()
        made_up, plans = MadeUp(seed), list[MemberPlan]()
        engine = swarm.processes["p1"].engine
        told = engine._told

        def heard(leader: Candidate, record: Any) -> None:
            if isinstance(record, MemberPlan):
                plans.append(record)
            told(leader, record)

        engine._told = heard  # type: ignore[method-assign]
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= 2)
        standing = engine.member.tip.standing if engine.member.tip is not None else None
        assert standing is not None and plans
        refusal = Drifted(plans[-1].digest, ("p1",))
        refusal = replace(refusal, vote=SimulatedSigner("p2").vote(refusal_message(refusal)))
        abort = Abort(plans[-1].digest, Reason.DRIFT, ("p2",), verdict=DriftVerdict(("p0", "p1", "p2"), (refusal,)))
        true: list[Any] = [*plans[-2:], abort, NeedState()]
        true += [Heartbeat(standing, 3, 5.0, 2), *engine.commits]
        for _ in range(300):
            record = true[made_up._random.randrange(len(true))]
            with swarm.processes["p1"].loop.running(), contextlib.suppress(BadMessageError):
                engine.told(Candidate("mallory", "mallory:1"), made_up.lie(record))
            swarm.for_s(0.02)
        assert not unforeseen(swarm.processes["p1"])
        began = swarm.epoch("p0")
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= began + 3)


class Claimant:
    """Says that it is further than everybody, and gives nothing."""

    def __init__(self, swarm: SmallSwarm) -> None:
        self.swarm, self.asked = swarm, 0
        refused = dict.fromkeys(("OfferRequest", "CommitsRequest", "Hello"), self._refused)
        self.node = swarm.node("mallory", Answers(AskRequest=self._asked, ObserveRequest=self._observed, **refused))

        self.node.start(self._follow())

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(RemoteError):
                hello = Hello(1, False, "mallory:1", "mallory:2", "mallory")
                async with self.node.transport.open(Candidate("p0", "p0:1"), hello) as stream:
                    while await stream.receive() is not None:
                        stream.post(Report(self._standing, 0, 0.0, 0.0, 0, 0, caught_up=True, phase="training"))
            await asyncio.sleep(0.1)

    @property
    def _standing(self) -> Standing:
        return Standing(1000, f"{self.asked:064x}", 10**9)

    async def _asked(self, stream: Any, request: Any) -> AsyncIterator[Any]:
        self.asked += 1
        yield AskReply(self._standing, True, NOBODY, "mallory:2")

    async def _refused(self, stream: Any, request: Any) -> AsyncIterator[Any]:
        raise refusal(Reason.BUSY, "not now")
        yield

    _observed = _refused


@pytest.mark.parametrize("seed", range(2))
def test_a_claim_of_a_heavier_lineage_that_nobody_shows_ends_no_peer_and_stops_training_for_a_while_only(seed: int) -> None:
    with SmallSwarm(3, seed=seed) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= 1)
        mallory = Claimant(swarm)
        for process in swarm.processes.values():
            process.engine._bootstrap = (*process.engine._bootstrap, mallory.node.candidate)
        began = swarm.epoch("p0")
        swarm.for_s(600.0)
        assert mallory.asked, "somebody believed it once"
        assert all(process.alive for process in swarm.processes.values())
        assert swarm.epoch("p0") > began + 100, "a new lineage at each claim does not make them believe it each time"


class Usurper(Claimant):
    """Shows a chain of its own, as heavy as a chain can be, which builds on the swarm's tip. Nobody else voted for it."""

    def __init__(self, swarm: SmallSwarm) -> None:
        super().__init__(swarm)
        self.shown = 0
        self._chain = list[SignedCommit]()
        self._grow()

    def _grow(self) -> None:
        process = self.swarm.processes["p0"]
        tip, me = process.engine.member.tip, self.node.candidate
        last = process.engine.commits[-1]
        assert tip is not None
        self._chain = []
        for _ in range(3):
            mine = Contribution(me.peer, 1, 0, 1 << 32, tip.lineage, 1.0)
            commit = replace(
                last.commit,
                ballot=Ballot(tip.epoch + 1, tip.lineage, 1, me.peer),
                contributions=(mine,),
                members=(me.peer,),
                total_samples=tip.total_samples + mine.weight,
                leader=me,
                codec=tip.codec,
                next_codec=tip.codec,
            )
            signer = SimulatedSigner(me.peer)
            vote = signer.vote(vote_message(commit.averages.result(commit.plan_digest)))
            self._chain.append(signer.sign(commit, (vote,)))
            tip = Tip.after(commit)

    @property
    def _standing(self) -> Standing:
        return Tip.after(self._chain[-1].commit).standing

    async def _observed(self, stream: Any, request: Any) -> AsyncIterator[Any]:
        self.shown += 1
        yield Swarm(self._standing, 0, "training", (), self.node.candidate)
        for signed in self._chain:
            yield Committed(signed)
        yield Swarm(self._standing, 0, "training", (), self.node.candidate)


def usurped(seed: int, *, forks: bool) -> SmallSwarm:
    """A swarm of six that hears of such a chain for two minutes. `forks`: it has committed at that epoch, too, meanwhile."""
    with SmallSwarm(6, seed=seed) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= 3)
        mallory = Usurper(swarm)
        if forks:
            began = swarm.epoch("p0")
            swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= began + 2)
        for process in swarm.processes.values():
            process.engine._bootstrap = (*process.engine._bootstrap, mallory.node.candidate)
        began = swarm.epoch("p0")
        swarm.for_s(120.0)
        assert mallory.shown, "somebody looked at it"
        assert all(process.alive for process in swarm.processes.values())
        assert swarm.epoch("p0") > began + 20, "nobody waited for it"
    return swarm


def left_for_it(swarm: SmallSwarm) -> bool:
    reasons = {told["reason"] for process in swarm.processes.values() for told in process.told_of("catching_up")}
    return bool(reasons - {Reason.JOINED})


@pytest.mark.parametrize("forks", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_nobody_leaves_for_a_chain_that_one_peer_signed_alone(seed: int, forks: bool) -> None:
    swarm = usurped(seed, forks=forks)
    assert not left_for_it(swarm)
    assert any(process.told_of("outvoted") for process in swarm.processes.values())


async def elsewhere(*_: Any, here: bool) -> bool:
    return not here


@pytest.mark.parametrize(
    ("forks", "rule", "broken"),
    [(True, (Fork, "mine_wins"), property(lambda fork: False)), (False, (Claims, "_is_majority"), elsewhere)],
)
def test_without_its_rule_the_heaviest_claim_would_be_followed(
    forks: bool, rule: tuple[Any, str], broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*rule, broken)
    assert left_for_it(usurped(0, forks=forks))


@pytest.mark.parametrize("banned", ["p0", "p2"])
def test_who_is_banned_is_shut_out_as_leader_and_as_follower_and_the_others_commit(
    banned: str,
) -> None:
    with SmallSwarm(4) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= 2)
        assert swarm.processes["p0"].engine.leader.active
        others = [name for name in swarm.names if name != banned]
        swarm.processes[banned].engine.bans.hear = lambda signed, source: None  # type: ignore[method-assign]  # it goes on
        told = swarm.processes[others[0]]
        with told.loop.running():
            told.engine.bans.hear(ban_list_by_the_organiser(BanList(1, (banned,))), "coordinator")
        began = max(map(swarm.epoch, others))
        swarm.until(lambda: min(map(swarm.epoch, others)) >= began + 3)
        for signed in list(swarm.processes[others[0]].engine.commits)[-2:]:
            assert banned not in signed.commit.members


class Idle(Leader):
    """Leads, and never plans."""

    def _consider(self, now: float) -> list[LeaderAction]:
        return []


class Counting(Idle):
    """Tells its followers besides that they have next to nothing."""

    @property
    def gathered_samples(self) -> int:
        return 1


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_leader_that_never_plans_is_left_and_the_others_commit(seed: int, counts: bool) -> None:
    """It sends heartbeats, which tell the truth about the samples (`counts`) or say that there are none."""
    with SmallSwarm(4, seed=seed) as swarm:
        swarm.start_all()
        swarm.until(lambda: min(map(swarm.epoch, swarm.names)) >= 3)
        engine = swarm.processes["p0"].engine
        assert engine.leader.active
        engine.leader.__class__ = Idle if counts else Counting
        others = [name for name in swarm.names if name != "p0"]
        began, at = max(map(swarm.epoch, others)), swarm.world.now
        swarm.until(lambda: min(map(swarm.epoch, others)) >= began + 3)
        waited = swarm.world.now - at
        print(f"seed {seed}: three epochs after {waited:.0f} s")
        assert waited < 3 * (ANY_S + 10)
        assert any(process.told_of("leader_idle") for process in swarm.processes.values())


def weights_of(swarm: SmallSwarm, name: str) -> bytes:
    return bytes(next(swarm.processes[name].device.model.parameters()).detach().numpy().tobytes())


def joined_beside_a_crowd(swarm: SmallSwarm) -> None:
    """p5 joins where three of five donors have agreed on other weights."""
    swarm.start_all("p0", "p1", "p2", "p3", "p4")
    swarm.until(lambda: swarm.epoch("p1") >= 1)
    swarm.start("p5")
    swarm.until(lambda: swarm.processes["p5"].told_of("caught_up"))


CROWD = {"p2": "other weights", "p3": "other weights", "p4": "other weights"}


def test_a_newcomer_has_the_bits_of_the_honest_peers_though_most_donors_give_other_weights() -> None:
    with SmallSwarm(6, liars=CROWD) as swarm:
        joined_beside_a_crowd(swarm)
        tips = lambda: {swarm.processes[name].engine.member.tip for name in ("p1", "p5")}  # noqa: E731
        began = swarm.epoch("p5")
        swarm.until(lambda: swarm.epoch("p5") > began and len(tips()) == 1)
        assert weights_of(swarm, "p5") == weights_of(swarm, "p1")


def test_without_that_rule_it_would_take_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Witnesses, "choose", Anybody.choose)
    with pytest.raises(ViolationError), SmallSwarm(6, liars=CROWD) as swarm:
        joined_beside_a_crowd(swarm)
