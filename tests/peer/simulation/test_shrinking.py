"""A violation comes with the faults that it takes, and no others."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dugnad import app
from peer.simulation.faults import draw
from peer.simulation.scenario import SeedResult, simulate
from peer.simulation.shrinking import shrink
from tests.peer.simulation.test_mutants import a_member_that_steps_twice

PEERS = 4


def violated(monkeypatch: pytest.MonkeyPatch) -> SeedResult:
    a_member_that_steps_twice(monkeypatch)
    return next(seed_result for seed_result in (simulate(seed, PEERS) for seed in range(60)) if seed_result.violated == "1 state")


def test_a_shrunken_schedule_has_fewer_faults_and_violates_the_same_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    full = violated(monkeypatch)
    shrunken = shrink(full, PEERS)
    print(f"seed {full.seed}: {len(full.schedule)} faults, shrunken to {[str(fault) for fault in shrunken.schedule]}")
    assert len(shrunken.schedule) < len(full.schedule)
    assert set(shrunken.schedule) < set(full.schedule)
    assert "device error" in {fault.kind for fault in shrunken.schedule}
    again = simulate(full.seed, PEERS, schedule=shrunken.schedule)
    assert (again.violated, again.trace) == ("1 state", shrunken.trace)
    assert again.trace[-1].endswith(again.what)


def test_shrinking_ends_after_so_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    full = violated(monkeypatch)
    runs = []
    fine = SeedResult(full.seed)
    monkeypatch.setattr("peer.simulation.shrinking.simulate", lambda *args, **kwargs: runs.append(args) or fine)
    assert shrink(full, PEERS, max_runs=5) is full
    assert 1 < len(runs) <= 5


@pytest.mark.slow
def test_the_command_prints_the_fewest_faults_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = violated(monkeypatch).seed
    arguments = ["simulate", "--seeds", f"{seed}:{seed + 1}", "--peers", str(PEERS), "--workers", "1"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 1
    assert f"seed {seed} violates invariant 1 state" in told.output
    assert "device error of" in told.output
    numbers = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    (violation,) = numbers["violations"]
    assert (violation["seed"], violation["invariant"]) == (seed, "1 state")
    assert "device error" in {fault["kind"] for fault in violation["schedule"]}
    assert violation["trace"]


def test_leaving_faults_out_does_not_change_the_others() -> None:
    schedule = draw(11, ["p0", "p1", "p2", "p3"])
    assert schedule == draw(11, ["p0", "p1", "p2", "p3"])
    assert len({fault.seed for fault in schedule}) == len(schedule) > 3
    everything, half = simulate(11, PEERS), simulate(11, PEERS, schedule=simulate(11, PEERS).schedule[::2])
    assert half.violated == everything.violated == ""
    assert sum(half.faults.values()) < sum(everything.faults.values())
