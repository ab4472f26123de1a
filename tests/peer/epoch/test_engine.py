"""In which order the engine acts, what it reports, whom it believes, and how it leaves. Peers are whole, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from peer.epoch.engine import Engine
from protocols.committed_rate import RECENT_EPOCHS
from protocols.errors import BadMessageError
from protocols.messages import Abort, AskRequest, Chunk, Heartbeat, PushReply
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.member import Phase
from protocols.round.plans import MemberPlan, Plan, member_plan_of
from protocols.round.records import Ballot, Candidate, Hello, Shard, Standing
from tests.peer.histories import SETTINGS, Stand
from tests.peer.virtual import JobsAtOnce, Net, SmallSwarm

pytestmark = pytest.mark.usefixtures("one_thread")
LEADER = Candidate("p0", "p0:1")


@pytest.fixture
def swarm() -> Iterator[SmallSwarm]:
    """Four peers that have committed an epoch; p0 leads, p3 accepts no connections."""
    with SmallSwarm(4, hidden=("p3",)) as it:
        it.start_all()
        it.until(lambda: min(map(it.epoch, it.names)) >= 1)
        yield it


# -- actions ----------------------------------------------------------------------------------------------------------------


class Recording(Engine):
    """Keeps what it was told to do; some of it leads to more."""

    leads_to: dict[str, list[str]]
    acted: list[str]

    def _act(self, action: Any) -> None:
        self.acted.append(f"{action} begins")
        self.perform(self.leads_to.get(action, []))
        self.acted.append(f"{action} ends")


def test_actions_that_follow_from_others_are_carried_out_behind_all_that_were_there(net: Net) -> None:
    node, stand = net.node("me"), Stand("me")
    training: Any = SimpleNamespace(replica=stand.replica, jobs=JobsAtOnce())
    engine = Recording(Hello(1, False, "", "", "me"), node.environment(), SETTINGS, training)
    engine.acted, engine.leads_to = [], {"first": ["third", "fourth"], "third": ["fifth"]}
    engine.perform(["first", "second"])
    order = [said.split()[0] for said in engine.acted if said.endswith("begins")]
    assert order == ["first", "second", "third", "fourth", "fifth"]
    assert [said.split()[0] for said in engine.acted[::2]] == [said.split()[0] for said in engine.acted[1::2]], "one at a time"


def test_an_action_that_fails_does_not_keep_the_next_from_being_carried_out(net: Net) -> None:
    class Fails(Recording):
        def _act(self, action: Any) -> None:
            if action == "bad":
                raise ZeroDivisionError
            super()._act(action)

    node, stand = net.node("me"), Stand("me")
    training: Any = SimpleNamespace(replica=stand.replica, jobs=JobsAtOnce())
    engine = Fails(Hello(1, False, "", "", "me"), node.environment(), SETTINGS, training)
    engine.acted, engine.leads_to = [], {}
    with pytest.raises(ZeroDivisionError):
        engine.perform(["bad"])
    engine.perform(["good"])
    assert engine.acted == ["good begins", "good ends"]


# -- reports ----------------------------------------------------------------------------------------------------------------


def test_every_peer_reports_to_the_leader_which_reports_to_itself(swarm: SmallSwarm) -> None:
    leader = swarm.processes["p0"].engine.leader
    assert leader.followers.keys() == set(swarm.names)
    swarm.until(lambda: all(follower.report is not None and follower.report.caught_up for follower in leader.followers.values()))
    report = leader.followers["p1"].report
    assert report is not None and report.samples_per_second == pytest.approx(swarm.processes["p1"]._rate[0])
    auxiliary = leader.followers["p0"].report
    assert auxiliary is not None and auxiliary.samples == 0


def test_drawn_samples_are_reported_until_they_are_frozen(swarm: SmallSwarm) -> None:
    engine = swarm.processes["p1"].engine
    swarm.until(lambda: engine.member.phase is Phase.TRAINING and engine.accumulated > 0)
    assert engine.samples == engine.accumulated
    swarm.until(lambda: engine.member.contribution is not None)
    assert engine.member.contribution is not None
    assert engine.samples == engine.member.contribution.weight


def test_a_range_that_is_told_after_its_freeze_counts_nothing_twice(swarm: SmallSwarm) -> None:
    """The training thread tells of a micro-batch, and freezes it, before the network's loop hears of either."""
    engine = swarm.processes["p1"].engine
    swarm.until(lambda: engine.member.phase is Phase.TRAINING and engine.accumulated > 0)
    first, end = engine._accumulating
    engine._accumulates(end, end)  # the freeze
    engine._accumulates(first, end)  # what was told before it
    assert engine.accumulated == 0
    engine._accumulates(end, end + 3)
    assert engine.accumulated == 3


# -- leading ----------------------------------------------------------------------------------------------------------------


def test_when_the_leader_dies_the_next_in_order_takes_over_and_the_swarm_commits(swarm: SmallSwarm) -> None:
    before = swarm.epoch("p1")
    swarm.kill(swarm.processes["p0"], tell=True)
    swarm.until(lambda: swarm.leaders)
    (leader,) = swarm.leaders
    assert leader in ("p1", "p2"), "p3 accepts no connections"
    assert swarm.processes[leader].told_of("leading")
    swarm.until(lambda: all(swarm.epoch(name) > before + 1 for name in ("p1", "p2", "p3")))
    assert swarm.leaders == [leader], "the order is stable"


def test_of_two_leaders_one_steps_down_and_lets_its_followers_go(swarm: SmallSwarm) -> None:
    """p2 is cut off with p3, and leads it; when the line is whole again, one of the two leaders has fewer followers."""
    ours, theirs = ("p0", "p1"), ("p2", "p3")
    swarm.block([(a, b) for a in ours for b in theirs], both=True, seconds=12.0)
    swarm.until(lambda: set(swarm.leaders) == {"p0", "p2"}, 11.0)
    swarm.until(lambda: len(swarm.leaders) == 1)
    swarm.until(lambda: len({process.engine.following for process in swarm.alive}) == 1)
    (leader,) = swarm.leaders
    loser = swarm.processes[({"p0", "p2"} - {leader}).pop()].engine
    assert len(loser.followers) == 0 and not loser.leader.followers
    swarm.until(lambda: len({process.engine.member.tip for process in swarm.alive}) == 1, 200.0)


def test_a_leader_that_steps_down_lets_its_followers_go_at_once(swarm: SmallSwarm) -> None:
    """Else each would wait for its silence to be noticed."""
    process = swarm.processes["p0"]
    assert len(process.engine.followers) == 3
    with process.loop.running():
        process.engine.step_down()
    assert len(process.engine.followers) == 0 and not process.engine.leader.active


def test_a_peer_that_is_told_to_lead_twice_begins_once(swarm: SmallSwarm) -> None:
    process = swarm.processes["p0"]
    began = len(process.told_of("leading"))
    with process.loop.running():
        process.engine.take_over()
    assert len(process.told_of("leading")) == began


def test_a_client_mode_peer_is_not_able_to_lead(swarm: SmallSwarm) -> None:
    assert not swarm.processes["p3"].engine.able_to_lead
    assert swarm.processes["p1"].engine.able_to_lead


# -- whom it believes -------------------------------------------------------------------------------------------------------


def part_for(swarm: SmallSwarm, name: str, **change: Any) -> MemberPlan:
    """A plan that `name` may accept now, unless `change` spoils it."""
    engine = swarm.processes[name].engine
    tip, elements = engine.member.tip, engine._replica.elements
    assert tip is not None
    plan = Plan(
        swarm.settings.run_digest,
        Ballot(tip.epoch + 1, tip.lineage, 9, "p0"),
        ("p0", "p1"),
        ("p0", "p1"),
        (Shard("p0", "p0:1", 0, elements),),
        "fp64",
        4.0,
        7,
    )
    return member_plan_of(replace(plan, **change), name)


def test_a_plan_of_this_run_is_accepted(swarm: SmallSwarm) -> None:
    process = swarm.processes["p1"]
    swarm.until(lambda: process.engine.member.phase is Phase.TRAINING)
    part = part_for(swarm, "p1")
    with process.loop.running():
        process.engine.told(LEADER, part)
    assert process.engine.member.promised == part.ballot


@pytest.mark.parametrize(
    "change",
    [{"run_digest": "cd" * 32}, {"shards": (Shard("p0", "p0:1", 0, 1024),)}, {"codec": "int8"}],
    ids=["run", "size", "codec"],
)
def test_a_plan_of_another_run_size_or_codec_breaks_the_protocol(swarm: SmallSwarm, change: dict[str, Any]) -> None:
    engine = swarm.processes["p1"].engine
    before = engine.member.promised
    with pytest.raises(BadMessageError, match="another run"):
        engine.told(LEADER, part_for(swarm, "p1", **change))
    assert engine.member.promised == before


@pytest.mark.parametrize("harm", ["signature", "codec"])
def test_a_commit_without_its_leaders_signature_or_with_a_codec_of_another_run_breaks_the_protocol(
    swarm: SmallSwarm, harm: str
) -> None:
    process = swarm.processes["p1"]
    signed, tip = process.engine.commits[-1], process.engine.member.tip
    assert tip is not None
    commit = replace(signed.commit, ballot=replace(signed.commit.ballot, epoch=tip.epoch + 1, parent=tip.lineage))
    forged = replace(signed, commit=commit)
    if harm == "codec":
        forged = swarm.processes["p0"].engine.environment.signer.sign(replace(commit, next_codec="int8"))
    with pytest.raises(BadMessageError, match="codec" if harm == "codec" else "not signed"):
        process.engine.told(LEADER, forged)
    assert process.engine.member.tip == tip


@pytest.mark.parametrize("record", [AskRequest(), PushReply(), Chunk(0, b"x")], ids=lambda it: type(it).__name__)
def test_what_no_leader_sends_breaks_the_protocol(swarm: SmallSwarm, record: Any) -> None:
    with pytest.raises(BadMessageError, match=f"sends no {type(record).__name__}"):
        swarm.processes["p1"].engine.told(LEADER, record)


def test_an_abort_of_a_plan_that_is_not_under_way_changes_nothing(swarm: SmallSwarm) -> None:
    process = swarm.processes["p1"]
    swarm.until(lambda: process.engine.member.phase is Phase.TRAINING)
    with process.loop.running():
        process.engine.told(LEADER, Abort("f" * 64, Reason.STALLED))
    assert process.engine.member.phase is Phase.TRAINING


def test_a_heavier_lineage_that_nobody_holds_is_sought_once_and_then_left_alone(swarm: SmallSwarm) -> None:
    """Whoever claims it costs this peer one search, and not its run."""
    process = swarm.processes["p1"]
    swarm.until(lambda: process.engine.member.phase is Phase.TRAINING)
    claimed = Heartbeat(Standing(10**6, "f" * 64, 10**9), 0, 0.0, 1)
    before = len(process.told_of("catching_up"))
    with process.loop.running():
        process.engine.told(LEADER, claimed)
    swarm.until(lambda: process.told_of("left_alone"))
    with process.loop.running():
        process.engine.told(LEADER, claimed)
    assert len(process.told_of("catching_up")) == before + 1
    epoch = swarm.epoch("p1")
    swarm.until(lambda: swarm.epoch("p1") > epoch + 1)


def test_outsiders_are_told_the_pace_of_commits_by_the_clock_on_the_wall(swarm: SmallSwarm) -> None:
    """Not of averaging, which takes a part of an epoch."""
    leader = swarm.processes["p0"]

    def at_a_commit(epoch: int) -> tuple[float, int]:
        swarm.until(lambda: swarm.epoch("p0") >= epoch)
        tip = leader.engine.member.tip
        assert tip is not None
        return swarm.world.now, tip.total_samples

    first = swarm.epoch("p0") + 2
    began, before = at_a_commit(first)
    ended, after = at_a_commit(first + RECENT_EPOCHS)
    view = leader.engine.swarm()
    assert view.epoch_s == pytest.approx((ended - began) / RECENT_EPOCHS, rel=0.05)
    assert view.committed_samples_per_second == pytest.approx((after - before) / (ended - began), rel=0.05)


# -- leaving ----------------------------------------------------------------------------------------------------------------


def test_micro_batches_of_a_millisecond_are_reported_together(swarm: SmallSwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = swarm.processes["p1"].engine
    reports = list[float]()
    monkeypatch.setattr(engine._following, "send", lambda record, to="": reports.append(swarm.world.now))

    async def train() -> None:
        first = engine._accumulating[1]
        for number in range(100):
            engine.progressed(first + number, first + number + 1, 1000.0, 0.001)
            await asyncio.sleep(0.001)

    swarm.processes["p1"].loop.create_task(train())
    began = swarm.world.now
    swarm.for_s(0.12)
    mine = [at for at in reports if at - began < 0.11]
    assert 15 <= len(mine) <= 30, "one in 5 ms, and those of other causes"
    assert reports[-1] - began > 0.099, "the last is told, too"


def test_who_leaves_finishes_the_round_says_goodbye_and_says_what_it_gives_up(swarm: SmallSwarm) -> None:
    process, gone = swarm.processes["p1"], list[float]()
    swarm.until(lambda: process.engine.member.phase is Phase.REDUCING)
    epoch = swarm.epoch("p1")
    with swarm.processes["p0"].engine.observers.subscribe("zoe") as observer:
        process.leave(lambda: gone.append(swarm.world.now))
        swarm.until(lambda: gone)
        left = [observer.inbox.get_nowait() for _ in range(observer.inbox.qsize())]
    assert swarm.epoch("p1") > epoch, "the round under way is finished first"
    assert [it.reason for it in left if getattr(it, "present", None) is False] == [Reason.LEFT.value]
    given_up = sum(it["samples"] for it in process.told_of("given_up") if it["reason"] is Reason.LEFT)
    assert given_up == process.engine.accumulated
    assert "p1" not in swarm.processes["p0"].engine.leader.followers


def test_no_leader_plans_with_a_peer_that_leaves(swarm: SmallSwarm) -> None:
    process = swarm.processes["p1"]
    swarm.until(lambda: process.engine.member.phase is Phase.REDUCING)
    process.leave(lambda: None)
    process.loop.call_soon(process.engine.report)
    swarm.for_s(0.1)
    report = swarm.processes["p0"].engine.leader.followers["p1"].report
    assert report is None or not report.caught_up
    assert not process.engine.able_to_lead


def test_a_round_that_does_not_end_is_not_waited_for_for_ever(swarm: SmallSwarm) -> None:
    process, gone = swarm.processes["p1"], list[float]()
    swarm.until(lambda: process.engine.member.phase is Phase.REDUCING)
    process.engine.member.phase = Phase.READY
    for name in ("p0", "p2", "p3"):
        swarm.kill(swarm.processes[name], tell=False)
    began = swarm.world.now
    process.leave(lambda: gone.append(swarm.world.now))
    swarm.until(lambda: gone)
    assert gone[0] - began <= 30.0 + DETECTION_S + 1.0


def test_a_run_that_is_complete_is_finished_everywhere_and_goes_no_further() -> None:
    with SmallSwarm(3, max_epochs=3) as swarm:
        swarm.start_all()
        swarm.until(lambda: all(process.engine.finished.is_set() for process in swarm.alive))
        swarm.for_s(10.0)
        assert {swarm.epoch(name) for name in swarm.names} == {3}
        assert all(process.engine.leaves for process in swarm.alive)
