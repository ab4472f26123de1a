"""Which leader a peer follows, and the loop that finds it, in virtual time. The leaders do what each test says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from peer.epoch.following import Following
from peer.epoch.leader_link import FIRST_ANSWER_S
from protocols.errors import BadMessageError, RefusedError
from protocols.messages import Heartbeat, Leave, NotLeader
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, Hello, Standing, Tip
from protocols.round.succession import Succession
from protocols.transport.interface import Stream, refusal
from tests.peer.virtual import Net, Node

BEAT = Heartbeat(Standing(3, "c" * 64, 30), 0, 0.0, 1)
LEADERS = ("ann", "bob", "cid")


class Leads:
    """A peer that beats for its followers twice a second, unless `answer` says otherwise."""

    def __init__(self, net: Net, name: str) -> None:
        self.node: Node = net.node(name, self)
        self.hellos: list[Hello] = []
        self.heard: list[Any] = []
        self.mute = False  # beats no more on the streams that are open
        self.answer: Any = None  # instead of beats: a record, an error to raise, or "silence"

    async def serve(self, stream: Stream, opening: Hello) -> None:
        self.hellos.append(opening)
        listening = asyncio.get_running_loop().create_task(self._listen(stream))
        try:
            if isinstance(self.answer, Exception):
                raise self.answer
            if self.answer == "silence":
                await asyncio.Event().wait()
            if self.answer is not None:
                await stream.send(self.answer)
                return
            while not any(isinstance(record, Leave) for record in self.heard):
                if self.mute:
                    await asyncio.Event().wait()
                await stream.send(BEAT)
                await asyncio.sleep(0.5)
        finally:
            listening.cancel()

    async def _listen(self, stream: Stream) -> None:
        while (record := await stream.receive()) is not None:
            self.heard.append(record)

    async def serve_bulk(self, *_: Any) -> None:
        raise AssertionError


class Participant:
    """The peer that follows."""

    def __init__(self, net: Net, *, order: tuple[str, ...] = LEADERS, reachable: bool = False) -> None:
        self.node = net.node("me", reachable=reachable)
        self.has_state, self.able_to_lead, self.leaves = True, reachable, False
        self.leading = False
        self.reports = 0
        self.told_by: list[str] = []
        self.refuses = ""  # the leader whose every record breaks the protocol
        succession = Succession(self.node.candidate)
        named = [Candidate(name, f"{name}:1" if name != "me" else self.node.candidate.address) for name in order]
        succession.follow(Tip(3, "c" * 64, 30, named[0], "fp64", succession=tuple(named[1:])))
        succession.know([candidate for candidate in named if candidate.peer != "me"])
        hello = Hello(1, False, self.node.candidate.address, self.node.candidate.address, "me")
        self.following = Following("me", self, succession, self.node.transport, lambda: hello, self.node.loop.time)
        self.running = self.node.start(self.following.run())

    def take_over(self) -> None:
        self.leading = True

    def step_down(self) -> None:
        self.leading = False

    def told(self, leader: Candidate, record: Any) -> None:
        if leader.peer == self.refuses:
            raise BadMessageError("a leader does not send that")
        self.told_by.append(leader.peer)

    def report(self) -> None:
        self.reports += 1

    def events(self, event: str, /, **fields: Any) -> None:
        self.node.told(event, **fields)

    @property
    def leader(self) -> str:
        return self.following.leader.peer if self.following.leader is not None else ""


@pytest.fixture
def leaders(net: Net) -> dict[str, Leads]:
    return {name: Leads(net, name) for name in LEADERS}


def test_the_leader_that_the_commit_names_is_followed_and_told_how_far_this_peer_is(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    assert me.leader == "ann" and set(me.told_by) == {"ann"} and me.reports == 1
    me.node.loop.call_soon(me.following.send, BEAT, "ann")
    me.node.loop.call_soon(me.following.send, BEAT, "bob")
    net.world.run_until(4.0)
    assert leaders["ann"].heard == [BEAT], "what is meant for another leader is dropped"
    assert leaders["bob"].hellos == []


def test_a_leader_that_dies_is_lost_and_the_next_in_order_is_followed(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    leaders["ann"].node.die()
    net.world.run_until(6.0)
    assert me.leader == "bob"
    assert me.node.told_of("leader_lost") == [{"peer": "ann", "reason": Reason.CONNECTION_LOST}]


def test_a_leader_that_loses_power_is_noticed_by_its_silence(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    leaders["ann"].node.die(tell=False)
    net.world.run_until(3.0 + DETECTION_S + 1.0)
    assert me.leader == "bob"
    assert me.node.told_of("leader_lost") == [{"peer": "ann", "reason": Reason.SILENT}]


def test_a_leader_that_speaks_and_does_not_read_is_left(
    net: Net, leaders: dict[str, Leads], monkeypatch: pytest.MonkeyPatch
) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    stream = me.following._link._stream
    assert stream is not None
    monkeypatch.setattr(stream, "post", lambda record: False)
    me.node.loop.call_soon(me.following.send, BEAT)
    net.world.run_until(5.0)
    assert me.leader == "bob"
    assert me.node.told_of("leader_lost") == [{"peer": "ann", "reason": Reason.UNREAD}]


@pytest.mark.parametrize("moved", [True, False])
def test_a_stream_that_falls_silent_after_a_move_is_opened_again_and_no_leader_is_lost(
    net: Net, leaders: dict[str, Leads], moved: bool
) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    if moved:
        me.following.moved()
    leaders["ann"].mute = True
    net.world.run_until(4.0)
    leaders["ann"].mute = False
    net.world.run_until(3.0 + DETECTION_S + 1.0)
    assert me.leader == ("ann" if moved else "bob")
    assert bool(me.node.told_of("leader_lost")) != moved
    assert len(leaders["ann"].hellos) == (2 if moved else 1)


def test_a_move_excuses_one_silence_only(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    me.following.moved()
    leaders["ann"].mute = True
    net.world.run_until(3.0 + DETECTION_S + FIRST_ANSWER_S + 2.0)
    assert me.leader == "bob"


def test_a_leader_that_goes_when_this_peer_leaves_is_no_loss(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    me.leaves = True
    leaders["ann"].node.die()
    net.world.run_until(6.0)
    assert me.node.told_of("leader_lost") == []


def test_a_peer_that_never_answers_is_given_up_and_is_no_leader_that_was_lost(net: Net, leaders: dict[str, Leads]) -> None:
    leaders["ann"].answer = "silence"
    me = Participant(net)
    net.world.run_until(FIRST_ANSWER_S - 0.5)
    assert me.leader == ""
    net.world.run_until(FIRST_ANSWER_S + 2.0)
    assert me.leader == "bob" and me.node.told_of("leader_lost") == []


def test_a_peer_that_does_not_lead_is_passed_over(net: Net, leaders: dict[str, Leads]) -> None:
    leaders["ann"].answer = NotLeader("bob", "bob:1", able=False)
    me = Participant(net)
    net.world.run_until(2.0)
    assert me.leader == "bob"
    assert len(leaders["ann"].hellos) == 1


def test_a_peer_that_may_yet_find_that_it_is_to_lead_is_asked_again_for_a_while(net: Net, leaders: dict[str, Leads]) -> None:
    leaders["ann"].answer = NotLeader("", "", able=True)
    me = Participant(net)
    net.world.run_until(1.0)
    assert me.leader == "" and len(leaders["ann"].hellos) > 1
    net.world.run_until(DETECTION_S + 1.0)
    assert me.leader == "bob"


def test_when_all_were_dialled_in_vain_it_says_once_that_the_swarm_pauses(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    for leader in leaders.values():
        leader.node.die()
    net.world.run_until(30.0)
    assert me.node.told_of("paused") == [{"reason": Reason.NO_REACHABLE_PEER}]
    assert me.leader == ""


def test_after_a_pause_whoever_comes_back_is_followed_and_the_next_pause_is_told_again(net: Net) -> None:
    Leads(net, "ann").node.die()
    me = Participant(net, order=("ann",))
    net.world.run_until(5.0)
    assert len(me.node.told_of("paused")) == 1
    ann = Leads(net, "ann")
    net.world.run_until(10.0)
    assert me.leader == "ann"
    ann.node.die()
    net.world.run_until(20.0)
    assert len(me.node.told_of("paused")) == 2


def test_a_reachable_peer_whose_turn_it_is_leads_and_steps_down_for_nobody_below_it(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net, order=("me", *LEADERS), reachable=True)
    net.world.run_until(5.0)
    assert me.leading and me.leader == "me"
    assert all(leader.hellos == [] for leader in leaders.values())


def test_it_leads_when_those_before_it_are_gone(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net, order=("ann", "me", "bob"), reachable=True)
    net.world.run_until(3.0)
    assert not me.leading
    leaders["ann"].node.die()
    net.world.run_until(6.0)
    assert me.leading and me.leader == "me"


def test_a_peer_whose_turn_it_is_does_not_lead_before_it_can(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net, order=("me", *LEADERS), reachable=True)
    me.able_to_lead = False
    net.world.run_until(3.0)
    assert not me.leading and me.leader == ""
    me.able_to_lead = True
    net.world.run_until(4.0)
    assert me.leading


def test_without_state_nobody_is_followed(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    me.has_state = False
    net.world.run_until(3.0)
    assert all(leader.hellos == [] for leader in leaders.values())


def test_a_leader_that_breaks_the_protocol_is_left(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    me.refuses = "ann"
    net.world.run_until(3.0)
    assert me.leader == "bob"
    assert me.node.told_of("leader_lost")[0] == {"peer": "ann", "reason": Reason.BAD_CHUNK}


def test_a_leader_of_another_run_ends_the_peer(net: Net, leaders: dict[str, Leads]) -> None:
    leaders["ann"].answer = refusal(Reason.OTHER_RUN, "this peer trains another run")
    me = Participant(net)
    net.world.run_until(2.0)
    assert isinstance(me.running.exception(), RefusedError)


def test_a_goodbye_is_heard_before_the_stream_ends(net: Net, leaders: dict[str, Leads]) -> None:
    me = Participant(net)
    net.world.run_until(3.0)
    me.leaves = True
    me.node.play(me.following.say_goodbye())
    assert leaders["ann"].heard == [Leave()]
    assert net.world.now < 3.0 + DETECTION_S
