"""Whether a peer takes itself for reachable: what others find who dial it back. In virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from peer.epoch.reachability import ASKED, CHECK_AGAIN_S, CHECK_EVERY_S, Reachability, dial_back
from protocols.errors import RefusedError
from protocols.messages import DialBackReply, DialBackRequest
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import Stream, refusal
from tests.peer.virtual import Answers, Net, SmallSwarm

HELLO = Hello(1, False, "me:1", "me:2", "me")
REQUEST = DialBackRequest("me:1", "me:2")


def finds(problem: str) -> Answers:
    """A peer that finds this problem whenever it dials back."""

    async def answer(stream: Stream, request: Any) -> AsyncIterator[Any]:
        assert request == REQUEST
        yield DialBackReply(problem)

    return Answers(DialBackRequest=answer)


def refuses() -> Answers:
    async def answer(stream: Stream, request: Any) -> AsyncIterator[Any]:
        raise refusal(Reason.BUSY, "not now")
        yield

    return Answers(DialBackRequest=answer)


def reachability(net: Net, *others: Answers, hello: Hello = HELLO) -> tuple[Reachability, Any]:
    me = net.node("me")
    candidates = [net.node(f"other-{number}", service).candidate for number, service in enumerate(others)]
    return Reachability(me.environment(), hello, lambda: candidates), me


@pytest.mark.parametrize(
    ("problems", "reached"),
    [
        pytest.param(["", "", ""], True, id="all reach it"),
        pytest.param(["", "", "no answer"], True, id="most reach it"),
        pytest.param(["", "no answer", "no answer"], False, id="only a neighbour reaches it"),
        pytest.param(["", "no answer"], False, id="one of two reaches it"),
        pytest.param(["no answer"], False, id="nobody reaches it"),
    ],
)
def test_more_than_half_of_those_that_dial_back_must_reach_it(net: Net, problems: list[str], reached: bool) -> None:
    it, me = reachability(net, *map(finds, problems))
    hello = me.play(it.hello())
    assert hello.reachable == reached and it.is_checked
    assert (hello.address, hello.bulk_address) == (("me:1", "me:2") if reached else ("", ""))
    assert it.problem == ("" if reached else "no answer")


@pytest.mark.parametrize(("problems", "reached"), [(["", "no answer", "no answer"], True), (["no answer"], False)])
def test_an_auxiliary_peer_is_of_use_to_whoever_reaches_it(net: Net, problems: list[str], reached: bool) -> None:
    it, me = reachability(net, *map(finds, problems), hello=Hello(1, True, "me:1", "me:2", "me"))
    assert me.play(it.hello()).reachable == reached


def test_without_anybody_to_ask_it_counts_as_reachable_and_is_looked_at_again_soon(net: Net) -> None:
    it, me = reachability(net, refuses())
    assert me.play(it.hello()) == HELLO
    assert not it.is_checked
    presented: list[Hello] = []
    me.start(it.watch(presented.append))
    net.world.run_until(net.world.now + CHECK_AGAIN_S + 10)
    assert presented == [HELLO]


def test_a_peer_in_client_mode_asks_nobody(net: Net) -> None:
    other = finds("no answer")
    client = Hello(1, False, "", "", "me")
    it, me = reachability(net, other, hello=client)
    assert me.play(it.hello()) == client
    assert other.asked == []


@pytest.mark.parametrize(
    ("reached_at", "introduced", "asked"),
    [
        ("mapped:1", "mapped:1", ["me:1", "mapped:1"]),
        ("ipv6:1", "ipv6:1", ["me:1", "mapped:1", "ipv6:1"]),
        ("nowhere", "", ["me:1", "mapped:1", "ipv6:1"]),
    ],
)
def test_a_peer_is_introduced_at_the_first_of_its_addresses_that_others_reach(
    net: Net, reached_at: str, introduced: str, asked: list[str]
) -> None:
    async def answer(stream: Stream, request: Any) -> AsyncIterator[Any]:
        yield DialBackReply("" if request.address == reached_at else f"not at {request.address}")

    async def ways(hello: Hello) -> AsyncGenerator[Hello, None]:
        for address in ("me:1", "mapped:1", "ipv6:1"):
            yield replace(hello, address=address, bulk_address="bulk:2")

    other = Answers(DialBackRequest=answer)
    me, them = net.node("me"), net.node("other", other).candidate
    it = Reachability(me.environment(ways_in=ways), HELLO, lambda: [them])
    assert me.play(it.hello()).address == introduced
    assert [request.address for request in other.asked] == asked
    assert it.problem == ("" if introduced else "not at me:1; not at mapped:1; not at ipv6:1")


def test_only_some_are_asked(net: Net) -> None:
    others = [finds("") for _ in range(2 * ASKED)]
    it, me = reachability(net, *others)
    me.play(it.hello())
    assert sum(len(other.asked) for other in others) == ASKED


def test_a_suspicion_is_looked_into_at_once_and_otherwise_time_passes(net: Net) -> None:
    other = finds("")
    it, me = reachability(net, other)
    me.play(it.hello())
    presented: list[Hello] = []
    me.start(it.watch(presented.append))
    net.world.run_until(net.world.now + CHECK_EVERY_S - 10)
    assert presented == []
    with me.loop.running():
        it.suspect()
        me.run_ready()
    net.world.run_until(net.world.now + 5)
    assert presented == [HELLO]


# -- who dials back -----------------------------------------------------------------------------------------------------------


class Newcomer:
    """It listens, and has no state yet."""

    async def serve(self, stream: Stream, opening: Any) -> None:
        raise RefusedError("no state", reason=Reason.NOT_CAUGHT_UP.value, sentence="no state")

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        raise AssertionError("a dial makes no request")


@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        pytest.param(lambda machine: None, "", id="both ports"),
        pytest.param(lambda machine: machine.shut_to.update(["ann"]), "me:2 (shards): ", id="not the second"),
        pytest.param(lambda machine: setattr(machine, "reachable", False), "me:1 (calls): ", id="neither"),
    ],
)
def test_both_ports_are_dialled(net: Net, breaks: Callable[[Any], None], problem: str) -> None:
    ann = net.node("ann")
    breaks(net.node("me", Newcomer()).machine)
    reply = ann.play(dial_back(ann.transport, "me", REQUEST))
    assert reply.problem.startswith(problem) and bool(reply.problem) == bool(problem)


# -- in a swarm ---------------------------------------------------------------------------------------------------------------

pytest_swarm = pytest.mark.usefixtures("one_thread")


def forgetful(swarm: SmallSwarm, name: str) -> None:
    """Its volunteer sits behind a router and says nothing of it."""
    swarm.network.machines[name].listens = True


@pytest_swarm
def test_who_forgets_client_mode_takes_part_in_it_and_costs_no_attempt() -> None:
    with SmallSwarm(4, hidden=("p3",)) as swarm:
        forgetful(swarm, "p3")
        swarm.start_all("p0", "p1", "p2")
        swarm.until(lambda: swarm.epoch("p0") >= 1)
        swarm.start("p3")
        swarm.until(lambda: swarm.epoch("p3") >= 6)
        p3 = swarm.processes["p3"]
        assert not p3.engine.hello.reachable
        assert len(p3.told_of("unreachable")) == 1
        assert swarm.observer.retries == 0
        assert any(c.peer == "p3" for commit in swarm.observer.commits.values() for c in commit.contributions)
        (leader,) = swarm.leaders
        assert not swarm.processes[leader].engine.leader.followers["p3"].hello.reachable


@pytest_swarm
def test_whoever_is_reached_later_is_introduced_to_the_leader_again() -> None:
    with SmallSwarm(4, hidden=("p3",)) as swarm:
        forgetful(swarm, "p3")
        swarm.start_all()
        swarm.until(lambda: swarm.epoch("p3") >= 1)
        p3, (leader,) = swarm.processes["p3"], swarm.leaders
        assert Candidate("p3", "") == p3.engine.leader.me
        swarm.network.machines["p3"].reachable = True
        p3.engine.reachability.suspect()
        swarm.until(lambda: p3.told_of("reachable"))
        swarm.until(lambda: swarm.processes[leader].engine.leader.followers["p3"].hello.reachable)
        assert Candidate("p3", "p3:1") == p3.engine.leader.me
        swarm.until(lambda: swarm.network.reached_at("p1", "p3") > 0, 60.0)


@pytest_swarm
def test_when_all_who_could_lead_were_found_unreachable_they_look_again_soon() -> None:
    with SmallSwarm(4, hidden=("p3",)) as swarm:
        swarm.start_all()
        swarm.until(lambda: swarm.epoch("p3") >= 1)
        swarm.kill(swarm.processes["p0"], tell=True)  # the auxiliary peer, which stays reachable whatever others say
        able = ("p1", "p2")
        for name, other in (able, able[::-1]):
            swarm.network.machines[name].shut_to[other] += 1
            with swarm.processes[name].loop.running():
                swarm.processes[name].engine.reachability.suspect()
        swarm.until(lambda: not any(swarm.processes[name].engine.hello.reachable for name in able))
        for name in able:
            swarm.network.machines[name].shut_to.clear()
        epoch = swarm.epoch("p3")
        swarm.until(lambda: swarm.epoch("p3") >= epoch + 2, 3 * CHECK_AGAIN_S)
