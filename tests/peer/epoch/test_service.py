"""What a peer answers to each call and request. The peers are whole and in virtual time; the caller is a stranger to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from peer.epoch import service
from peer.epoch.engine import HEARTBEAT_S
from peer.epoch.observers import MAX_OBSERVERS_OF_PEER
from peer.epoch.round_traffic import PLAN_ARRIVES_S
from protocols.errors import RefusedError, RemoteError, UnreachableError
from protocols.messages import (
    AskReply,
    AskRequest,
    CommitsRequest,
    DialBackRequest,
    Heartbeat,
    Leave,
    Manifest,
    NotLeader,
    ObserveRequest,
    OfferRequest,
    Probe,
    ReduceOpen,
    SnapshotRequest,
)
from protocols.observations import Committed, Seen, Swarm
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello, Standing
from protocols.transport.frames import Kind
from protocols.transport.interface import call
from tests.peer.virtual import Node, SmallSwarm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def swarm() -> Iterator[SmallSwarm]:
    """Three peers that have committed an epoch; p0 leads."""
    with SmallSwarm(3) as it:
        it.start_all()
        it.until(lambda: min(map(it.epoch, it.names)) >= 1)
        yield it


@pytest.fixture
def joining() -> Iterator[SmallSwarm]:
    """A peer that looks for state which nobody has."""
    with SmallSwarm(3) as it:
        it.start("p1")
        it.for_s(2.0)
        yield it


def at(name: str) -> Candidate:
    return Candidate(name, f"{name}:1")


def hello(incarnation: int = 1) -> Hello:
    return Hello(incarnation, False, "", "", "a stranger")


async def answer(node: Node, whom: str, opening: Any) -> Any:
    return await call(node.transport, at(whom), opening, 30.0)


def refused(swarm: SmallSwarm, whom: str, opening: Any) -> str:
    """The reason for which `whom` says no."""
    with pytest.raises(RefusedError) as error:
        swarm.node("zoe").play(answer(swarm.node("zoe"), whom, opening))
    return error.value.reason


class Follower:
    """A stranger that follows p0: what it hears, until its stream ends."""

    def __init__(self, swarm: SmallSwarm, incarnation: int = 1, node: Node | None = None) -> None:
        self.node = node or swarm.node("zoe", reachable=False)
        self.heard: list[Any] = []
        self.ended: RemoteError | bool | None = None
        self.said: list[Any] = []
        self.node.start(self._follow(hello(incarnation)))

    async def _follow(self, opening: Hello) -> None:
        try:
            async with self.node.transport.open(at("p0"), opening) as self.stream:
                while (record := await self.stream.receive()) is not None:
                    self.heard.append(record)
            self.ended = True
        except RemoteError as error:
            self.ended = error


# -- following ----------------------------------------------------------------------------------------------------------------


def test_a_peer_that_does_not_lead_names_the_leader_that_it_follows(swarm: SmallSwarm) -> None:
    node = swarm.node("zoe")
    assert node.play(answer(node, "p1", hello())) == NotLeader("p0", "p0:1", able=True)


def test_a_peer_without_a_leader_says_that_it_follows_nobody(joining: SmallSwarm) -> None:
    node = joining.node("zoe")
    found = node.play(answer(node, "p1", hello()))
    assert isinstance(found, NotLeader) and (found.follows, found.address) == ("", "")


def test_a_follower_hears_how_the_swarm_stands_twice_a_second(swarm: SmallSwarm) -> None:
    zoe = Follower(swarm)
    swarm.for_s(3 * HEARTBEAT_S)
    beats = [record for record in zoe.heard if isinstance(record, Heartbeat)]
    assert 2 <= len(beats) <= 4
    assert swarm.processes["p0"].engine.beat in beats
    assert zoe.ended is None


def test_a_newer_process_of_a_follower_takes_its_place_and_an_older_one_is_refused(swarm: SmallSwarm) -> None:
    first = Follower(swarm, incarnation=5)
    swarm.for_s(1.0)
    older = Follower(swarm, incarnation=4, node=first.node)
    swarm.for_s(1.0)
    assert isinstance(older.ended, RefusedError) and older.ended.reason == Reason.OTHER_INCARNATION.value
    assert first.ended is None
    newer = Follower(swarm, incarnation=6, node=first.node)
    swarm.for_s(1.0)
    assert first.ended is True and newer.ended is None
    assert swarm.processes["p0"].engine.leader.followers["zoe"].hello.incarnation == 6


@pytest.mark.parametrize("politely", [True, False])
def test_a_follower_that_leaves_is_told_apart_from_one_whose_link_breaks(swarm: SmallSwarm, politely: bool) -> None:
    leader = swarm.processes["p0"].engine
    with leader.observers.subscribe("ann") as observer:
        zoe = Follower(swarm)
        swarm.for_s(1.0)
        if politely:
            zoe.node.loop.call_soon(zoe.stream.post, Leave())
        else:
            zoe.node.die()
        swarm.for_s(1.0)
        seen = []
        while not observer.inbox.empty():
            observation = observer.inbox.get_nowait()
            if isinstance(observation, Seen) and observation.peer.peer == "zoe":
                seen.append((observation.present, observation.reason))
    assert seen == [(True, ""), (False, (Reason.LEFT if politely else Reason.CONNECTION_LOST).value)]
    assert zoe.ended is (True if politely else None), "the leader ends the stream once it has heard"
    assert "zoe" not in leader.leader.followers


def test_a_follower_that_says_nothing_is_taken_for_dead_and_let_go(swarm: SmallSwarm) -> None:
    zoe = Follower(swarm)
    swarm.until(lambda: zoe.ended is not None, 5.0)
    assert "zoe" not in swarm.processes["p0"].engine.leader.followers


# -- where it stands ------------------------------------------------------------------------------------------------------------


def test_a_peer_says_where_it_stands_and_whom_it_follows(swarm: SmallSwarm) -> None:
    node = swarm.node("zoe")
    reply = node.play(answer(node, "p1", AskRequest()))
    assert isinstance(reply, AskReply)
    assert reply.caught_up and reply.follows == at("p0") and reply.bulk_address == "p1:1"
    assert reply.standing.epoch >= 1
    assert node.play(answer(node, "p0", AskRequest())).follows == at("p0"), "a leader follows itself"


@pytest.mark.parametrize("opening", [AskRequest(), OfferRequest("", None)], ids=lambda it: type(it).__name__)
def test_a_peer_without_state_says_so(joining: SmallSwarm, opening: Any) -> None:
    assert refused(joining, "p1", opening) == Reason.NOT_CAUGHT_UP.value


def test_a_peer_that_is_not_as_far_as_asked_for_offers_nothing(swarm: SmallSwarm) -> None:
    assert refused(swarm, "p1", OfferRequest("", Standing(9000, "f" * 64, 10**9))) == Reason.BEHIND.value


def test_a_peer_offers_a_snapshot_and_sends_the_chunks_that_are_asked_for(swarm: SmallSwarm) -> None:
    node = swarm.node("zoe")

    async def fetch() -> tuple[Manifest, list[Any]]:
        manifest = await answer(node, "p1", OfferRequest("", None))
        async with node.transport.open(at("p1"), SnapshotRequest(manifest.digest, 1, 10**6)) as stream:
            chunks = []
            while (record := await stream.receive()) is not None:
                chunks.append(record)
        return manifest, chunks

    manifest, chunks = node.play(fetch())
    assert [chunk.offset for chunk in chunks] == [
        index * manifest.chunk_bytes for index in range(1, len(manifest.chunk_sha256))
    ], "those that there are, and no more"
    assert 0 < len(chunks[-1].data) == manifest.size_of(len(manifest.chunk_sha256) - 1)


def test_a_snapshot_that_is_gone_is_refused(swarm: SmallSwarm) -> None:
    assert refused(swarm, "p1", SnapshotRequest("f" * 64, 0, 1)) == Reason.SUPERSEDED.value


def test_commits_after_a_lineage_that_is_not_kept_are_refused(swarm: SmallSwarm) -> None:
    assert refused(swarm, "p1", CommitsRequest("f" * 64)) == Reason.OTHER_LINEAGE.value


def test_state_that_nobody_asked_for_breaks_the_protocol(swarm: SmallSwarm) -> None:
    manifest = Manifest(9, "c" * 64, 4, 4, (b"x" * 32,))
    assert refused(swarm, "p1", manifest) == Reason.BAD_MESSAGE.value


def test_a_call_that_opens_with_something_else_breaks_the_protocol(swarm: SmallSwarm) -> None:
    assert refused(swarm, "p1", Probe(up=True)) == Reason.BAD_MESSAGE.value


# -- observing ------------------------------------------------------------------------------------------------------------------


def test_an_observer_that_looks_once_is_told_how_the_swarm_stands_and_the_call_ends(swarm: SmallSwarm) -> None:
    node = swarm.node("zoe")

    async def look() -> list[Any]:
        async with node.transport.open(at("p0"), ObserveRequest(0, once=True)) as stream:
            return [await stream.receive(), await stream.receive()]

    view, end = node.play(look())
    assert isinstance(view, Swarm) and end is None
    assert {peer.peer: peer.role for peer in view.peers} == {"p0": "auxiliary", "p1": "contributor", "p2": "contributor"}
    assert [peer.peer for peer in view.peers if peer.is_leader] == ["p0"] and view.follows == at("p0")


@pytest.mark.parametrize("after", [0, 2])
def test_an_observer_is_told_the_commits_on_record_and_then_what_happens(swarm: SmallSwarm, after: int) -> None:
    swarm.until(lambda: swarm.epoch("p0") >= 3)
    node, told = swarm.node("zoe"), list[Any]()

    async def watch() -> None:
        async with node.transport.open(at("p0"), ObserveRequest(after, once=False)) as stream:
            while True:
                told.append(await stream.receive())

    node.start(watch())
    swarm.until(lambda: swarm.epoch("p0") >= 6)
    swarm.for_s(1.0)
    epochs = [it.signed_commit.commit.ballot.epoch for it in told if isinstance(it, Committed)]
    assert isinstance(told[0], Swarm)
    assert sorted(set(epochs)) == list(range(after + 1, max(epochs) + 1)) and max(epochs) >= 6
    assert any(it.attempts for it in told if isinstance(it, Committed)), "the leader says how many attempts it took"


def test_an_observer_that_goes_away_leaves_nothing_behind(swarm: SmallSwarm) -> None:
    node, engine = swarm.node("zoe"), swarm.processes["p0"].engine
    node.start(answer_for_ever(node))
    swarm.for_s(1.0)
    assert len(engine.observers._observers) == 1
    node.die()
    swarm.for_s(2 * HEARTBEAT_S + 1.0)
    assert not engine.observers._observers


def test_an_observer_makes_room_for_the_fifth_of_the_same_peer(swarm: SmallSwarm) -> None:
    node, other, ended = swarm.node("zoe"), swarm.node("yan"), list[str]()

    async def observe() -> None:
        try:
            await answer_for_ever(node)
        except RefusedError as error:
            ended.append(error.reason)

    other.start(answer_for_ever(other))
    for number in range(MAX_OBSERVERS_OF_PEER + 1):
        assert ended == [], f"{number} may observe at once"
        node.start(observe())
        swarm.for_s(1.0)
    assert ended == [Reason.BUSY.value]
    assert len(swarm.processes["p0"].engine.observers._observers) == MAX_OBSERVERS_OF_PEER + 1


def test_a_leader_takes_no_more_followers_than_a_run_has_peers(swarm: SmallSwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_FOLLOWERS", 3)  # p1 and p2 follow
    zoe = Follower(swarm)
    yan = Follower(swarm, node=swarm.node("yan", reachable=False))
    swarm.for_s(1.0)
    assert zoe.ended is None and zoe.heard
    assert isinstance(yan.ended, RefusedError) and yan.ended.reason == Reason.BUSY.value


def test_a_follower_that_does_not_read_is_gone_with_that_reason(swarm: SmallSwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    zoe, engine = Follower(swarm), swarm.processes["p0"].engine
    swarm.for_s(1.0)
    (stream,) = (it.stream for peer, it in engine.followers._streams.items() if peer == "zoe")
    left = list[Any]()
    monkeypatch.setattr(engine.observers, "left", lambda peer, hello, reason: left.append((peer, reason)))
    monkeypatch.setattr(stream, "post", lambda record: False)
    swarm.until(lambda: zoe.ended is not None)
    assert left == [("zoe", Reason.UNREAD)] and "zoe" not in engine.leader.followers


async def answer_for_ever(node: Node) -> None:
    async with node.transport.open(at("p0"), ObserveRequest(0, once=False)) as stream:
        while True:
            await stream.receive()


# -- what is costly ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opening", "most"),
    [(CommitsRequest(""), service.MAX_GIFTS_OF_PEER), (DialBackRequest("nobody:1", "nobody:2"), service.MAX_DIALS_OF_PEER)],
    ids=["commits", "dials"],
)
def test_a_peer_has_few_costly_things_done_at_a_time(swarm: SmallSwarm, opening: Any, most: int) -> None:
    if isinstance(opening, CommitsRequest):
        kept = swarm.processes["p0"].engine.kept_state._commits
        opening = CommitsRequest(kept[0].signed.commit.ballot.parent)
        swarm.processes["p0"].engine.bandwidth.up._limit.bytes_s = 1.0  # so that none ends soon
    node, reasons = swarm.node("zoe"), list[str]()

    async def ask() -> None:
        try:
            async with node.transport.open(at("p0"), opening) as stream:
                while await stream.receive() is not None:
                    pass
        except RefusedError as error:
            reasons.append(error.reason)

    for _ in range(most + 1):
        node.start(ask())
    swarm.for_s(0.5)
    assert reasons == [Reason.BUSY.value]


def test_a_snapshot_that_is_dropped_is_not_kept_for_who_reads_slowly(swarm: SmallSwarm) -> None:
    node, engine = swarm.node("zoe"), swarm.processes["p0"].engine
    offer = node.play(answer(node, "p0", OfferRequest("", None)))

    async def read() -> str:
        async with node.transport.open(at("p0"), SnapshotRequest(offer.digest, 0, len(offer.chunk_sha256))) as stream:
            await stream.receive()
            engine.kept_state._held.clear()
            try:
                while await stream.receive() is not None:
                    pass
            except RefusedError as error:
                return error.reason
        return ""

    engine.bandwidth.up._limit.bytes_s = 10e3
    assert len(offer.chunk_sha256) > 2
    assert node.play(read()) == Reason.SUPERSEDED.value


# -- bulk -----------------------------------------------------------------------------------------------------------------------


async def opened(node: Node, whom: str, request: ReduceOpen) -> None:
    async with node.transport.bulk(whom, f"{whom}:1") as stream:
        await stream.send_record(Kind.OPEN, request)
        assert await stream.header() == (Kind.OPENED, 0)
        await stream.header()


def test_a_contribution_to_an_attempt_that_is_over_is_refused_as_superseded(swarm: SmallSwarm) -> None:
    node, began = swarm.node("zoe"), swarm.world.now
    with pytest.raises(RefusedError) as error:
        node.play(opened(node, "p0", ReduceOpen("ab" * 32, 0, None)))
    assert error.value.reason == Reason.SUPERSEDED.value
    assert swarm.world.now - began < PLAN_ARRIVES_S + 1


@pytest.mark.parametrize(("who", "reason"), [("zoe", Reason.NOT_A_MEMBER), ("p1", Reason.BUSY)])
def test_a_stranger_and_a_member_that_comes_twice_are_refused(swarm: SmallSwarm, who: str, reason: Reason) -> None:
    traffic = swarm.processes["p0"].engine.round_traffic
    swarm.until(lambda: any("p1" in shard._serving for shard in traffic._served.values()))
    (digest, index), shard = next(iter(traffic._served.items()))
    caller: Any = swarm.node("zoe") if who == "zoe" else swarm.processes["p1"]
    task = caller.loop.create_task(opened(caller, "p0", ReduceOpen(digest, index, None)))
    swarm.until(task.done)
    error = task.exception()
    assert isinstance(error, RefusedError) and error.reason == reason.value
    assert who == "p1" or who not in shard.plan.members


def test_what_is_no_request_ends_the_connection(swarm: SmallSwarm) -> None:
    node = swarm.node("zoe")

    async def nonsense() -> None:
        async with node.transport.bulk("p0", "p0:1") as stream:
            await stream.send(Kind.DONE)
            await stream.header()

    with pytest.raises(UnreachableError):
        node.play(nonsense())
    assert swarm.processes["p0"].alive
