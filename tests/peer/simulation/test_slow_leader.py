"""A leader whose upload is the bottleneck of every round does not outrun those who catch up: they come to give.

Found as seed 367 of 6 peers, when simulated leads came to have such lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from peer.simulation.swarm import Swarm
from peer.simulation.world import World
from protocols.round import stragglers

NAMES = ("p0", "p1", "p2", "p3", "p4", "p5")
# A commit takes 1.2 s to send in fp64. A round's, and those of the replays beside it, take longer than a batch.
SLOW_BYTES_S = 34e3
LATECOMERS = ("p0", "p4", "p5")
DRAWING = {"p1", "p2", "p3", "p4", "p5"}
COME_LEVEL_S = 90.0  # an epoch of those without the latecomers takes 6.7 s: these are three in which they are waited for


class SlowLeader(Swarm):
    """p1 leads p2 and p3, which accept no connections, and alone can give state; p0, p4 and p5 come back when rounds are under
    way."""

    def __init__(self, world: World) -> None:
        super().__init__(world, len(NAMES), overlap=True, codec="fp64")
        self.restarts = False
        for name, machine in self.network.machines.items():
            machine.reachable = name in ("p0", "p1")
            machine.up_bytes_s = SLOW_BYTES_S if name == "p1" else 1e6
            machine.down_bytes_s, machine.latency_s, machine.memory_bytes = 4e6, 0.02, 0
        self.speeds |= {"p1": (3, 0.29), "p2": (2, 0.58), "p3": (2, 0.36)}
        self.settings = replace(self.settings, target_batch_size=72)


@contextmanager
def played(seed: int) -> Iterator[tuple[World, SlowLeader]]:
    world = World(seed)
    with SlowLeader(world) as swarm:
        for name in NAMES:
            swarm.start(name)
        world.run_until(10)
        for name in LATECOMERS:
            swarm.kill(swarm.processes[name], tell=True)
        world.run_until(40)
        for name in LATECOMERS:
            swarm.start(name)
        yield world, swarm


def contributors(swarm: SlowLeader, since: int) -> set[str]:
    return {c.peer for commit in list(swarm.observer.commits.values())[since:] for c in commit.contributions}


@pytest.mark.parametrize("seed", range(4))
def test_whoever_is_behind_a_slow_leader_comes_to_give(seed: int) -> None:
    with played(seed) as (world, swarm):
        before = len(swarm.observer.commits)
        world.run_until(world.now + COME_LEVEL_S, lambda: contributors(swarm, before) == DRAWING)
        assert contributors(swarm, before) == DRAWING, list(world.notable)


def test_with_a_leader_that_never_waits_they_stay_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above is of what it says."""
    monkeypatch.setattr(stragglers, "WAITS_EVERY", 10**9)
    with played(0) as (world, swarm):
        before = len(swarm.observer.commits)
        world.run_until(world.now + COME_LEVEL_S)
        assert len(swarm.observer.commits) > before + 10
        assert contributors(swarm, before) == DRAWING - set(LATECOMERS)
