"""How fast a line is found to be, in virtual time; a limit on one side stands in for a slow line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from peer.environment import Sizes
from peer.epoch import bandwidth_probe as probing
from peer.epoch.bandwidth_probe import BandwidthProbe, ProbeServer
from protocols import messages
from protocols.errors import RefusedError
from protocols.messages import NOBODY, AskReply, AskRequest, Probe
from protocols.reasons import Reason
from protocols.round.records import Candidate, Standing
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import Stream
from tests.peer.virtual import Answers, Net, Node

MB = 1e6
PROBE_S = 0.75
LINE_BYTES_S = 20 * MB


class Prober:
    def __init__(self, net: Net, *others: Candidate, up: float | None = None, down: float | None = None) -> None:
        limits = {"max_upload_bytes_s": up, "max_download_bytes_s": down}
        self.node = net.node("ann", reachable=False, bandwidth=lambda clock: Bandwidth(**limits, clock=clock))
        self.node.machine.up_bytes_s = self.node.machine.down_bytes_s = LINE_BYTES_S
        self.line = self.node.transport.bandwidth
        self.probe = BandwidthProbe(self.node.environment(sizes=Sizes(probe_s=PROBE_S)), lambda: others)

    def measured_with(self, *others: Candidate) -> bool:
        return self.node.play(self.probe.probe(others))


class Probed(Answers):
    """A peer that answers probes. `rounds`: whether a round is on, each time that it looks."""

    def __init__(self, net: Net, name: str = "bob", rounds: Any = None) -> None:
        async def here(stream: Stream, request: AskRequest) -> AsyncIterator[Any]:
            yield AskReply(Standing(1, "a" * 64, 8), True, NOBODY, self.node.candidate.address)

        super().__init__(AskRequest=here)
        self.rounds, self.looks = rounds or (lambda: False), 0
        self.node: Node = net.node(name, self)
        self.answers_probes = ProbeServer(self.node.environment(sizes=Sizes(probe_s=PROBE_S)), self.looked)

    def looked(self) -> bool:
        self.looks += 1
        return bool(self.rounds())

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        assert kind is Kind.PROBE
        await self.answers_probes.serve(stream, length)


def test_each_direction_is_measured_by_itself(net: Net) -> None:
    bob, ann = Probed(net), Prober(net, up=4 * MB, down=8 * MB)
    ann.line.up.measured(1.0)
    assert ann.measured_with(bob.node.candidate)
    assert ann.line.up.bytes_s == pytest.approx(4 * MB, rel=0.1)
    assert ann.line.down.bytes_s == pytest.approx(8 * MB, rel=0.1)


def test_a_line_is_measured_with_several_peers_at_once_of_which_each_is_slower(net: Net) -> None:
    others = [Probed(net, name) for name in ("bob", "cid", "dag")]
    for other in others:
        other.node.machine.up_bytes_s = 1 * MB
    ann = Prober(net)
    ann.node.machine.up_bytes_s = 3 * MB
    assert ann.measured_with(*(other.node.candidate for other in others))
    assert ann.line.up.bytes_s == pytest.approx(3 * MB, rel=0.1), "each finds a third"
    assert ann.line.down.bytes_s == pytest.approx(3 * MB, rel=0.1)


def test_a_fast_line_is_measured_with_few_bytes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MAX_BYTES", 1 << 20)
    bob, ann = Probed(net), Prober(net)
    ann.measured_with(bob.node.candidate)
    assert ann.line.up.bytes_s > 8 * MB
    assert ann.line.moved_bytes < 2.2 * (1 << 20)


def test_nobody_who_answers_leaves_the_rates_as_they_are(net: Net) -> None:
    ann = Prober(net)
    ann.line.up.measured(7.0)
    ann.measured_with()
    ann.measured_with(Candidate("gone", "gone:1"))
    assert (ann.line.up.bytes_s, ann.line.down.bytes_s) == (7.0, 0)


def test_who_probes_all_the_time_is_refused(net: Net) -> None:
    bob, ann = Probed(net), Prober(net)

    async def again() -> None:
        async with ann.node.transport.bulk("bob", "bob:1") as stream:
            await stream.send_record(Kind.PROBE, Probe(up=False))
            await stream.header()

    ann.measured_with(bob.node.candidate)
    with pytest.raises(RefusedError) as refused:
        ann.node.play(again())
    assert refused.value.reason == Reason.BUSY.value
    net.world.run_until(net.world.now + probing.AGAIN_S)
    ann.node.play(again())


def test_a_probe_during_a_round_is_put_off_once_for_each_direction(net: Net) -> None:
    """The round needs the line; but where a round is always on, a line must be measured some time."""
    bob, ann = Probed(net, rounds=lambda: True), Prober(net)
    ann.line.up.measured(7.0)
    assert ann.measured_with(bob.node.candidate) is False
    assert (ann.line.up.bytes_s, ann.line.down.bytes_s) == (7.0, 0.0)
    assert ann.line.moved_bytes < probing.MAX_BYTES / 4, "who hears that it is refused sends no more"
    looks = bob.looks
    assert ann.measured_with(bob.node.candidate) is True
    assert ann.line.up.bytes_s > MB and ann.line.down.bytes_s > MB
    assert bob.looks == looks == 2, "who was put off is not asked about again"


def test_who_was_put_off_long_ago_may_be_again(net: Net) -> None:
    bob, ann = Probed(net, rounds=lambda: True), Prober(net)
    for _ in range(3):
        assert ann.measured_with(bob.node.candidate) is False
        net.world.run_until(net.world.now + probing.PUT_OFF_S + 1)


def test_a_rate_that_the_other_side_makes_up_is_not_believed(net: Net) -> None:
    class Liar(Probed):
        async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
            asked = await stream.record(Probe, length)
            if asked.up:
                await stream.send_record(Kind.DONE, messages.Probed(9e11))
            await stream.drain()

    liar, ann = Liar(net), Prober(net)
    ann.line.up.measured(7.0)
    ann.measured_with(liar.node.candidate)
    assert ann.line.up.bytes_s == 7.0


def test_a_line_that_could_not_be_measured_for_rounds_is_measured_again_soon(net: Net) -> None:
    bob = Probed(net, rounds=lambda: True)
    ann = Prober(net, bob.node.candidate)
    ann.node.play(ann.probe.measure())
    assert ann.line.up.bytes_s == 0.0
    began = net.world.now
    ann.node.start(ann.probe.watch())
    net.world.run_until(probing.STALE_S / 2, lambda: ann.line.up.bytes_s > 0)
    assert probing.DOUBTED_S < net.world.now - began < probing.DOUBTED_S + 2 * probing.LOOK_AGAIN_S


@pytest.mark.parametrize("late", [False, True])
def test_a_line_is_measured_again_when_that_is_long_ago_and_sooner_when_a_round_was_late(net: Net, late: bool) -> None:
    bob = Probed(net)
    ann = Prober(net, bob.node.candidate)
    after_s = probing.DOUBTED_S if late else probing.STALE_S
    ann.node.play(ann.probe.measure())
    ann.line.up.measured(1.0)
    ann.line.is_late = late
    ann.node.start(ann.probe.watch())
    net.world.run_until(2 * probing.STALE_S, lambda: ann.line.up.bytes_s > 1.0)
    assert after_s < net.world.now < after_s + 3 * probing.LOOK_AGAIN_S
    assert not ann.line.is_late


def test_a_line_that_a_round_has_is_left_alone(net: Net) -> None:
    bob = Probed(net)
    ann = Prober(net, bob.node.candidate)
    ann.line.begin()
    ann.node.start(ann.probe.watch())
    net.world.run_until(2 * probing.STALE_S)
    assert bob.asked == []
