"""The simulated network and clock: what they promise to the protocol, and what they do not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from peer.simulation.clock import Clock
from peer.simulation.network import Machine, Network, Stream
from peer.simulation.world import World


class Listener:
    """A process that notes what comes in on the streams that others open to it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.alive, self.stopped_until, self.died_at = True, 0.0, None
        self.heard: list[Any] = []

    died_at: float | None

    def run_ready(self) -> None:
        """It answers within the event itself."""

    def accept(self, stream: Stream, opening: Any) -> None:
        stream.serve(lambda message: self.heard.append((stream, message)), lambda: None)


def two_machines(world: World) -> tuple[Network, Listener, Listener]:
    machines = [Machine(name, True, 0.02, 0.02, 1e6, 1e6, Clock(world)) for name in ("here", "there")]
    network = Network(world, machines)
    here, there = Listener(machines[0]), Listener(machines[1])
    network.processes = {"here": here, "there": there}
    return network, here, there


@pytest.mark.parametrize("seed", range(3))
def test_connections_of_two_machines_overtake_each_other_and_none_itself(seed: int) -> None:
    world = World(seed)
    network, here, there = two_machines(world)
    streams = [network.dial(here, "there", "test", "opening", lambda message: None, lambda: None) for _ in range(2)]
    world.run_until(1.0)
    for number in range(100):
        streams[number % 2].send(here, number)
    world.run_until(2.0)
    order = [number for _, number in there.heard]
    assert order != sorted(order)
    assert sorted(order) == list(range(100))
    for stream in streams:
        of_one = [number for through, number in there.heard if through is stream]
        assert of_one == sorted(of_one)
    assert network.overtaken > 0


def test_a_skewed_clock_runs_at_the_new_rate_and_never_back() -> None:
    world = World(5)
    clock = Clock(world)
    read = [clock.now]
    for factor in (1.0, 2.0, 0.5, 1.0):
        clock.run_at(factor)
        assert clock.now == read[-1]
        world.run_until(world.now + 1.0)
        read.append(clock.now)
    right, fast, slow, right_again = (after - before for before, after in pairwise(read))
    assert 0.98 <= right <= 1.02
    assert (fast, slow, right_again) == pytest.approx((2 * right, 0.5 * right, right))
