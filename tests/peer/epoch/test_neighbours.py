"""How a peer finds others and says where it is, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from peer.epoch.bans import Bans
from peer.epoch.neighbours import ANNOUNCE_S, EAGER_LOOK_S, LOOK_S, Neighbours
from protocols.errors import LocalError, UnreachableError
from protocols.messages import NOBODY, AskReply, AskRequest
from protocols.round.records import Candidate, Hello, Standing
from protocols.transport.interface import News, Stream
from tests.peer.virtual import Answers, Net

STANDING = Standing(9, "d" * 64, 90)
HELLO = Hello(1, False, "me:1", "me:2", "me")
BOB = Candidate("bob", "bob:1")


class Directory:
    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.named: list[Candidate] = []  # in reply to an announcement
        self.there: list[Candidate] = []
        self.problem: Exception | None = None
        self.announced: list[float] = []
        self.hellos: list[Hello] = []
        self.looked: list[float] = []

    async def announce(self, hello: Hello) -> News:
        self.hellos.append(hello)
        self.announced.append(self._clock())
        if self.problem is not None:
            raise self.problem
        return News(tuple(self.named))

    async def peers(self) -> list[Candidate]:
        self.looked.append(self._clock())
        if self.problem is not None:
            raise self.problem
        return self.there

    def bar(self, peers: frozenset[str]) -> None:
        self.barred = peers


class Me:
    def __init__(self, net: Net) -> None:
        self.node = net.node("me")
        self.directory = Directory(self.node.loop.time)
        self.hello = HELLO
        self.found: list[list[str]] = []
        self.heard: list[Standing] = []
        environment = self.node.environment(directory=self.directory)
        self.bans = Bans(environment, lambda: [], self.node.told)
        neighbours = Neighbours(
            environment,
            lambda: self.hello,
            found=lambda others: self.found.append([candidate.peer for candidate in others]),
            heard=lambda standing, peer: self.heard.append(standing),
            bans=self.bans,
        )
        self.running = self.node.start(neighbours.run())


async def stands(stream: Stream, request: AskRequest) -> AsyncIterator[Any]:
    yield AskReply(STANDING, True, NOBODY, "")


@pytest.fixture
def me(net: Net) -> Me:
    return Me(net)


def test_another_address_is_announced_at_the_next_look(net: Net, me: Me) -> None:
    net.node("bob", Answers(AskRequest=stands))
    me.directory.there = [BOB]
    net.world.run_until(1.0)
    me.hello = Hello(1, False, "new:1", "new:2", "me")
    net.world.run_until(1.0 + LOOK_S)
    assert me.directory.hellos == [HELLO, me.hello]


def test_others_are_looked_for_eagerly_while_there_are_none_and_slowly_after_that(net: Net, me: Me) -> None:
    net.world.run_until(4.9)
    assert len(me.directory.looked) == pytest.approx(4.9 / EAGER_LOOK_S, abs=1)
    net.node("bob", Answers(AskRequest=stands))
    me.directory.there = [BOB]
    net.world.run_until(5.0 + 10 * LOOK_S)
    assert me.found[0] == [] and me.found[-1] == ["bob"]
    assert len([at for at in me.directory.looked if at > 5.0]) == pytest.approx(10, abs=1)


def test_a_random_one_of_them_is_asked_where_it_stands(net: Net, me: Me) -> None:
    bob = Answers(AskRequest=stands)
    net.node("bob", bob)
    me.directory.there = [BOB, Candidate("gone", "gone:1")]
    net.world.run_until(200.0)
    assert me.heard and set(me.heard) == {STANDING}
    assert len(me.heard) == len(bob.asked) < len(me.found), "whoever does not answer is passed over in silence"


def test_this_peer_itself_is_no_neighbour(net: Net, me: Me) -> None:
    me.directory.there = [Candidate("me", "me:1")]
    net.world.run_until(2.0)
    assert me.found[-1] == [] and len(me.directory.looked) > 2, "it goes on looking eagerly"


def test_where_this_peer_is_it_says_at_once_and_again_before_that_expires(net: Net, me: Me) -> None:
    net.world.run_until(3 * ANNOUNCE_S + LOOK_S)
    assert me.directory.announced[0] == 0.0
    assert len(me.directory.announced) == 4
    gaps = [later - earlier for earlier, later in zip(me.directory.announced, me.directory.announced[1:], strict=False)]
    assert all(ANNOUNCE_S <= gap <= ANNOUNCE_S + LOOK_S for gap in gaps)


def test_those_that_the_coordinator_names_are_found_without_the_directory_of_all(net: Net, me: Me) -> None:
    """Between two announcements they stay known."""
    me.directory.named = [BOB]
    net.world.run_until(4 * LOOK_S)
    assert len(me.found) > 2 and all(others == ["bob"] for others in me.found)


@pytest.mark.parametrize(
    "problem",
    [UnreachableError("no node answers"), LocalError("the discovery process has ended"), ValueError("what no check foresaw")],
)
def test_a_directory_that_fails_is_logged_and_asked_again(
    net: Net, me: Me, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    me.directory.problem = problem
    net.world.run_until(3.0)
    assert not me.running.done() and me.found == []
    assert str(problem) in caplog.text
    me.directory.problem, me.directory.there = None, [BOB]
    net.world.run_until(5.0)
    assert me.found[-1] == ["bob"]
