"""Whole swarms beside peers that lie, in virtual time: the honest majority commits. Without a defence, it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peer.simulation.liars import LIES
from peer.simulation.scenario import simulate
from protocols.round.idle_leaders import IdleLeaders
from protocols.round.leader import Leader
from protocols.round.leader_actions import Ask, Yield

Patch = pytest.MonkeyPatch


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_two_of_eight_that_tell_a_lie_stop_nobody(lie: str) -> None:
    seed = sorted(LIES).index(lie)
    seed_result = simulate(seed, hostile=0.25, lies=[lie])
    print(f"seed {seed}: the longest epoch beside liars took {seed_result.epoch_among_liars_s:.1f} s")
    assert (seed_result.violated, seed_result.what) == ("", "")
    assert seed_result.lies[lie] == 2


def leaders_that_are_never_left(patch: Patch) -> None:
    patch.setattr(IdleLeaders, "rests", lambda idle, leader, now: False)


def leaders_that_yield_to_a_claim(patch: Patch) -> None:
    def mutant(leader: Leader, peer: str, follows: str) -> list[Any]:
        if not leader.active or follows in ("", leader.me.peer):
            return []
        return [*leader.step_down(), Yield(follows)] if follows == peer else [Ask((follows,))]

    patch.setattr(Leader, "answered", mutant)


MUTANTS: dict[Callable[[Patch], None], str] = {
    leaders_that_are_never_left: "silent leader",
    leaders_that_yield_to_a_claim: "false leader",
}


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "lie"), MUTANTS.items())
def test_without_this_defence_the_lie_stops_a_swarm(mutant: Callable[[Patch], None], lie: str, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    for seed in range(20):
        seed_result = simulate(seed, hostile=0.25, lies=[lie])
        if seed_result.violated:
            print(f"seed {seed}: {seed_result.violated}: {seed_result.what}")
            return
    pytest.fail(f"20 seeds of {lie!r} do not catch it")
