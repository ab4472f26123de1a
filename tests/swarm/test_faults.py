"""Faults at a named phase of a round, in real processes: survivors go on, nothing is counted twice, replicas stay identical."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.swarm.faults import ACTS, PHASES, RECOVERY_S, ROLES, Cell, FaultySwarm

pytestmark = pytest.mark.swarm

# Every act at every phase, and every role; all sixty cells: make faults.
SELECTION = [
    Cell("contributor", "before-sending", "kill"),
    Cell("reducer", "mid-shard", "kill"),
    Cell("auxiliary", "ready-before-commit", "stop"),
    Cell("lead", "ready-before-commit", "kill"),
    Cell("reducer", "before-sending", "stop"),
    Cell("lead", "mid-shard", "stop"),
    Cell("contributor", "after-commit-before-apply", "stop"),
    Cell("lead", "before-sending", "cut"),
    Cell("contributor", "mid-shard", "cut"),
    Cell("coordinator", "ready-before-commit", "cut"),
    Cell("auxiliary", "after-commit-before-apply", "cut"),
    Cell("coordinator", "after-commit-before-apply", "kill"),
]


def test_the_selection_covers_every_act_at_every_phase_and_every_role() -> None:
    assert {(cell.act, cell.phase) for cell in SELECTION} == {(act, phase) for act in ACTS for phase in PHASES}
    assert {cell.role for cell in SELECTION} == set(ROLES)


@pytest.mark.timeout(900)
def test_survivors_go_on_after_each_fault_at_each_phase(tmp_path: Path) -> None:
    _strike(tmp_path, 31, SELECTION)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("role", ROLES)
def test_survivors_go_on_after_every_fault_of(role: str, tmp_path: Path) -> None:
    _strike(tmp_path, 32, [Cell(role, phase, act) for phase in PHASES for act in ACTS])


def _strike(folder: Path, seed: int, cells: list[Cell]) -> None:
    late = []
    with FaultySwarm(folder, seed=seed) as faulty:
        for cell in cells:
            recovery = faulty.strike(cell)
            print(recovery, flush=True)
            if recovery.seconds > RECOVERY_S + recovery.epoch_s:
                late.append(str(recovery))
    assert not late, f"slower than {RECOVERY_S} s and one epoch: {late}"
